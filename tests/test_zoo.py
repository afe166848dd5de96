"""A zoo of broken plugins, each built and installed by pip: one is no reason for others to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.version import Version

CORE = "truthgpt-core>=0.1,<0.2"
PLUGIN = """
from truthgpt_core import Plugin, hookimpl

class Animal(Plugin):
    name = "NAME"
    version = "1.0"
"""


@dataclass(frozen=True)
class Animal:
    """A distribution: its code, and what its row says of it; empty if it works."""

    code: str
    reason: str = ""
    value: str = "MODULE"
    requires: tuple[str, ...] = (CORE,)
    plugin: str = ""
    python: str = ">=3.11"


ZOO = {
    "healthy": Animal(
        PLUGIN
        + "    def initialize(self, registry):\n"
        + "        registry.register('healthy', lambda: 1)",
        value="MODULE:Animal",
    ),
    "syntax_error": Animal("def f(:", "cannot be imported: SyntaxError"),
    "missing_module": Animal(
        "import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"
    ),
    "another_core": Animal(
        "raise AssertionError('imported')",
        "it was written for truthgpt-core>=99, and",
        requires=("truthgpt-core>=99",),
    ),
    "another_python": Animal(
        "raise AssertionError('imported')", "it is for Python <3, and this is", python="<3"
    ),
    "missing_requirement": Animal(
        "raise AssertionError('imported')",
        "it requires not-there-at-all>=2, which is not installed: pip install",
        requires=(CORE, "not-there-at-all>=2"),
    ),
    "raises_at_import": Animal("raise RuntimeError('no')", "cannot be imported: RuntimeError: no"),
    "exits_at_import": Animal("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    "raises_in_initialize": Animal(
        PLUGIN
        + "    def initialize(self, registry):\n"
        + "        registry.register('left_behind', lambda: 1)\n        raise OSError('no GPU')",
        "it failed to initialize: OSError: no GPU",
        value="MODULE:Animal",
    ),
    "misspelled_hook": Animal(
        PLUGIN + "    @hookimpl\n    def register_servises(self, registry): pass",
        'there is no hook named register_servises. Did you mean "register_services"?',
        value="MODULE:Animal",
    ),
    "wrong_argument": Animal(
        PLUGIN + "    @hookimpl\n    def make_decode_step(self, model, cash): pass",
        "cash",
        value="MODULE:Animal",
    ),
    "twin_one": Animal(
        "raise AssertionError('imported')", 'a plugins entry named "twin"', plugin="twin"
    ),
    "twin_two": Animal(
        "raise AssertionError('imported')", 'a plugins entry named "twin"', plugin="twin"
    ),
}
BROKEN = {name: animal for name, animal in ZOO.items() if animal.reason}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def can_build() -> bool:
    try:
        return Version(version("setuptools")) >= Version("77")
    except PackageNotFoundError:
        return False


pytestmark = [
    # One worker makes what they share.
    pytest.mark.xdist_group("zoo"),
    pytest.mark.skipif(
        not can_build(), reason="setuptools>=77 is not installed, and building off line needs it"
    ),
]


def write_project(folder: Path, name: str, animal: Animal) -> Path:
    project, module = folder / name, f"zoo_{name}"
    project.mkdir()
    (project / f"{module}.py").write_text(
        textwrap.dedent(animal.code).replace("NAME", animal.plugin or name)
    )
    (project / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "zoo-{name.replace("_", "-")}"
version = "1.0"
requires-python = "{animal.python}"
dependencies = {json.dumps(animal.requires)}
[project.entry-points."truthgpt.plugins"]
{animal.plugin or name} = "{animal.value.replace("MODULE", module)}"
[tool.setuptools]
py-modules = ["{module}"]
"""
    )
    return project


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed all of them."""
    sources, target = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("installed")
    projects = [write_project(sources, name, animal) for name, animal in ZOO.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)),
            *("--no-deps", "--no-index", "--no-build-isolation", "--ignore-requires-python"),
            *("--disable-pip-version-check", "--no-compile", *map(str, projects)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def truthgpt(zoo: Path, tmp_path: Path) -> Run:
    """Run the installed command where the zoo is installed too."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(zoo), "TRUTHGPT_SETTINGS": str(tmp_path / "settings")}
        return subprocess.run(
            [str(Path(sys.executable).with_name("truthgpt")), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | own | environment,
        )

    return run


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return {row["distribution"]: row for row in json.loads(done.stdout)}


def test_each_is_a_row_with_its_reason_and_the_others_work(truthgpt: Run) -> None:
    """`truthgpt plugins --load` lists every one with its reason; all others are active."""
    found = rows(truthgpt("plugins", "--load", "--json", TRUTHGPT_PLUGINS_BLOCK=""))
    for name, animal in ZOO.items():
        row = found[f"zoo-{name.replace('_', '-')}"]
        assert row["state"] == ("broken" if animal.reason else "active"), row
        assert animal.reason in str(row["reason"])
        assert "\n" not in str(row["reason"])
    others = {row["state"] for name, row in found.items() if not name.startswith("zoo-")}
    assert others == {"active"}


def test_what_metadata_tells_is_told_without_importing(truthgpt: Run) -> None:
    """`truthgpt plugins` breaks what is judged before import, and nothing else."""
    found = rows(truthgpt("plugins", "--json"))
    judged = {name for name, row in found.items() if row["state"] == "broken"}
    assert judged == {
        *("zoo-another-core", "zoo-another-python", "zoo-missing-requirement"),
        *("zoo-twin-one", "zoo-twin-two"),
    }


def test_services_of_those_that_failed_are_gone(truthgpt: Run) -> None:
    """`truthgpt services` has what healthy plugins registered, and nothing of broken ones."""
    done = truthgpt("services")
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stdout
    assert "left_behind" not in done.stdout


@pytest.mark.parametrize("strict", ["option", "environment"])
def test_strict_makes_them_fatal(truthgpt: Run, strict: str) -> None:
    """`--strict`, or TRUTHGPT_STRICT=1, ends with an error that names them."""
    if strict == "option":
        done = truthgpt("plugins", "--load", "--strict")
    else:
        done = truthgpt("plugins", "--load", TRUTHGPT_STRICT="1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("truthgpt: Broken: ")
    for name, animal in BROKEN.items():
        assert (animal.plugin or name) in last


def test_all_of_them_can_be_disabled_while_broken(truthgpt: Run) -> None:
    """Once every broken one is disabled, strict mode has nothing against the rest."""
    names = {animal.plugin or name for name, animal in BROKEN.items()}
    done = truthgpt("plugins", "disable", *sorted(names))
    assert done.returncode == 0, done.stderr
    done = truthgpt("plugins", "--load", "--strict", "--json")
    found = rows(done)
    for name in BROKEN:
        assert found[f"zoo-{name.replace('_', '-')}"]["state"] == "disabled"
    assert found["zoo-healthy"]["state"] == "active"


def test_disabling_one_twin_frees_the_other(truthgpt: Run) -> None:
    """Of two plugins with one name, disabling one distribution lets the other be used."""
    assert truthgpt("plugins", "disable", "zoo-twin-one").returncode == 0
    found = rows(truthgpt("plugins", "--json"))
    assert found["zoo-twin-one"]["state"] == "disabled"
    assert found["zoo-twin-two"]["state"] == "found"


def test_work_goes_on_beside_them(truthgpt: Run) -> None:
    """A command of a healthy distribution runs, whatever else is installed."""
    done = truthgpt("generate", "--help")
    assert done.returncode == 0, done.stderr
