"""ConfigManager: the training configuration of the seed, its sections and its origins."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from truthgpt_core.config import (
    ConfigError,
    ConfigManager,
    Section,
    get_config_sections,
    json_schema,
    render_resolved,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.transaction import Transaction

TRAIN_YAML = """\
model:
  name_or_path: gpt2
training:
  epochs: 3
  learning_rate: 1e-3
  train_batch_size: 4
  eval_batch_size: 2
  eval_interval: 1
data:
  source: text
  dataset: wikitext
  max_seq_len: 128
output_dir: runs/experiment
"""


class Tracking(Section):
    project: str = "truthgpt"
    tags: tuple[str, ...] = ("a", "b")


@pytest.fixture
def train_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/train.yaml").write_text(TRAIN_YAML, encoding="utf-8")
    return "configs/train.yaml"


@pytest.fixture
def plugins():
    """Take back at the end of a test what it registers."""
    with Transaction() as transaction:
        yield transaction
    transaction.rollback()


def problems_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ConfigManager.load_config(path, overrides, environment={})
    return [str(problem) for problem in caught.value.problems]


def test_the_seed_example(train_yaml):
    """Every attribute that the seed's complete example reads has the file's value."""
    config = ConfigManager.load_config("configs/train.yaml")
    assert config.model.name_or_path == "gpt2"
    assert config.model.__dict__["name_or_path"] == "gpt2"
    assert (config.data.source, config.data.dataset) == ("text", "wikitext")
    assert config.data.max_seq_len == 128
    assert config.training.epochs == 3
    assert (config.training.train_batch_size, config.training.eval_batch_size) == (4, 2)
    assert config.training.learning_rate == 0.001
    assert config.training.eval_interval == 1
    assert config.output_dir == "runs/experiment"


def test_dict_of_a_section_is_plain(train_yaml):
    """`.__dict__` of a section is a dict of exactly its values, in the types of JSON."""
    section = ConfigManager.load_config(train_yaml).training
    assert type(section.__dict__) is dict
    assert section.__dict__ == section.model_dump()
    assert json.loads(json.dumps(section.__dict__)) == section.__dict__


def test_a_loaded_section_does_not_change(train_yaml):
    """Assigning to a value is refused, so that origins stay true."""
    config = ConfigManager.load_config(train_yaml)
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 9


def test_only_what_has_no_sensible_default_is_required(tmp_path):
    """An empty file is told the two sections that it needs, and no more."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    found = problems_of(str(path))
    assert [line.split(": ")[1] for line in found] == ["model", "data"]


def test_origin_of_each_layer(train_yaml, monkeypatch):
    """Origins tell the file's position, the variable, the override's number or the default."""
    name = "TRUTHGPT_CONFIG__training__eval_batch_size"
    monkeypatch.setenv(name, "5")
    config = ConfigManager.load_config(train_yaml, ["seed=1", "training.epochs=9"])
    assert config.origin("training.learning_rate") == "configs/train.yaml:5:18"
    assert config.origin("training.eval_batch_size") == f"environment {name}"
    assert config.origin("training.epochs") == "override 2"
    assert config.origin("training.weight_decay") == "default"
    assert config.origin("training") == "configs/train.yaml:4:3"
    assert config.training.eval_batch_size == 5


def test_origin_of_an_unknown_key_suggests(train_yaml):
    """Asking for a key that is not there names the one that was meant."""
    config = ConfigManager.load_config(train_yaml, environment={})
    with pytest.raises(TruthGPTError, match=r'"training\.learning_rate"'):
        config.origin("training.lerning_rate")


def test_render_resolved_lists_every_value_once(train_yaml):
    """The rows are all the leaves, in the model's order, with value and origin."""
    config = ConfigManager.load_config(train_yaml, ["training.epochs=42"], environment={})
    rows = list(render_resolved(config))
    assert rows[0] == ("model.name_or_path", "gpt2", "configs/train.yaml:2:17")
    assert ("training.epochs", 42, "override 1") in rows
    assert ("seed", 42, "default") in rows
    paths = [row.path for row in rows]
    assert len(set(paths)) == len(paths)
    assert {path.split(".")[0] for path in paths} == {
        "model",
        "data",
        "training",
        "output_dir",
        "seed",
    }


