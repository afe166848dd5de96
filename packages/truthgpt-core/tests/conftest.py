"""Fixtures: `site` is a directory of installed distributions, `manager` a plugin manager."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from truthgpt_core.cli import main as command
from truthgpt_core.config import ConfigSections
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer

# How long an example takes says something about the machine and nothing about the code.
settings.register_profile("core", deadline=None)
settings.load_profile("core")

CORE = "truthgpt-core>=0.1,<0.2"


class Site:
    """A directory on `sys.path` with distributions in it, as pip leaves them.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()

    def install(
        self,
        name: str,
        entry_points: Mapping[str, Mapping[str, str]] | str = "",
        files: Mapping[str, str] | None = None,
        *,
        requires: Sequence[str] = (CORE,),
        version: str = "1.0",
        python: str = "",
        metadata: str | bytes | None = None,
    ) -> None:
        """Write a distribution: its metadata, its entry points and its modules."""
        folder = self.path / f"{name.replace('-', '_').replace('.', '_')}-{version}.dist-info"
        folder.mkdir()
        if metadata is None:
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            lines += [f"Requires-Python: {python}"] if python else []
            metadata = "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""])
        if isinstance(metadata, str):
            metadata = metadata.encode()
        if metadata:
            (folder / "METADATA").write_bytes(metadata)
        if not isinstance(entry_points, str):
            entry_points = "".join(
                f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
                for group, names in entry_points.items()
            )
        (folder / "entry_points.txt").write_text(entry_points)
        for file, text in (files or {}).items():
            (self.path / file).write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    def install_plugin(
        self,
        name: str,
        code: str = "",
        *,
        optimizations: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        commands: Mapping[str, str] | None = None,
        requires: Sequence[str] = (CORE,),
    ) -> None:
        """Write a distribution NAME-dist with one plugin, the module NAME_module."""
        module = f"{name}_module"
        groups = {
            "truthgpt.plugins": {name: module},
            "truthgpt.optimizations": optimizations or {},
            "truthgpt.optimizations.aliases": aliases or {},
            "truthgpt.commands": commands or {},
        }
        self.install(
            f"{name}-dist",
            {
                group: {key: value.replace("MODULE", module) for key, value in names.items()}
                for group, names in groups.items()
                if names
            },
            {f"{module}.py": code},
            requires=requires,
        )


@pytest.fixture(autouse=True)
def settings_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is switched off but by the test, and what it switches off is forgotten."""
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(tmp_path / "settings"))
    for variable in ("TRUTHGPT_PLUGINS", "TRUTHGPT_PLUGINS_BLOCK", "TRUTHGPT_STRICT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Site] | object]:
    """Make directories of distributions, each before the earlier ones on `sys.path`."""
    before = set(sys.modules)
    made: list[Path] = []
    given = [each for each in [os.environ.get("PYTHONPATH")] if each]

    def make() -> Site:
        site = Site(tmp_path / f"site{len(made)}")
        made.insert(0, site.path)
        monkeypatch.syspath_prepend(str(site.path))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, made), *given]))
        return site

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield make
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent in made:
            del sys.modules[name]


@pytest.fixture
def site(make_site) -> Site:
    """One directory of distributions."""
    return make_site()


@pytest.fixture
def manager() -> PluginManager:
    """A plugin manager with a container and sections of its own, not strict."""
    return PluginManager(ServiceContainer(), sections=ConfigSections())


@pytest.fixture
def unique() -> str:
    """A name that nothing else has: an identifier."""
    return f"n{uuid.uuid4().hex[:12]}"


@pytest.fixture
def truthgpt(site: Site, monkeypatch: pytest.MonkeyPatch):
    """Run `truthgpt` in a process of its own, with the distributions of `site`."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-W", "error"),
                *("-c", "from truthgpt_core.cli.main import main; main()"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def main(monkeypatch, capsys):
    """Run `truthgpt` in this process; return its exit code and what it wrote."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["truthgpt", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run
