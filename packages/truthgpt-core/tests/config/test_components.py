"""Names of components in configurations: checked where they are written, listed in the schema."""

from __future__ import annotations

import importlib.metadata
from functools import partial
from typing import Annotated

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

from truthgpt_core.config import (
    ComponentName,
    ConfigError,
    Section,
    json_schema,
    load_yaml_model,
)
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.plugin_system import make_factories
from truthgpt_core.training import TrainingBackend

FILE = """\
model: {name: m}
data:
  source: books
  dataset: d
training:
  optimizer: sgd
  scheduler: cosine
"""


class Books:
    """A source of texts."""

    def texts(self):
        yield "Once upon a time"


@pytest.fixture
def factories():
    """Factories with some components, as active plugins leave them."""
    made = make_factories()
    made["dataset_factory"].register("books", Books)
    made["optimizer_factory"].register("sgd", dict)
    made["optimizer_factory"].register_alias("plain", "sgd")
    made["scheduler_factory"].register("cosine", dict)
    made["scheduler_factory"].register("linear", dict)
    return made


@pytest.fixture
def load(load, factories):
    """Load a training configuration, with the names of components checked."""
    return partial(load, factories=factories)


@pytest.fixture
def problems(problems, factories):
    """Load one that is wrong; return a line for each problem."""
    return partial(problems, factories=factories)


def test_unknown_components_are_told_with_their_place(problems) -> None:
    """All of them at once, each with file:line:column, what there is, and what was meant."""
    text = FILE.replace("books", "boks").replace("cosine", "cosin").replace("sgd", "adam")
    assert problems(text) == [
        "f.yaml:3:11: data.source: should be 'books', not the text 'boks'. Did you mean \"books\"?",
        "f.yaml:6:14: training.optimizer: should be 'sgd', not the text 'adam'",
        "f.yaml:7:14: training.scheduler: should be 'cosine' or 'linear', not the text 'cosin'. "
        'Did you mean "cosine"?',
    ]


def test_known_components_and_their_aliases_pass(load) -> None:
    """What a plugin has registered is taken, under each of its names."""
    assert load(FILE).training.scheduler == "cosine"
    assert load(FILE, "training.optimizer=plain").training.optimizer == "plain"


def test_an_override_is_checked_too(problems) -> None:
    """A name on the command line is as wrong as one in the file."""
    (said,) = problems(FILE, "data.source=bookz")
    assert said.startswith("override 1: `data.source=bookz`: data.source: should be 'books'")


def test_a_default_that_nothing_provides_is_left_to_those_who_use_it(load, factories) -> None:
    """`optimizer: adamw` is a default, which the user did not write and may not need."""
    assert "adamw" not in factories["optimizer_factory"]
    assert load(FILE.replace("  optimizer: sgd\n", "")).training.optimizer == "adamw"


def test_nothing_is_refused_while_nothing_is_known(load) -> None:
    """Without an active plugin that has such components, any name may be right."""
    assert load(FILE, factories=make_factories()).data.source == "books"


def test_a_component_of_a_distribution_that_is_missing_says_what_to_install(
    load, problems, factories, monkeypatch
) -> None:
    """A backend that is known and not installed is not a typing mistake."""

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    factories["training_backend_factory"].register("local", type("Local", (TrainingBackend,), {}))
    (said,) = problems(FILE, "training.backend=accelerate")
    assert "pip install truthgpt-plugin-accelerate" in said
    assert load(FILE, "training.backend=auto").training.backend == "auto"


def test_the_schema_lists_what_there_is(factories, sections) -> None:
    """Editors complete the components of installed plugins, and mark all others."""
    schema = json_schema(factories=factories, sections=sections)
    validator = Draft202012Validator(schema)
    good = {
        "model": {"name": "m"},
        "data": {"source": "books", "dataset": "d"},
        "training": {"optimizer": "plain", "scheduler": "linear"},
    }
    assert not list(validator.iter_errors(good))
    bad = {**good, "training": {"scheduler": "cosin"}}
    (wrong,) = validator.iter_errors(bad)
    assert next(iter(wrong.absolute_path)) == "training"
    assert "x-truthgpt-component" not in str(schema)


class Stage(Section):
    """A section of a plugin's, with components of its own."""

    steps: list[Annotated[str, ComponentName("step_factory")]] = Field(default_factory=list)


def test_plugins_check_names_of_their_own_factories(tmp_path) -> None:
    """The annotation works in any model, at any depth, with any factory."""
    steps = DynamicFactory(name="step_factory")
    steps.register("clean", dict)
    file = tmp_path / "stage.yaml"
    file.write_text("steps: [clean, claen]\n")
    with pytest.raises(ConfigError, match=r"stage.yaml:1:16: steps.1: should be 'clean'"):
        load_yaml_model(file, Stage, factories={"step_factory": steps})


# Values that may be written in more than one way


@pytest.mark.parametrize(
    ("written", "expected"), [("5%", 0.05), ("0.5 %", 0.005), ("0.25", 0.25), ("99.9%", 0.999)]
)
def test_a_fraction_may_be_a_percentage(load, sections, written, expected) -> None:
    """`5%` is what people write, and is never taken for 5."""
    found = load(FILE, f"data.held_out={written}")
    assert found.data.held_out == pytest.approx(expected)
    validator = Draft202012Validator(json_schema(sections=sections))
    value = float(written) if "%" not in written else written
    data = {"source": "text", "dataset": "d", "held_out": value}
    assert not list(validator.iter_errors({"model": {"name": "m"}, "data": data}))


@pytest.mark.parametrize("written", ["100%", "-1%", "5%%", "five", "[5%]", '"0.05"'])
def test_what_is_not_a_fraction_in_range_is_refused(problems, written) -> None:
    """A percentage has the bounds of the number that it stands for."""
    (said,) = problems(FILE, f"data.held_out={written}")
    assert "data.held_out: should be" in said


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("fp32", "float32"),
        ("torch.bfloat16", "bfloat16"),
        ("auto", "auto"),
    ],
)
def test_a_dtype_may_have_its_short_name(load, written, expected) -> None:
    """What everyone calls a dtype is understood, and torch's name for it is what is kept."""
    assert load(FILE, f"model.dtype={written}").model.dtype == expected


def test_an_unknown_dtype_is_refused(problems) -> None:
    """With those that there are."""
    (said,) = problems(FILE, "model.dtype=int8")
    assert "'float32', 'float16' or 'bfloat16', not the text 'int8'" in said


def test_what_was_typed_wrong_exits_as_usage(load) -> None:
    """2 if the command line alone is wrong, 1 if the file is."""
    with pytest.raises(ConfigError) as typed:
        load(FILE, "training.epochs=many")
    with pytest.raises(ConfigError) as written:
        load(FILE.replace("cosine", "cosin"), "training.epochs=many")
    assert (typed.value.exit_code, written.value.exit_code) == (2, 1)
