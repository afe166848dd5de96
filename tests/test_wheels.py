"""Wheels as they would be published, and environments that have them or lack one of them."""

from __future__ import annotations

import email
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
NAMES = ("core", "services", "plugin-native", "plugin-quantize", "plugin-compile")
QUANTIZE = "truthgpt-plugin-quantize"


def can_build() -> bool:
    try:
        return Version(version("setuptools")) >= Version("77")
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.new_process,
    # One worker makes what they share.
    pytest.mark.xdist_group("wheels"),
    pytest.mark.skipif(
        not can_build(), reason="setuptools>=77 is not installed, and building off line needs it"
    ),
]


def run(*command: object, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | options,
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each package, by name, built off line from a copy of its source."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*", "tests")
    for name in NAMES:
        package = f"truthgpt-{name}"
        shutil.copytree(ROOT / "packages" / package, sources / package, ignore=ignored)
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--disable-pip-version-check", "--wheel-dir", built),
        *(sources / f"truthgpt-{name}" for name in NAMES),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: list(built.glob(f"truthgpt_{name.replace('-', '_')}-*.whl")) for name in NAMES}
    assert all(len(paths) == 1 for paths in found.values())
    return {name: paths[0] for name, paths in found.items()}


@pytest.fixture(params=NAMES)
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Path]) -> zipfile.ZipFile:
    """One of the wheels."""
    return zipfile.ZipFile(wheels[request.param])


def text_of(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(f".dist-info/{ending}"))
    return wheel.read(name).decode()


# Wheels


def test_a_wheel_has_everything_that_the_source_has(wheel: zipfile.ZipFile) -> None:
    """Every file of the package is in its wheel: modules, py.typed, data, templates, styles."""
    (package,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    source = ROOT / "packages" / package.replace("_", "-") / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / package).rglob("*")
        if path.is_file() and not re.search(r"/(__pycache__|\.[^/]*)/", path.as_posix())
    }
    assert f"{package}/py.typed" in expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("core", "truthgpt_core/plugin_system/catalogue.json"),
        ("services", "truthgpt_services/report/*.j2"),
        ("services", "truthgpt_services/report/*.css"),
    ],
)
def test_data_is_in_the_wheel(wheels: dict[str, Path], name: str, file: str) -> None:
    """The files that are read at run time are there."""
    assert any(Path(each).match(file) for each in zipfile.ZipFile(wheels[name]).namelist())


