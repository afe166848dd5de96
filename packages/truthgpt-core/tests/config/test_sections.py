"""ConfigManager and ConfigSections: typed sections, where values come from, who registers what."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from truthgpt_core.config import (
    ConfigManager,
    ConfigSections,
    Section,
    get_config_sections,
    json_schema,
    plain_config,
    render_resolved,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.transaction import Transaction

FILE = """\
model: {name: gpt2}
data: {source: text, dataset: wiki}
training:
  learning_rate: 1e-3
  epochs: 3
output_dir: runs/experiment
"""


class Tracking(Section):
    project: str = "truthgpt"
    tags: tuple[str, ...] = ("a", "b")


class Other(Section):
    pass


# What a loaded configuration says


def test_sections_are_attributes(load) -> None:
    """Every section has the file's values, the core's own keys too."""
    config = load(FILE)
    assert config.model.name == "gpt2"
    assert (config.data.source, config.data.dataset) == ("text", "wiki")
    assert (config.training.epochs, config.training.learning_rate) == (3, 0.001)
    assert (config.output_dir, config.seed) == ("runs/experiment", 42)
    assert {"model", "training", "seed"} <= set(dir(config))


def test_dict_of_a_section_is_plain(load) -> None:
    """`.__dict__` of a section is a dict of exactly its values, in the types of JSON."""
    section = load(FILE).training
    assert type(section.__dict__) is dict
    assert section.__dict__ == section.model_dump()
    assert json.loads(json.dumps(section.__dict__)) == section.__dict__


def test_a_loaded_section_does_not_change(load) -> None:
    """Assigning to a value is refused, so that origins stay true."""
    config = load(FILE)
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 9


def test_origin_of_each_layer(load) -> None:
    """Origins tell the file's position, the variable, the override's number or the default."""
    name = "TRUTHGPT_CONFIG__training__eval_interval"
    config = load(FILE, "seed=1", "training.epochs=9", environment={name: "5"})
    assert config.origin("training.learning_rate") == "f.yaml:4:18"
    assert config.origin("training.eval_interval") == f"environment {name}"
    assert config.origin("training.epochs") == "override 2"
    assert config.origin("training.optimizer") == "default"
    assert config.origin("training") == "f.yaml:4:3"
    assert config.training.eval_interval == 5


def test_origin_of_an_unknown_key_suggests(load) -> None:
    """Asking for a key that is not there names the one that was meant."""
    with pytest.raises(TruthGPTError, match=r'"training\.learning_rate"'):
        load(FILE).origin("training.lerning_rate")
    with pytest.raises(TruthGPTError, match="is not a dotted path"):
        load(FILE).origin("a..b")


def test_render_resolved_lists_every_value_once(load) -> None:
    """The rows are all the leaves, in the model's order, with value and origin."""
    rows = list(render_resolved(load(FILE, "training.epochs=2")))
    assert rows[0] == ("output_dir", "runs/experiment", "f.yaml:6:13")
    assert ("training.epochs", 2, "override 1") in rows
    assert ("seed", 42, "default") in rows
    paths = [row.path for row in rows]
    assert len(set(paths)) == len(paths)
    names = list(dict.fromkeys(path.split(".")[0] for path in paths))
    assert names == ["output_dir", "seed", "model", "data", "training"]


def test_environment_of_the_process_is_under_overrides(load, monkeypatch) -> None:
    """Priority is file, then environment, then overrides."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__epochs", "7")
    assert load(FILE, environment=None).training.epochs == 7
    assert load(FILE, "training.epochs=8", environment=None).training.epochs == 8


def test_a_secret_is_not_shown(load, sections) -> None:
    """A field that is a secret is hidden in rows and in the plain configuration of a run."""

    class Account(Section):
        token: SecretStr

    sections.register("account", Account)
    config = load(f"{FILE}account: {{token: hunter2}}\n")
    assert config.account.token.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{plain_config(config)}{list(render_resolved(config))}"


# Which sections a file has


def test_only_required_sections_are_missing(problems) -> None:
    """An empty file lacks the two sections that are required, and no more."""
    assert [line.split(": ")[1] for line in problems("# nothing\n")] == ["model", "data"]


def test_a_section_that_is_not_written_is_its_defaults(load, sections) -> None:
    """A file that does not mention a section stays valid."""
    sections.register("tracking", Tracking)
    config = load(FILE)
    assert config.tracking == Tracking()
    assert config.origin("tracking.tags.1") == "default"


def test_a_section_with_required_keys_may_be_left_out(load, problems, sections) -> None:
    """It is None then, and complete or wrong where it is written."""

    class Needy(Section):
        token: str
        size: int = 1

    sections.register("needy", Needy)
    assert load(FILE).needy is None
    assert any("needy.token" in line for line in problems(FILE, "needy.size=2"))


def test_a_model_may_allow_extra_keys(load, problems, sections) -> None:
    """Only a model that says so takes keys it does not name; the default of pydantic does not."""

    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Silent(BaseModel):
        """Pydantic would ignore what it does not know."""

    sections.register("loose", Loose)
    sections.register("silent", Silent)
    assert load(FILE, "loose.any=1").loose.any == 1
    assert "unknown key" in problems(FILE, "silent.any=1")[0]


def test_an_unknown_section_may_be_one_of_a_plugin(problems) -> None:
    """A section that is not registered is an unknown key that may be a missing plugin's."""
    (line,) = problems(FILE, "trainng.epochs=3")
    assert line == (
        "override 1: `trainng.epochs=3`: trainng: unknown key. "
        'Did you mean "training"? If a plugin defines it, that plugin is not installed or not '
        "active."
    )


