"""Metadata that is damaged: no command breaks or hangs, and the distribution is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from truthgpt_core.plugin_system import State, discovery


def spoil(site, name: str, file: str, how: str) -> None:
    """Install a distribution with a plugin and damage one file of its metadata."""
    site.install(name, {"truthgpt.plugins": {f"of_{name}": "nowhere"}})
    path: Path = site.path / f"{name}-1.0.dist-info" / file
    path.unlink()
    if how == "not UTF-8":
        path.write_bytes(b"[console_scripts]\nx = \xff\xfe\n")
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "unparsable":
        path.write_text("[pydantic]\nthis is no entry point, and truthgpt.plugins is not either\n")
    elif how == "directory":
        path.mkdir()


ENTRY_POINTS = {
    "not UTF-8": "its entry_points.txt is not UTF-8: reinstall it",
    "fifo": "its entry_points.txt is not an ordinary file: reinstall it",
    "device": "its entry_points.txt is not an ordinary file: reinstall it",
    "loop": "its entry_points.txt cannot be read: reinstall it",
    "unparsable": "its entry_points.txt cannot be read: reinstall it",
}


@pytest.mark.parametrize("how", ENTRY_POINTS)
def test_damaged_entry_points_are_a_row(site, manager, how: str) -> None:
    """A distribution whose entry points cannot be read is named with the reason, at once."""
    spoil(site, "damaged", "entry_points.txt", how)
    site.install_plugin("whole")
    rows = {row.name: row for row in manager.rows()}
    assert (rows["damaged"].state, rows["damaged"].reason) == (State.BROKEN, ENTRY_POINTS[how])
    assert rows["damaged"].version == "1.0"
    assert rows["whole"].state is State.FOUND


@pytest.mark.parametrize("how", ["not UTF-8", "fifo", "device", "loop", "directory"])
def test_damaged_metadata_is_a_row(site, manager, how: str) -> None:
    """The same of a plugin's METADATA."""
    spoil(site, "damaged", "METADATA", how)
    (row,) = (row for row in manager.rows() if row.name == "of_damaged")
    assert row.reason == "its METADATA does not say its name and version: reinstall it"


@pytest.mark.campaign(cases=5)
@pytest.mark.parametrize("how", ENTRY_POINTS)
@pytest.mark.parametrize(
    "arguments", [["config", "schema"], ["plugins", "--load", "--json"], ["services", "--json"]]
)
def test_no_command_breaks_or_hangs(site, truthgpt, how: str, arguments: list[str]) -> None:
    """Commands that import pydantic, which reads all entry points, work all the same."""
    spoil(site, "damaged", "entry_points.txt", how)
    result = truthgpt(*arguments)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    if arguments[0] == "plugins":
        (row,) = (row for row in found if row["name"] == "damaged")
        assert row["reason"] == ENTRY_POINTS[how]
    else:
        assert f'plugin "damaged" is broken: {ENTRY_POINTS[how]}' in result.stderr


def test_doctor_names_it(site, truthgpt) -> None:
    """`truthgpt doctor` has a failure for it, and still looks at the rest."""
    spoil(site, "damaged", "entry_points.txt", "fifo")
    findings = {
        (each["area"], each["subject"]): each
        for each in json.loads(truthgpt("doctor", "--json").stdout)
    }
    assert ENTRY_POINTS["fifo"] in findings["plugins", "damaged"]["detail"]
    assert findings["torch", "torch"]["status"] in ("ok", "warning")


def test_a_directory_in_place_of_entry_points_is_nobodys(site) -> None:
    """A distribution that has no readable entry points, and breaks nothing, is left out."""
    spoil(site, "damaged", "entry_points.txt", "directory")
    assert "damaged" not in {each.name for each in discovery.discover()}