def test_a_wheel_has_its_license(wheel: zipfile.ZipFile) -> None:
    """The license is in the wheel, named in its metadata."""
    metadata = email.message_from_string(text_of(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "Apache License" in text_of(wheel, "licenses/LICENSE")


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_wheel_requires_the_core(wheels: dict[str, Path], name: str) -> None:
    """Services and plugins say which core they were written for: this one, and no later."""
    metadata = email.message_from_string(text_of(zipfile.ZipFile(wheels[name]), "METADATA"))
    requirements = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
    (core,) = (each for each in requirements if each.name == "truthgpt-core")
    assert core.marker is None
    assert core.specifier.contains(version("truthgpt-core"))
    assert not core.specifier.contains("99")


def test_the_core_requires_no_torch(wheels: dict[str, Path]) -> None:
    """The core's wheel brings neither torch nor transformers, not even for its tests."""
    metadata = email.message_from_string(text_of(zipfile.ZipFile(wheels["core"]), "METADATA"))
    names = {Requirement(each).name for each in metadata.get_all("Requires-Dist", [])}
    assert names
    assert not names & {"torch", "transformers", "numpy"}


ENTRY_POINTS = {
    "core": {"console_scripts": ["truthgpt"]},
    "services": {
        "truthgpt.plugins": ["services"],
        "truthgpt.optimizations": ["draft_model", "prompt_lookup"],
        "truthgpt.commands": [
            *("batch", "chat", "compare", "convert", "eval", "export", "generate", "optimize"),
            "train",
        ],
    },
    "plugin-native": {"truthgpt.plugins": ["native"], "truthgpt.optimizations": ["kv_cache"]},
    "plugin-quantize": {"truthgpt.plugins": ["quantize"], "truthgpt.optimizations": ["quantize"]},
    "plugin-compile": {
        "truthgpt.plugins": ["torch_compile"],
        "truthgpt.optimizations": ["torch_compile"],
        "truthgpt.optimizations.aliases": ["compile"],
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_declares_its_entry_points(wheels: dict[str, Path], name: str) -> None:
    """What a distribution has is in its wheel's entry points, where discovery looks."""
    parser = ConfigParser(delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text_of(zipfile.ZipFile(wheels[name]), "entry_points.txt"))
    found = {section: sorted(parser[section]) for section in parser.sections()}
    assert found == ENTRY_POINTS[name]


# Environments


class Environment:
    """A virtual environment with the wheels of this workspace installed by pip."""

    def __init__(self, path: Path) -> None:
        venv.create(path, symlinks=True, with_pip=False)
        self.bin = path / "bin"
        self.cache = path / "cache"
        (self.site,) = path.glob("lib/python*/site-packages")
        # Third parties come from the environment that runs the tests, as links: torch
        # is too large to be copied. Nothing of this workspace comes with them.
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(folder).iterdir():
                ours = "truthgpt" in entry.name or entry.suffix == ".pth"
                if not ours and not (self.site / entry.name).exists():
                    (self.site / entry.name).symlink_to(entry)

    def pip(self, *arguments: object) -> None:
        done = run(
            *(sys.executable, "-m", "pip", "--python", self.bin / "python"),
            *("--disable-pip-version-check", *arguments),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def truthgpt(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run(
            self.bin / "truthgpt",
            *arguments,
            COLUMNS="200",
            HF_HUB_OFFLINE="1",
            TRUTHGPT_CACHE=str(self.cache),
            TRUTHGPT_SETTINGS=str(self.cache / "settings"),
            TRUTHGPT_PLUGINS_BLOCK="",
        )

    def plugins(self) -> dict[str, object]:
        listed = self.truthgpt("plugins", "--json")
        assert (listed.returncode, listed.stderr) == (0, "")
        return {row["name"]: row for row in json.loads(listed.stdout)}


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheels."""
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    made.pip("install", "--no-deps", "--no-index", *wheels.values())
    return made


def test_uninstalling_quantize_changes_nothing_else(
    environment: Environment, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Without its plugin, quantize is one line that says what to install; the rest is as it was."""

    def state() -> tuple[object, ...]:
        helped = environment.truthgpt("--help")
        compiling = environment.truthgpt(
            "optimize", "nowhere", "--apply", "compile:xyzzy=1", "-o", tmp_path / "out"
        )
        rows = environment.plugins()
        rows.pop("quantize", None)
        return rows, helped.stdout, helped.returncode, compiling.stderr, compiling.returncode

    def quantize() -> subprocess.CompletedProcess[str]:
        return environment.truthgpt(
            "optimize", "nowhere", "--apply", "quantize:xyzzy=1", "-o", tmp_path / "out"
        )

    before = state()
    assert 'no option "xyzzy"' in quantize().stderr
    environment.pip("uninstall", "--yes", QUANTIZE)
    try:
        failed = quantize()
        assert failed.returncode == 2
        assert failed.stdout == ""
        assert failed.stderr == (
            f'truthgpt: Optimization "quantize" is not installed. It comes with {QUANTIZE}: '
            f"pip install {QUANTIZE}. Available: draft_model, kv_cache, prompt_lookup, "
            "torch_compile.\n"
        )
        assert not (tmp_path / "out").exists()
        assert "quantize" not in environment.plugins()
        assert state() == before
    finally:
        environment.pip("install", "--no-deps", "--no-index", wheels["plugin-quantize"])


def test_every_plugin_works_as_a_wheel(environment: Environment) -> None:
    """Installed from wheels, every plugin is found and can be activated."""
    loaded = environment.truthgpt("plugins", "--load", "--strict", "--json")
    assert loaded.returncode == 0, loaded.stderr
    rows = {row["name"]: row["state"] for row in json.loads(loaded.stdout)}
    assert rows == dict.fromkeys(("native", "quantize", "services", "torch_compile"), "active")


def test_the_core_alone_says_what_to_install(wheels: dict[str, Path], tmp_path: Path) -> None:
    """With nothing but the core, the command works and names what would bring the rest."""
    alone = Environment(tmp_path / "venv")
    alone.pip("install", "--no-deps", "--no-index", wheels["core"])
    assert "No plugins are installed" in alone.truthgpt("plugins").stdout
    assert not re.search("optimize +", alone.truthgpt("--help").stdout.partition("Commands:")[2])
    failed = alone.truthgpt("optimize", "nowhere")
    assert (failed.returncode, failed.stderr) == (
        1,
        'truthgpt: The command "optimize" is not installed. It comes with truthgpt-services: '
        "pip install truthgpt-services.\n",
    )


# The README's lines


README = (ROOT / "README.md").read_text(encoding="utf-8")


def requirements_of(beginning: str) -> list[str]:
    """What a line of the README's install section names, which begins with this."""
    section = README.partition("## Install")[2].partition("\n## ")[0]
    (line,) = re.findall(rf"^ *(?:\.venv/bin/)?pip install ({beginning}.*)$", section, re.MULTILINE)
    return shlex.split(line)


def installed(environment: Environment) -> set[str]:
    """Distributions of this workspace that an environment has."""
    found = environment.site.glob("truthgpt_*.dist-info")
    return {path.name.partition("-")[0].replace("_", "-") for path in found}


ASKED = {f"truthgpt-{name}" for name in NAMES}


def test_the_line_for_a_checkout_works_without_an_index(tmp_path: Path) -> None:
    """One line names core, services and plugins: pip resolves them among themselves.

    Not with --no-deps: what they require of each other and of others is looked up, too.
    """
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*", "tests")
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=ignored)
    made = Environment(tmp_path / "venv")
    named = [tmp_path / each for each in requirements_of(r"\./packages")]
    # pip builds in an environment of its own, with what it takes from an index.
    made.pip("install", "--no-index", "--no-build-isolation", *named)
    assert installed(made) == ASKED
    assert set(made.plugins()) == {"native", "quantize", "services", "torch_compile"}


def test_the_line_for_wheels_works_without_an_index(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Each pattern of the line is one wheel, and the wheels satisfy each other."""
    folder = wheels["core"].parent
    named = [folder.glob(each.removeprefix("dist/")) for each in requirements_of("dist/")]
    made = Environment(tmp_path / "venv")
    made.pip("install", "--no-index", *(wheel for (wheel,) in map(tuple, named)))
    assert installed(made) == ASKED


def test_the_line_for_an_index_names_what_brings_the_rest(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Services and plugins by name, from a folder that stands for an index, bring the core."""
    (line,) = re.findall(r"Once published, and not before: `pip install (.*?)`", README, re.DOTALL)
    made = Environment(tmp_path / "venv")
    made.pip("install", "--no-index", "--find-links", wheels["core"].parent, *shlex.split(line))
    assert installed(made) == ASKED


def test_every_package_requires_versions_that_are_here() -> None:
    """Of those that no line names, too: what they require of this workspace is in it."""
    projects = {
        project["name"]: project
        for path in ROOT.glob("packages/*/pyproject.toml")
        for project in [tomllib.loads(path.read_text(encoding="utf-8"))["project"]]
    }
    for project in projects.values():
        extras = project.get("optional-dependencies", {}).values()
        for each in itertools.chain(project["dependencies"], *extras):
            needed = Requirement(each)
            if needed.name.startswith("truthgpt"):
                assert needed.specifier.contains(projects[needed.name]["version"]), each


def test_every_package_that_the_readme_names_is_there() -> None:
    """With each of its extras."""
    named = re.findall(r"\./packages/([\w-]+)(?:\[(\w+)\])?", README)
    assert len(named) > 8
    for name, extra in named:
        path = ROOT / "packages" / name / "pyproject.toml"
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        assert not extra or extra in project["optional-dependencies"]
