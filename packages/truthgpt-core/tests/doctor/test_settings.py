"""What is said of the cache, of environment variables and of configuration files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from truthgpt_core.diagnosis import Diagnosis, Status
from truthgpt_core.doctor.settings import KNOWN, diagnose_cache, diagnose_environment

pytestmark = pytest.mark.slow

REQUIRED = "model: {name: m}\ndata: {source: text, dataset: d}\n"
TRAINER = Path(__file__).parents[1] / "config" / "trainer.py"


# The cache directory


def test_a_cache_that_is_not_there_yet_is_ok_and_stays_so(tmp_path: Path) -> None:
    """Looking at it makes neither the directory nor anything in it."""
    assert diagnose_cache(tmp_path / "a" / "b").status is Status.OK
    assert not (tmp_path / "a").exists()


def test_a_file_where_the_cache_belongs_is_a_failure(doctor, tmp_path, monkeypatch) -> None:
    """What is in the way is named, and the variable that names another place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRUTHGPT_CACHE", str(tmp_path / "file" / "cache"))
    code, findings = doctor()
    about = findings["config", "cache"]
    assert about["status"] == "failed"
    assert f"{tmp_path / 'file'} is none" in about["detail"]
    assert "TRUTHGPT_CACHE" in about["fix"]
    assert code == 1


def test_a_home_that_nobody_has_is_a_failure(doctor, monkeypatch) -> None:
    """A path below the home of an unknown user is not a path."""
    monkeypatch.setenv("TRUTHGPT_CACHE", "~nobody-at-all/cache")
    code, findings = doctor()
    assert findings["config", "cache"]["status"] == "failed"
    assert findings["machine", "disk"]["status"] == "failed"
    assert code == 1


def test_a_link_to_nowhere_is_a_failure(tmp_path: Path) -> None:
    """A link whose target is gone cannot become a directory."""
    (tmp_path / "cache").symlink_to(tmp_path / "gone")
    assert diagnose_cache(tmp_path / "cache").status is Status.FAILED


def test_a_cache_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """The system's reason is shown."""
    place = Path("/proc") if os.getuid() == 0 and Path("/proc/self").exists() else tmp_path
    if place == tmp_path:
        place.chmod(0o500)
    about = diagnose_cache(place)
    place.chmod(0o700) if place == tmp_path else None
    assert about.status is Status.FAILED
    assert f"{place} cannot be written: " in about.detail


# Environment variables


def only(environment: dict[str, str]) -> Diagnosis:
    """The one diagnosis of an environment."""
    (found,) = diagnose_environment(environment)
    return found


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("TRUTHGPT_CACH", "Did you mean TRUTHGPT_CACHE?"),
        ("TRUTHGPT_cache", "Did you mean TRUTHGPT_CACHE?"),
        ("TRUTHGPT_PLUGIN", "Did you mean TRUTHGPT_PLUGINS?"),
        ("TRUTHGPT_PLUGIN_BLOCK", "Did you mean TRUTHGPT_PLUGINS_BLOCK?"),
    ],
)
def test_an_unknown_variable_suggests(name: str, fix: str) -> None:
    """A slip in a name, which would be ignored in silence, gets the right name."""
    about = only({name: "x"})
    assert (about.subject, about.status, about.fix) == (name, Status.WARNING, fix)


def test_a_variable_like_no_other_lists_those_that_there_are() -> None:
    """The prefix that all have in common does not make two names alike."""
    fix = only({"TRUTHGPT_XYZZY": "x"}).fix
    assert "Did you mean" not in fix
    assert all(name in fix for name in KNOWN)


def test_values_of_a_configuration_need_two_underscores() -> None:
    """One underscore too few is explained."""
    assert "TRUTHGPT_CONFIG__" in only({"TRUTHGPT_CONFIG_training__epochs": "3"}).fix


def test_known_variables_are_ok() -> None:
    """Variables that are read are listed; others than ours are nobody's business."""
    ours = dict.fromkeys(KNOWN, "1") | {"TRUTHGPT_CONFIG__training__epochs": "3"}
    about = only(ours | {"PATH": "/bin", "truthgpt_x": "1"})
    assert about.status is Status.OK
    assert all(name in about.detail for name in ours)
    assert "PATH" not in about.detail


def test_a_value_that_strict_does_not_understand_is_a_warning() -> None:
    """`TRUTHGPT_STRICT=true` looks as if it did something."""
    about = only({"TRUTHGPT_STRICT": "true"})
    assert about.status is Status.WARNING
    assert about.fix == "Set TRUTHGPT_STRICT=1."
    assert only({"TRUTHGPT_STRICT": "0"}).status is Status.OK


# --config


@pytest.fixture
def configured(truthgpt, site, tmp_path):
    """Check a configuration; return the exit code and the findings about it."""
    site.install_plugin("trainer", TRAINER.read_text())

    def run(text: str) -> tuple[int, list[dict[str, str]]]:
        (tmp_path / "training.yaml").write_text(text + REQUIRED)
        done = truthgpt("doctor", "--json", "--config", str(tmp_path / "training.yaml"))
        assert done.stderr == ""
        found = json.loads(done.stdout)
        return done.returncode, [each for each in found if each["subject"] == "configuration"]

    return run


def test_errors_in_a_configuration_say_where(configured, tmp_path) -> None:
    """Every error is a failure with file, line and column, and its own fix."""
    code, found = configured("training:\n  epoch: 3\nseed: many\n")
    assert [each["status"] for each in found] == ["failed", "failed"]
    file = tmp_path / "training.yaml"
    assert found[0]["detail"].startswith(f"{file}:2:3: training.epoch: ")
    assert 'Did you mean "epochs"' in found[0]["fix"]
    assert found[1]["detail"].startswith(f"{file}:3:7: seed: ")
    assert code == 1


def test_a_good_configuration_is_ok(configured, monkeypatch) -> None:
    """A file with nothing wrong, and values from the environment over it, is fine."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__epochs", "5")
    code, found = configured("training:\n  epochs: 3\n")
    assert [each["status"] for each in found] == ["ok"]
    assert code == 0


def test_a_wrong_value_in_the_environment_is_found(configured, monkeypatch) -> None:
    """With a file to set values in, values from the environment are checked too."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__epochs", "few")
    code, found = configured("training:\n  epochs: 3\n")
    assert "TRUTHGPT_CONFIG__training__epochs" in found[0]["detail"]
    assert code == 1


def test_sections_of_plugins_are_known(configured, site) -> None:
    """A section that an installed plugin registers is no unknown one."""
    site.install_plugin(
        "extra",
        """
        from pydantic import BaseModel
        from truthgpt_core import hookimpl

        class Extra(BaseModel):
            size: int = 1

        @hookimpl
        def register_config_sections(sections):
            sections.register("extra", Extra)
        """,
    )
    assert configured("extra:\n  size: 2\n")[1][0]["status"] == "ok"


def test_a_deadly_plugin_does_not_hide_a_configuration(configured, site) -> None:
    """The file is read with the plugins that work."""
    site.install_plugin("deadly", "import os; os._exit(1)")
    _, found = configured("training:\n  epochs: 3\n")
    assert [each["status"] for each in found] == ["ok"]


def test_a_configuration_that_is_not_there_is_a_failure(truthgpt, tmp_path) -> None:
    """A file that cannot be read is one line like any other."""
    done = truthgpt("doctor", "--config", str(tmp_path / "nowhere.yaml"))
    assert "nowhere.yaml" in done.stdout
    assert done.returncode == 1
    assert done.stderr == ""
