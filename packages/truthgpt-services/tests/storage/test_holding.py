"""What one process uses another does not remove, and what a killed one left goes."""

from __future__ import annotations

import os
import signal

import pytest

from truthgpt_services.storage.atomic import (
    MARKER,
    publish,
    remove,
    remove_abandoned,
    remove_unheld,
    staging,
)
from truthgpt_services.storage.lru import keep_within, use


def make(folder, name):
    with staging(folder / name) as directory:
        (directory / "file").write_bytes(b"x" * 1000)
        (directory / MARKER).write_text("{}")
        publish(directory, folder / name)
    return folder / name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_held_is_removed_when_it_is_let_go(tmp_path):
    """By as many as hold it."""
    directory = make(tmp_path, "a")
    one, other = use(directory), use(directory)
    assert not remove_unheld(directory / MARKER)
    one.close()
    assert not remove_unheld(directory / MARKER)
    other.close()
    assert remove_unheld(directory / MARKER)
    assert names(tmp_path) == []


def test_what_was_used_longest_ago_goes_first(tmp_path):
    """And only as much as must; what is held stays."""
    for age, name in enumerate("abcd"):
        os.utime(make(tmp_path, name) / MARKER, (1e9 + age, 1e9 + age))
    use(tmp_path / "a").close()
    with use(tmp_path / "b"):
        os.utime(tmp_path / "b" / MARKER, (1e9, 1e9))
        keep_within(tmp_path, 2100)
    assert names(tmp_path) == ["a", "b"]


def test_publishing_does_not_replace_unless_asked(tmp_path):
    """Whoever was first wins, and what the other wrote is gone."""
    make(tmp_path, "a")
    (tmp_path / "a" / "file").write_text("first")
    with pytest.raises(OSError, match="not empty"):
        make(tmp_path, "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "first"


@pytest.mark.parametrize("alone", [False, True])
def test_a_directory_whose_writer_was_killed_is_abandoned(tmp_path, alone):
    """Not while the writer lives, unless it is known that there is none."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with staging(tmp_path / "a"):
            os.write(tell, b".")
            signal.pause()
    assert os.read(ready, 1) == b"."
    try:
        remove_abandoned(tmp_path, alone=alone)
        assert len(names(tmp_path)) == (0 if alone else 1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["a file", "a link", "a named pipe"])
def test_only_directories_are_removed(tmp_path, kind):
    """Neither by their names, nor when they look abandoned."""
    make(tmp_path, "real")
    hidden = tmp_path / f".a.partial-{'0' * 16}"
    for path in (tmp_path / "a", hidden):
        if kind == "a file":
            path.touch()
        elif kind == "a link":
            path.symlink_to(tmp_path / "real")
        else:
            os.mkfifo(path)
    with pytest.raises(NotADirectoryError):
        remove(tmp_path / "a")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [hidden.name, "a", "real"]
    assert names(tmp_path / "real") == ["file", MARKER]
