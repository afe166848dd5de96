"""The contract of trackers: a right tracker passes, and each fault fails the test of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from xml.etree import ElementTree

import pytest

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.testing import TrackerContract

# One worker makes what they share.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("testing-tracking")]

DIARY = '''
import json
import os
import random
import uuid
from pathlib import Path

from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.tracking import TrackerPlugin


def fault(name):
    return os.environ.get("DIARY_FAULT") == name


if fault("imports its library at once"):
    import diary_library


class DiarySection(Section):
    folder: str = Field(description="Where its files are.")


class DiaryPlugin(TrackerPlugin):
    """Writes each run to a file of JSON lines."""

    name, version, section = "diary", "1.0", DiarySection

    def open(self, settings, start):
        import diary_library

        folder = Path(settings.folder)
        if fault("notes each failure") and folder.is_file():
            start.note("it is away")
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(each.name for each in folder.iterdir())
        key = start.key
        if fault("ignores the key"):
            key = None
        elif fault("always continues"):
            key = files[0] if files else key
        if fault("draws random numbers"):
            random.random()
        if key not in files:
            if fault("insists on the key") and key:
                raise KeyError(key)
            key = f"{len(files)}-{uuid.uuid4().hex}"
        run = DiaryRun(folder / key)
        if not fault("leaves out the configuration"):
            run.write("config", dict(start.config))
        return run


class DiaryRun:
    def __init__(self, file):
        self.file = file
        self.key = file.name

    def write(self, *what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    def log(self, rows):
        for row in rows:
            if fault("refuses NaN") and any(each != each for each in row.numbers.values()):
                raise ValueError
            if row.note:
                if not fault("leaves out notes"):
                    self.write("note", row.note)
            elif not (fault("leaves out evaluations") and "val_loss" in row.numbers):
                self.write("row", row.step, dict(row.numbers))

    def end(self, outcome, reason):
        self.write("end", "finished" if fault("always finishes") else outcome, reason)
'''
TESTS = """
import json
from pathlib import Path

import pytest
from diary_module import DiaryPlugin
from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.testing import RecordedRun, TrackerContract
from truthgpt_core.tracking import Outcome

FAULTS = [""] + json.loads(Path("faults.json").read_text())


class SilentSection(Section):
    folder: str


class OptionalSection(Section):
    folder: str = Field(default="place", description="Where its files are.")


class TestDiary(TrackerContract):
    plugin = DiaryPlugin
    library = "diary_library"

    @pytest.fixture(autouse=True, params=FAULTS)
    def fault(self, request, monkeypatch):
        fault = request.param
        monkeypatch.setenv("DIARY_FAULT", fault)
        if fault == "is always on":
            monkeypatch.setattr(DiaryPlugin, "section", OptionalSection)
        elif fault == "describes no key":
            monkeypatch.setattr(DiaryPlugin, "section", SilentSection)
        elif fault == "is not declared":
            monkeypatch.setattr(TestDiary, "plugin", type("Other", (DiaryPlugin,), {}))
        if "imported" in request.node.name and "import" not in fault and fault:
            pytest.skip("it starts a process, which no other fault is seen in")

    def section(self, place):
        return {"folder": str(place)}

    def unreachable(self, place):
        place.touch()
        return {"folder": str(place)}

    def recorded(self, section, directory):
        files = sorted(Path(section["folder"]).iterdir())
        return [self.read(file.read_text().splitlines()) for file in files]

    def read(self, lines):
        history, notes, config, ended = {}, [], {}, (None, "")
        for kind, *values in map(json.loads, lines):
            if kind == "config":
                (config,) = values
            elif kind == "note":
                notes += values
            elif kind == "end":
                ended = Outcome(values[0]), values[1]
            else:
                for name, value in values[1].items():
                    history.setdefault(name, []).append((values[0], value))
        return RecordedRun(history, config, notes, *ended)
"""
FAULTS = {
    "always continues": {"test_a_run_from_the_beginning_is_a_new_one"},
    "always finishes": {"test_the_outcome_arrives"},
    "describes no key": {"test_every_key_of_its_section_has_a_description"},
    "draws random numbers": {"test_the_random_numbers_of_training_stay"},
    "ignores the key": {"test_a_resumed_run_continues"},
    "imports its library at once": {"test_without_its_section_its_library_is_not_imported"},
    "insists on the key": {"test_a_resumed_run_that_the_service_has_lost_is_a_new_one"},
    "is always on": {"test_without_its_section_it_does_nothing"},
    "is not declared": {"test_it_is_found_by_its_entry_point"},
    "leaves out evaluations": {"test_steps_and_evaluations_arrive_in_order"},
    "leaves out notes": {"test_notes_arrive"},
    "leaves out the configuration": {"test_a_configuration_file_switches_it_on"},
    "notes each failure": {"test_a_service_that_cannot_be_reached_is_one_note"},
    "refuses NaN": {"test_numbers_that_are_not_finite_keep_nothing_from_arriving"},
}

Failures = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Failures:
    """What the suite says of the diary, by fault and then by test."""
    folder = tmp_path_factory.mktemp("author")
    info = folder / "diary-1.0.dist-info"
    info.mkdir()
    for path, text in {
        folder / "diary_library.py": "",
        folder / "diary_module.py": DIARY,
        folder / "test_diary.py": TESTS,
        folder / "faults.json": str([*FAULTS]).replace("'", '"'),
        info / "METADATA": "Metadata-Version: 2.1\nName: diary\nVersion: 1.0\n"
        "Requires-Dist: truthgpt-core>=0.1,<0.2\n",
        info / "entry_points.txt": "[truthgpt.plugins]\ndiary = diary_module:DiaryPlugin\n",
    }.items():
        path.write_text(text)
    given = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    plain = ("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, "--junitxml=out.xml", "test_diary.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(given)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: Failures = defaultdict(dict)
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        named = re.fullmatch(r"(\w+)\[(.*)\]", case.get("name", ""))
        assert named, case
        (fault,) = {*named[2].split("-")} & {"", *FAULTS}
        for problem in (*case.iter("failure"), *case.iter("error")):
            found[fault][named[1]] = problem.text or ""
    return found


def test_a_tracker_that_does_everything_right_passes(failures: Failures) -> None:
    """The suite asks for nothing that a plain tracker does not have."""
    assert failures[""] == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_test_that_names_it(fault: str, failures: Failures) -> None:
    """A tracker with a fault fails exactly the tests of what it does wrong."""
    assert set(failures[fault]) == FAULTS[fault]


def test_a_failed_assertion_shows_its_values(failures: Failures) -> None:
    """An author sees what was recorded, as in their own tests."""
    assert "where <Outcome.FINISHED" in failures["always finishes"]["test_the_outcome_arrives"]


def test_a_test_of_the_contract_cannot_be_overridden() -> None:
    """Neither by the subclass itself nor by a class that it is mixed with."""

    class Mixin:
        def test_notes_arrive(self) -> None:
            """Pass."""

    with pytest.raises(TruthGPTError, match=r"TestMixed overrides .*: test_notes_arrive"):
        type("TestMixed", (Mixin, TrackerContract), {})
    with pytest.raises(TruthGPTError, match=r"TestNone overrides .*\. Give your own tests"):
        type("TestNone", (TrackerContract,), {"test_notes_arrive": None})


def test_without_pytest_the_error_says_what_to_install() -> None:
    """The import fails as an import does, in one sentence."""
    code = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "try:\n"
        "    import truthgpt_core.testing\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == (
        "truthgpt_core.testing needs pytest, which is not installed. Run: pip install pytest\n"
    )
