"""Fixtures: `sections` with those of the plugin in trainer.py, and ways to load a file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from truthgpt_core.config import ConfigError, ConfigManager, ConfigSections

Write = Callable[[str], str]


@pytest.fixture(scope="session")
def trainer() -> ModuleType:
    """The module of the plugin."""
    name = "truthgpt_core_tests_trainer"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("trainer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic looks a class's module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sections(trainer: ModuleType) -> ConfigSections:
    """Sections of the test's own: `model`, `data` and `training`."""
    made = ConfigSections()
    trainer.register_config_sections(made)
    return made


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write f.yaml in the working directory; return its name."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes, name: str = "f.yaml") -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


@pytest.fixture
def load(write: Write, sections: ConfigSections):
    """Load a training configuration of a text, without the environment."""

    def load(text: str, *overrides: str, **options) -> ConfigManager:
        options = {"environment": {}, "sections": sections, **options}
        return ConfigManager.load_config(write(text), overrides, **options)

    return load


@pytest.fixture
def problems(load):
    """Load one that is wrong; return a line for each problem."""

    def problems(text: str, *overrides: str, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, **options)
        return [str(problem) for problem in caught.value.problems]

    return problems
