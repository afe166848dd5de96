"""The catalogue, which is written by hand, agrees with what the packages declare."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.config import ConfigSections, config_model
from truthgpt_core.config.manager import KNOWN_SECTIONS
from truthgpt_core.plugin_system import PluginManager, State
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_core.training import TrainingBackend

ROOT = Path(__file__).parent.parent
CATALOGUE = json.loads(
    files("truthgpt_core.plugin_system").joinpath("catalogue.json").read_text("utf-8")
)


def declared(*groups: str) -> dict[str, tuple[str, str]]:
    """Each name that a package of this workspace declares, with its distribution and its object."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))["project"]
        for group in groups:
            for name, value in project.get("entry-points", {}).get(group, {}).items():
                found[name] = (project["name"], value)
    return found


COMMANDS = declared("truthgpt.commands")


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("commands", ["truthgpt.commands"]),
        ("optimizations", ["truthgpt.optimizations", "truthgpt.optimizations.aliases"]),
    ],
)
def test_the_catalogue_names_what_is_declared(kind: str, groups: list[str]) -> None:
    """Every declared name is in the catalogue with its distribution, and no other is."""
    names = declared(*groups)
    assert names
    assert {name: entry["distribution"] for name, entry in CATALOGUE[kind].items()} == {
        name: distribution for name, (distribution, _) in names.items()
    }


def test_the_catalogue_names_the_training_backends() -> None:
    """Every backend that a plugin of this workspace registers is in it, with its distribution."""
    manager = PluginManager()
    manager.activate_all()
    factory = manager.factories["training_backend_factory"]
    plugins = {name for name in factory.names() if name != TrainingBackend.name}
    assert plugins == set(CATALOGUE["training_backends"])
    for name, entry in CATALOGUE["training_backends"].items():
        module = factory.get_class(name).__module__
        assert module.startswith(entry["distribution"].replace("-", "_"))


def test_the_catalogue_names_the_clusters() -> None:
    """Each is that of a plugin of its name; what they need is not installed here."""
    plugins = declared("truthgpt.plugins")
    for name, entry in CATALOGUE["clusters"].items():
        assert plugins[name][0] == entry["distribution"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_the_catalogue_is_the_commands_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that `truthgpt --help` shows is the one that the command gives itself."""
    distribution, value = COMMANDS[name]
    # One that is not installed here can be imported, too: a command imports what it needs later.
    monkeypatch.syspath_prepend(ROOT / "packages" / distribution / "src")
    command = EntryPoint(name, value, "truthgpt.commands").load()
    assert command.name == name
    assert CATALOGUE["commands"][name]["help"] == command.get_short_help_str(limit=200)


def test_aliases_are_for_optimizations_of_the_same_distribution() -> None:
    """An alias stands for an object that its own distribution declares as an optimization."""
    optimizations = set(declared("truthgpt.optimizations").values())
    aliases = declared("truthgpt.optimizations.aliases")
    assert aliases
    assert set(aliases.values()) <= optimizations


def test_the_known_sections_are_those_of_their_distributions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An installed distribution registers every section that it is known for, and no other one."""
    monkeypatch.delenv("TRUTHGPT_PLUGINS_BLOCK")
    found: dict[str, set[str]] = {}
    for row in PluginManager(ServiceContainer()).rows():
        manager = PluginManager(ServiceContainer(), sections=ConfigSections())
        core = set(config_model(manager.sections).model_fields)
        if row.distribution is None or row.state is State.BROKEN:
            continue
        manager.activate(row.name)
        found[row.distribution.name] = set(config_model(manager.sections).model_fields) - core
    assert found["truthgpt-services"]
    for distribution, names in found.items():
        assert names == {name for name, it in KNOWN_SECTIONS.items() if it == distribution}