@pytest.mark.parametrize(
    ("installed", "hint"),
    [
        (True, "truthgpt-services, which is not active: see truthgpt plugins."),
        (False, "truthgpt-services: pip install truthgpt-services."),
    ],
)
def test_sections_of_the_services_say_where_they_come_from(
    load, problems, monkeypatch, installed, hint
) -> None:
    """Each known section is one error that names the distribution, in the file and outside."""

    def version(name: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert problems(FILE, "lora.rank=1", sections=ConfigSections()) == [
        f"f.yaml:1:1: model: unknown key. It comes with {hint}",
        f"f.yaml:2:1: data: unknown key. It comes with {hint}",
        f"f.yaml:3:1: training: unknown key. It comes with {hint}",
        f"override 1: `lora.rank=1`: lora: unknown key. It comes with {hint}",
    ]
    with pytest.raises(AttributeError, match=f'no section "training". It comes with {hint}'):
        load("", sections=ConfigSections()).training  # noqa: B018


def test_attribute_of_an_unknown_section_suggests(load) -> None:
    """A misspelled attribute is an AttributeError that names the right one."""
    config = load(FILE)
    with pytest.raises(AttributeError, match='"training"'):
        config.trainig  # noqa: B018
    assert not hasattr(config, "_private")


# Registering


def test_sections_given_are_the_only_ones(load) -> None:
    """Two objects share nothing, and the default one is used where none is given."""
    mine = ConfigSections()
    mine.register("tracking", Tracking)
    assert load("tracking: {project: x}", sections=mine).tracking.project == "x"
    assert "tracking" in json_schema(sections=mine)["properties"]
    with Transaction() as transaction:
        get_config_sections().register("other", Other)
        assert load("", sections=None).other == Other()
        assert "tracking" not in dir(load("", sections=None))
        assert "other" not in dir(load("", sections=mine))
        assert {"other"} == set(json_schema()["properties"]) - {"output_dir", "seed"}
    transaction.rollback()


@pytest.mark.parametrize("name", ["seed", "training"])
def test_a_name_is_taken(sections, name: str) -> None:
    """A name of the core or of another model is refused, and the error says whose it is."""
    owner = "the core" if name == "seed" else "truthgpt_core_tests_trainer.Training"
    with pytest.raises(TruthGPTError, match=f'"{name}" is taken by {owner}$'):
        sections.register(name, Other)


@pytest.mark.parametrize(
    "name",
    ["origin", "load_config", "model_dump", "json", "Upper", "a.b", "", "a__b", "a_", "_a", "a-b"],
)
def test_names_that_cannot_be(sections, name: str) -> None:
    """What would hide an attribute or could not be written as a key is refused."""
    with pytest.raises(TruthGPTError):
        sections.register(name, Tracking)


def test_the_same_section_again_changes_nothing(load, sections) -> None:
    """A section may be registered several times, and lasts until each is undone, in any order."""
    first, second = Transaction(), Transaction()
    for transaction in (first, second):
        with transaction:
            sections.register("tracking", Tracking)
    first.rollback()
    assert load(FILE).tracking == Tracking()
    second.rollback()
    assert "tracking" not in dir(load(FILE))


def test_registration_is_undone_with_its_transaction(load, problems, sections) -> None:
    """Rolling back removes exactly that section, and another may have its name then."""
    with Transaction() as transaction:
        sections.register("tracking", Tracking)
    transaction.rollback()
    assert "unknown key" in problems(FILE, "tracking.project=x")[0]
    sections.register("tracking", Other)
    assert load(FILE).tracking == Other()


def test_failed_activation_leaves_no_section(load, sections) -> None:
    """What a plugin registered before it failed is gone."""

    def activate():
        with Transaction():
            sections.register("tracking", Tracking)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        activate()
    assert "tracking" not in dir(load(FILE))


def test_what_was_loaded_stays_when_the_section_goes(load, sections) -> None:
    """A configuration keeps the sections that it was loaded with."""
    with Transaction() as transaction:
        sections.register("tracking", Tracking)
    config = load(f"{FILE}tracking: {{project: x}}")
    transaction.rollback()
    assert isinstance(config, ConfigManager)
    assert config.tracking.project == "x"
    assert config.origin("tracking.project") == "f.yaml:7:21"