def test_environment_of_the_process_is_under_overrides(train_yaml, monkeypatch):
    """Priority is file, then environment, then overrides."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__epochs", "7")
    assert ConfigManager.load_config(train_yaml).training.epochs == 7
    assert ConfigManager.load_config(train_yaml, ["training.epochs=8"]).training.epochs == 8


def test_plugin_section_is_an_attribute(train_yaml, plugins):
    """A registered section is read from the file and validated by its model."""
    get_config_sections().register("tracking", Tracking)
    config = ConfigManager.load_config(train_yaml, ["tracking.project=x"], environment={})
    assert config.tracking == Tracking(project="x")
    assert "tracking" in dir(config)


def test_plugin_section_that_is_not_written_is_its_defaults(train_yaml, plugins):
    """A file that does not mention a plugin stays valid."""
    get_config_sections().register("tracking", Tracking)
    config = ConfigManager.load_config(train_yaml, environment={})
    assert config.tracking == Tracking()
    assert config.origin("tracking.tags.1") == "default"


def test_plugin_section_with_required_fields_may_be_left_out(train_yaml, plugins):
    """It is None then, and complete or wrong where it is written."""

    class Needy(Section):
        token: str
        size: int = 1

    get_config_sections().register("needy", Needy)
    assert ConfigManager.load_config(train_yaml, environment={}).needy is None
    assert any("needy.token" in line for line in problems_of(train_yaml, "needy.size=2"))


def test_section_model_may_allow_extra_keys(train_yaml, plugins):
    """Only a model that says so takes keys it does not name; the default of pydantic does not."""

    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Silent(BaseModel):
        """Pydantic would ignore what it does not know."""

    get_config_sections().register("loose", Loose)
    get_config_sections().register("silent", Silent)
    config = ConfigManager.load_config(train_yaml, ["loose.any=1"], environment={})
    assert config.loose.any == 1
    assert "unknown key" in problems_of(train_yaml, "silent.any=1")[0]


def test_unknown_section_hints_at_a_plugin(train_yaml):
    """A section nobody registered is an unknown key that may be a missing plugin's."""
    (line,) = problems_of(train_yaml, "trainng.epochs=3")
    assert line.startswith("override 1: `trainng.epochs=3`: trainng: unknown key")
    assert 'Did you mean "training"?' in line
    assert "plugin" in line


def test_attribute_of_an_unknown_section_suggests(train_yaml):
    """A misspelt attribute is an AttributeError that names the right one."""
    config = ConfigManager.load_config(train_yaml, environment={})
    with pytest.raises(AttributeError, match='"training"'):
        config.trainig  # noqa: B018
    assert not hasattr(config, "_private")


@pytest.mark.parametrize("name", ["model", "seed", "tracking"])
def test_names_clash(name, plugins):
    """A name of the core or of another plugin is refused."""

    class Other(Section):
        pass

    get_config_sections().register("tracking", Tracking)
    with pytest.raises(TruthGPTError, match="taken"):
        get_config_sections().register(name, Other)


def test_the_same_section_again_changes_nothing(train_yaml, plugins):
    """A section may be registered several times, and lasts until each time is taken back."""
    get_config_sections().register("tracking", Tracking)
    with Transaction() as again:
        get_config_sections().register("tracking", Tracking)
    again.rollback()
    assert ConfigManager.load_config(train_yaml, environment={}).tracking == Tracking()


@pytest.mark.parametrize(
    "name",
    ["origin", "model_dump", "json", "Upper", "a.b", "", "a__b", "a_", "_a", "a-b"],
)
def test_names_that_cannot_be(name, plugins):
    """What would hide an attribute or could not be written as a key is refused."""
    with pytest.raises(TruthGPTError):
        get_config_sections().register(name, Tracking)


def test_registration_is_undone_with_its_transaction(train_yaml):
    """Rolling back takes exactly the section back, and it can be registered anew."""
    with Transaction() as transaction:
        get_config_sections().register("tracking", Tracking)
    transaction.rollback()
    assert "unknown key" in problems_of(train_yaml, "tracking.project=x")[0]
    with Transaction() as again:
        get_config_sections().register("tracking", Tracking)
    again.rollback()


def test_failed_activation_leaves_no_section(train_yaml):
    """What a plugin registered before it failed is gone."""

    def activate():
        with Transaction():
            get_config_sections().register("tracking", Tracking)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        activate()
    assert problems_of(train_yaml, "tracking.project=x")


def test_json_schema_describes_the_whole_file(plugins):
    """The schema has core and plugin sections, and closed objects."""
    get_config_sections().register("tracking", Tracking)
    schema = json_schema()
    assert set(schema["properties"]) == {
        "model",
        "data",
        "training",
        "output_dir",
        "seed",
        "tracking",
    }
    assert schema["additionalProperties"] is False
    epochs = schema["$defs"]["TrainingSection"]["properties"]["epochs"]
    assert epochs["default"] == 1
    assert epochs["description"]
    assert epochs["type"] == "integer"


def test_json_schema_closes_what_loading_closes():
    """A model that says nothing about extra keys is closed, one that allows them is open."""

    class Silent(BaseModel):
        a: int = 1

    class Loose(Silent):
        model_config = ConfigDict(extra="allow")

    assert json_schema(Silent)["additionalProperties"] is False
    assert json_schema(Loose).get("additionalProperties") is not False


def test_every_core_field_is_documented():
    """An editor can show what each key is for."""
    for definition in json_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            assert field.get("description"), name
