"""Names of components in configurations: checked where they are written, listed in the schema."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Annotated

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

from truthgpt_core.config import (
    ComponentName,
    ConfigError,
    ConfigManager,
    Section,
    json_schema,
    load_yaml_model,
)
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.plugin_system import make_factories

FILE = """\
model: {name_or_path: m}
data:
  source: books
  dataset: d
training:
  optimizer: sgd
  scheduler: cosine
"""


@pytest.fixture
def factories():
    """Factories with some components, as active plugins leave them."""
    made = make_factories()
    made["dataset_factory"].register("books", dict)
    made["optimizer_factory"].register("sgd", dict)
    made["optimizer_factory"].register_alias("plain", "sgd")
    made["scheduler_factory"].register("cosine", dict)
    made["scheduler_factory"].register("linear", dict)
    return made


@pytest.fixture
def load(tmp_path: Path, factories):
    """Load a training configuration of this text."""

    def load(text: str, *overrides: str) -> ConfigManager:
        file = tmp_path / "train.yaml"
        file.write_text(text)
        return ConfigManager.load_config(file, overrides, environment={}, factories=factories)

    return load


def problems(load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return [str(problem).split("train.yaml:")[-1] for problem in caught.value.problems]


def test_unknown_components_are_told_with_their_place(load) -> None:
    """All of them at once, each with file:line:column, what there is, and what was meant."""
    text = FILE.replace("books", "boks").replace("cosine", "cosin").replace("sgd", "adam")
    assert problems(load, text) == [
        "3:11: data.source: should be 'books', not the text 'boks'. Did you mean \"books\"?",
        "6:14: training.optimizer: should be 'sgd', not the text 'adam'",
        "7:14: training.scheduler: should be 'cosine' or 'linear', not the text 'cosin'. "
        'Did you mean "cosine"?',
    ]


def test_known_components_and_their_aliases_pass(load) -> None:
    """What a plugin has registered is taken, under each of its names."""
    assert load(FILE).training.scheduler == "cosine"
    assert load(FILE, "training.optimizer=plain").training.optimizer == "plain"


def test_an_override_is_checked_too(load) -> None:
    """A name on the command line is as wrong as one in the file."""
    (said,) = problems(load, FILE, "data.source=bookz")
    assert said.startswith("override 1: `data.source=bookz`: data.source: should be 'books'")


def test_a_default_that_nothing_provides_is_left_to_those_who_use_it(load, factories) -> None:
    """`optimizer: adamw` is a default, which the user did not write and may not need."""
    assert "adamw" not in factories["optimizer_factory"]
    assert load(FILE.replace("  optimizer: sgd\n", "")).training.optimizer == "adamw"


def test_nothing_is_refused_while_nothing_is_known(tmp_path) -> None:
    """Without an active plugin that has such components, any name may be right."""
    file = tmp_path / "train.yaml"
    file.write_text(FILE)
    found = ConfigManager.load_config(file, environment={}, factories=make_factories())
    assert found.data.source == "books"


def test_a_component_of_a_distribution_that_is_missing_says_what_to_install(
    load, factories, monkeypatch
) -> None:
    """A backend that is known and not installed is no typing mistake."""

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    factories["training_backend_factory"].register("local", type("Local", (_backend(),), {}))
    (said,) = problems(load, FILE, "training.backend=accelerate")
    assert "pip install truthgpt-plugin-accelerate" in said
    assert load(FILE, "training.backend=auto").training.backend == "auto"


def _backend() -> type:
    from truthgpt_core.training import TrainingBackend

    return TrainingBackend


def test_the_schema_lists_what_there_is(factories) -> None:
    """Editors complete the components of installed plugins, and mark all others."""
    schema = json_schema(factories=factories)
    validator = Draft202012Validator(schema)
    good = {
        "model": {"name_or_path": "m"},
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
def test_a_fraction_may_be_a_percentage(load, written, expected) -> None:
    """`5%` is what people write, and is never taken for 5."""
    found = load(FILE, f"data.validation_fraction={written}")
    assert found.data.validation_fraction == pytest.approx(expected)
    validator = Draft202012Validator(json_schema())
    value = float(written) if "%" not in written else written
    data = {"source": "text", "dataset": "d", "validation_fraction": value}
    assert not list(validator.iter_errors({"model": {"name_or_path": "m"}, "data": data}))


@pytest.mark.parametrize("written", ["100%", "-1%", "5%%", "five", "[5%]", '"0.05"'])
def test_what_is_no_fraction_in_range_is_refused(load, written) -> None:
    """A percentage has the bounds of the number that it stands for."""
    (said,) = problems(load, FILE, f"data.validation_fraction={written}")
    assert "data.validation_fraction: should be" in said


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
    found = load(FILE, f"model.torch_dtype={written}", f"training.precision={written}")
    assert (found.model.torch_dtype, found.training.precision) == (expected, expected)


def test_an_unknown_dtype_is_refused(load) -> None:
    """With those that there are."""
    (said,) = problems(load, FILE, "training.precision=int8")
    assert "'float32', 'float16' or 'bfloat16', not the text 'int8'" in said


# Files that are none


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path) -> None:
    """Reading one would hang until something writes to it."""
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="it is a named pipe, not a regular file"):
        ConfigManager.load_config(path, environment={})


@pytest.mark.parametrize("path", ["/dev/zero", "x" * 5000, "~no-such-user/x", "a\0b"])
def test_what_is_no_file_is_one_line(path) -> None:
    """Devices, names that no system takes, home directories of nobody."""
    with pytest.raises(ConfigError) as caught:
        ConfigManager.load_config(path, environment={})
    assert len(caught.value.problems) == 1


def test_what_was_typed_wrong_exits_as_usage(load) -> None:
    """2 if the command line alone is wrong, 1 if the file is."""
    with pytest.raises(ConfigError) as typed:
        load(FILE, "training.epochs=many")
    with pytest.raises(ConfigError) as written:
        load(FILE.replace("cosine", "cosin"), "training.epochs=many")
    assert (typed.value.exit_code, written.value.exit_code) == (2, 1)
