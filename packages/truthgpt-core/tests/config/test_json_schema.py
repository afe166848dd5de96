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
    ConfigSections,
    Section,
    json_schema,
    load_yaml_model,
)

TRAIN_YAML = """\
model: {name: gpt2}
data: {source: text, dataset: wikitext}
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


@pytest.fixture
def sections(sections: ConfigSections) -> ConfigSections:
    """Sections of the test's own, `tracking` among them."""
    sections.register("tracking", Tracking)
    return sections


@pytest.fixture
def complaints(sections: ConfigSections):
    """Return what a validator has against a file, by the schema."""

    def complaints(instance: object) -> list[str]:
        validator = Draft202012Validator(json_schema(sections=sections))
        return [error.message for error in validator.iter_errors(instance)]

    return complaints


def test_it_is_a_schema(sections) -> None:
    """It is valid by the draft that it names, and describes the whole file."""
    schema = json_schema(sections=sections)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == [
        *("output_dir", "seed", "model", "data", "training", "tracking"),
    ]
    assert schema["required"] == ["model", "data"]
    epochs = schema["$defs"]["Training"]["properties"]["epochs"]
    assert (epochs["type"], epochs["default"]) == ("integer", 1)
    assert epochs["description"] == "Passes over the texts."


def test_a_whole_file_is_valid(write, complaints) -> None:
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
def test_what_loads_is_valid(load, complaints, case: str) -> None:
    """An editor does not complain of what the loader takes."""
    given = yaml.safe_load(VALID[case])
    text = yaml.safe_dump({**yaml.safe_load(TRAIN_YAML), "training": {}, **given})
    load(text)
    assert complaints(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "trainng: {epochs: 3}",
        "training: {epohcs: 3}",
        "training: {epochs: many}",
        "training: {epochs: 0}",
        "model: {dtype: float8, name: x}",
        "model: {dtype: float16}",
        "tracking: {projcet: y}",
        "tracking: {sinks: [{level: all}]}",
        "tracking: {sinks: [{url: u, levle: all}]}",
        "tracking: {point: {z: 1}}",
        "tracking: {steps: [one]}",
        "seed: [1]",
    ],
)
def test_what_does_not_load_is_not_valid(problems, complaints, text: str) -> None:
    """Misspelt keys, wrong types and missing keys are seen by an editor as by the loader."""
    instance = {**yaml.safe_load(TRAIN_YAML), "training": {}, **yaml.safe_load(text)}
    assert problems(yaml.safe_dump(instance))
    assert len(complaints(instance)) == 1


@pytest.mark.parametrize("text", ["", "model: {name: x}", "seed: 1"])
def test_what_is_missing_is_not_valid(problems, complaints, text: str) -> None:
    """A file has to have the sections that have no defaults."""
    assert problems(text)
    assert complaints(yaml.safe_load(text) or {})


def test_what_loading_closes_is_closed(load, sections, complaints) -> None:
    """Models, dataclasses and typed mappings refuse other keys, unless a model allows them."""

    class Kinds(BaseModel):
        place: Place = Place()
        size: Size = {}
        loose: Anything = Anything()

    sections.register("kinds", Kinds)
    for value, fine in (
        ("{place: {x: 1}, size: {width: 1}, loose: {any: 1}}", True),
        ("{place: {y: 1}}", False),
        ("{size: {height: 1}}", False),
        ("{other: 1}", False),
    ):
        text = f"{TRAIN_YAML}kinds: {value}\n".replace("1e-3", "0.001")
        try:
            load(text)
        except ConfigError:
            assert not fine, value
        assert (complaints(yaml.safe_load(text)) == []) is fine, value


def test_a_field_that_json_has_no_words_for_costs_nothing_else(sections, complaints) -> None:
    """An odd field may be anything in the schema, and no warning is given."""

    class Odd(Section):
        callback: Callable[[int], int] = abs
        marker: Any = Field(default_factory=object)
        either: int | Callable[[], int] = 1
        plain: int = 1

    sections.register("odd", Odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = json_schema(sections=sections)
    assert schema["$defs"]["Odd"]["properties"]["callback"]["title"] == "Callback"
    assert complaints({**yaml.safe_load(TRAIN_YAML), "training": {}, "odd": {"plain": "x"}})


def test_any_model_has_a_schema() -> None:
    """A model that says nothing about extra keys is closed, one that allows them is open."""
    assert json_schema(Sink)["additionalProperties"] is False
    assert json_schema(Anything).get("additionalProperties") is not False
