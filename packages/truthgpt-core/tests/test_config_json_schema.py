"""The JSON Schema of training configurations: it says what loading says."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from truthgpt_core.config import (
    ConfigError,
    ConfigManager,
    Section,
    get_config_sections,
    json_schema,
    load_yaml_model,
)
from truthgpt_core.transaction import Transaction

TRAIN_YAML = """\
model: {name_or_path: gpt2}
data: {source: text, dataset: wikitext, max_seq_len: 128}
training:
  epochs: 3
  learning_rate: 1e-3
output_dir: runs/experiment
"""


@dataclasses.dataclass
class Point:
    x: int = 0


@dataclasses.dataclass
class Place:
    x: int = 0


class Size(TypedDict, total=False):
    width: int


class Sink(Section):
    """One place that metrics go to."""

    url: str
    level: Literal["all", "some"] = "all"


class Tracking(Section):
    """A plugin's section, with what one may hold."""

    project: str = "x"
    every: int | None = None
    steps: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    sinks: tuple[Sink, ...] = ()
    by_name: dict[str, Sink] = Field(default_factory=dict)
    point: Point = Point()
    folder: Path = Path("runs")
    token: str = Field(default="", validation_alias=AliasChoices("token", "key"))


class Anything(BaseModel):
    """Takes every file, to see what it says without judging it."""

    model_config = ConfigDict(extra="allow")


@pytest.fixture(autouse=True)
def plugins():
    """Register the section of a plugin for one test."""
    with Transaction() as transaction:
        get_config_sections().register("tracking", Tracking)
        yield
    transaction.rollback()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("f.yaml").write_text(text, encoding="utf-8")
        return "f.yaml"

    return write


def complaints(instance: object) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(instance)]


def test_it_is_a_schema() -> None:
    """It is valid by the draft that it names."""
    schema = json_schema()
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)


def test_the_seed_example_is_valid(write) -> None:
    """A complete training configuration, read as the loader reads it, has nothing against it."""
    read = load_yaml_model(write(TRAIN_YAML), Anything).model_dump()
    assert read["training"]["learning_rate"] == 0.001
    assert complaints(read) == []


VALID = {
    "a section of a plugin": "tracking: {project: y, every: null, pair: [2, b], folder: a/b}",
    "lists and mappings": "tracking: {steps: [1, 2], by_name: {a: {url: u}}, sinks: [{url: u}]}",
    "a dollar sign": "output_dir: runs/${seed}",
    "another name of a field": "tracking: {key: secret}",
    "infinity": "training: {max_grad_norm: .inf}",
}


@pytest.mark.parametrize("case", VALID)
def test_what_loads_is_valid(write, case: str) -> None:
    """An editor does not complain of what the loader takes."""
    given = yaml.safe_load(VALID[case])
    text = yaml.safe_dump({**yaml.safe_load(TRAIN_YAML), "training": {}, **given})
    ConfigManager.load_config(write(text), environment={})
    assert complaints(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "trainng: {epochs: 3}",
        "training: {epohcs: 3}",
        "training: {epochs: many}",
        "training: {epochs: 0}",
        "model: {torch_dtype: float8, name_or_path: x}",
        "model: {torch_dtype: float16}",
        "tracking: {projcet: y}",
        "tracking: {sinks: [{level: all}]}",
        "tracking: {sinks: [{url: u, levle: all}]}",
        "tracking: {point: {z: 1}}",
        "tracking: {steps: [one]}",
        "seed: [1]",
    ],
)
def test_what_does_not_load_is_not_valid(write, text: str) -> None:
    """Misspelt keys, wrong types and missing keys are seen by an editor as by the loader."""
    instance = {**yaml.safe_load(TRAIN_YAML), "training": {}, **yaml.safe_load(text)}
    with pytest.raises(ConfigError):
        ConfigManager.load_config(write(yaml.safe_dump(instance)), environment={})
    assert len(complaints(instance)) == 1


@pytest.mark.parametrize("text", ["", "model: {name_or_path: x}", "seed: 1"])
def test_what_is_missing_is_not_valid(write, text: str) -> None:
    """A file has to have the sections that have no defaults."""
    with pytest.raises(ConfigError):
        ConfigManager.load_config(write(text), environment={})
    assert complaints(yaml.safe_load(text) or {})


def test_what_loading_closes_is_closed(write) -> None:
    """Models, dataclasses and typed mappings refuse other keys, unless a model allows them."""

    class Kinds(BaseModel):
        place: Place = Place()
        size: Size = {}
        loose: Anything = Anything()

    get_config_sections().register("kinds", Kinds)
    for value, fine in (
        ("{place: {x: 1}, size: {width: 1}, loose: {any: 1}}", True),
        ("{place: {y: 1}}", False),
        ("{size: {height: 1}}", False),
        ("{other: 1}", False),
    ):
        text = f"{TRAIN_YAML}kinds: {value}\n".replace("1e-3", "0.001")
        try:
            ConfigManager.load_config(write(text), environment={})
        except ConfigError:
            assert not fine, value
        assert (complaints(yaml.safe_load(text)) == []) is fine, value


def test_a_field_that_json_has_no_words_for_costs_nothing_else() -> None:
    """An odd field may be anything in the schema, and no warning is given."""

    class Odd(Section):
        callback: Callable[[int], int] = abs
        marker: Any = Field(default_factory=object)
        either: int | Callable[[], int] = 1
        plain: int = 1

    get_config_sections().register("odd", Odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = json_schema()
    assert schema["$defs"]["Odd"]["properties"]["callback"]["title"] == "Callback"
    assert complaints({**yaml.safe_load(TRAIN_YAML), "training": {}, "odd": {"plain": "x"}})
