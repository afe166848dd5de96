"""The sections `model`, `data`, `training`, `architecture` and `lora` of a configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_core.config import (
    ConfigError,
    ConfigManager,
    ConfigSections,
    config_model,
    get_config_sections,
    json_schema,
)
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services.training.config_sections import ModelSection, TrainingSection

FILE = """\
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
SECTIONS = ["model", "data", "training", "architecture", "lora"]


@pytest.fixture
def load(tmp_path: Path):
    """Load a training configuration of a text."""

    def load(text: str, *overrides: str, **options) -> ConfigManager:
        file = tmp_path / "train.yaml"
        file.write_text(text, encoding="utf-8")
        return ConfigManager.load_config(file, overrides, environment={}, **options)

    return load


def problems(load, text: str, *overrides: str, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides, **options)
    return [str(problem).rpartition("train.yaml:")[2] for problem in caught.value.problems]


def run(code: str) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


# What the sections have


def test_the_seed_example(load) -> None:
    """Every attribute that the seed's complete example reads has the file's value."""
    config = load(FILE)
    assert config.model.name_or_path == "gpt2"
    assert config.model.__dict__["name_or_path"] == "gpt2"
    assert (config.data.source, config.data.dataset) == ("text", "wikitext")
    assert config.data.max_seq_len == 128
    assert config.training.epochs == 3
    assert (config.training.train_batch_size, config.training.eval_batch_size) == (4, 2)
    assert config.training.learning_rate == 0.001
    assert config.training.eval_interval == 1
    assert config.output_dir == "runs/experiment"
    assert isinstance(config.model, ModelSection)
    assert isinstance(config.training, TrainingSection)
    assert (config.architecture, config.lora) == (None, None)


def test_dict_of_a_section_is_plain(load) -> None:
    """`config.training.__dict__` is a dict of exactly its values, in the types of JSON."""
    section = load(FILE).training
    assert type(section.__dict__) is dict
    assert section.__dict__ == section.model_dump()
    assert json.loads(json.dumps(section.__dict__)) == section.__dict__


def test_only_what_has_no_sensible_default_is_required(load) -> None:
    """An empty file lacks the two sections that it needs, and no more."""
    lines = problems(load, "# nothing\n")
    assert [line.split(": ")[1] for line in lines] == ["model", "data"]


def test_units_and_names_are_plain(load) -> None:
    """Percentages and short names of dtypes are understood."""
    config = load(FILE, "data.validation_fraction=2%", "training.precision=bf16")
    assert config.data.validation_fraction == 0.02
    assert config.training.precision == "bfloat16"
    (line,) = problems(load, FILE, "training.precision=int8")
    assert "'float32', 'float16' or 'bfloat16', not the text 'int8'" in line


def test_components_are_those_of_active_plugins(load, bare_plugins) -> None:
    """An unknown optimizer is an error with its place, and the schema lists those there are."""
    known = {"factories": bare_plugins.factories, "sections": bare_plugins.sections}
    text = FILE.replace("  epochs: 3\n", "  optimizer: adamww\n")
    (line,) = problems(load, text, **known)
    assert line.startswith("4:14: training.optimizer: should be ")
    assert line.endswith('Did you mean "adamw"?')
    properties = json_schema(**known)["$defs"]["TrainingSection"]["properties"]
    assert {"adamw", "sgd"} <= set(properties["optimizer"]["enum"])
    assert {"auto", "local"} <= set(properties["backend"]["enum"])


def test_every_key_is_documented() -> None:
    """An editor can show what each key is for."""
    for definition in json_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            assert field.get("description"), name


# Who knows them


IMPORTS = {
    "before the configuration": "import truthgpt_services",
    "after it": "import truthgpt_core.config, truthgpt_services",
    "by its own module": "import truthgpt_services.training.config_sections",
}


@pytest.mark.new_process
@pytest.mark.parametrize("order", IMPORTS)
def test_an_import_makes_them_known(order: str) -> None:
    """After `import truthgpt_services`, in any order, files may have them; no plugin is active."""
    code = f"""
{IMPORTS[order]}
import sys
from truthgpt_core.config import config_model, get_config_sections
print(*config_model(get_config_sections()).model_fields)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    assert run(code) == f"output_dir seed {' '.join(SECTIONS)}\n[]"


@pytest.mark.new_process
def test_the_import_alone_imports_no_configuration() -> None:
    """Importing the package costs neither pydantic's import nor torch's."""
    code = """
import sys, truthgpt_services
print([name for name in ("torch", "transformers", "pydantic") if name in sys.modules])
"""
    assert run(code) == "[]"


def test_the_plugin_registers_them_in_the_sections_of_its_manager(only_services) -> None:
    """They are there while it is active; the default sections have them from then on."""
    manager = PluginManager(ServiceContainer(), sections=ConfigSections(), strict=True)
    manager.activate("services")
    assert list(config_model(manager.sections).model_fields)[2:] == SECTIONS
    manager.deactivate("services")
    assert not set(SECTIONS) & set(config_model(manager.sections).model_fields)
    assert set(SECTIONS) <= set(config_model(get_config_sections()).model_fields)


def test_deactivating_the_plugin_leaves_what_the_import_made_known(only_services) -> None:
    """What was known before the plugin was activated is known after it, too."""
    manager = PluginManager(ServiceContainer(), sections=get_config_sections(), strict=True)
    manager.activate("services")
    manager.deactivate("services")
    assert set(SECTIONS) <= set(config_model(manager.sections).model_fields)
