"""Opening files that others may have put there, and paths as they are typed."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import (
    UnusableFileError,
    cache_dir,
    expanded,
    open_regular,
    read_regular_bytes,
    settings_dir,
)


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make something that is not a regular file; return its path."""
    sockets: list[socket.socket] = []

    def make(kind: str) -> Path:
        path = tmp_path / "special"
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        elif kind == "a directory":
            path.mkdir()
        else:
            monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind("special")
        return path

    yield make
    for each in sockets:
        each.close()


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a directory", "a socket"])
def test_what_is_not_a_regular_file_is_refused_by_name(special, kind) -> None:
    """Neither waiting for a pipe nor reading a device for ever: one line names file and kind."""
    path = special(kind)
    with pytest.raises(TruthGPTError) as caught:
        read_regular_bytes(path)
    assert str(caught.value) == f"{path} cannot be used: it is {kind}, not a regular file"


def test_a_refusal_is_an_os_error_too(special) -> None:
    """Code that reports unreadable files by `strerror` reports these, from other processes too."""
    with pytest.raises(OSError, match="named pipe") as caught:
        open_regular(special("a named pipe"))
    assert caught.value.strerror == "it is a named pipe, not a regular file"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_regular_file_is_read_up_to_a_limit(tmp_path) -> None:
    """As many bytes as are allowed, through a link, and no more."""
    (tmp_path / "file").write_bytes(b"12345")
    link = tmp_path / "link"
    link.symlink_to("file")
    assert read_regular_bytes(link, limit=5) == b"12345"
    with pytest.raises(UnusableFileError, match="has more than 4 bytes"):
        read_regular_bytes(link, limit=4)
    with pytest.raises(FileNotFoundError):
        read_regular_bytes(tmp_path / "gone")
    with pytest.raises(UnusableFileError, match="null character"):
        read_regular_bytes("a\0b")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("~no-such-user/x", "there is no home directory of ~no-such-user"),
        ("x" * 5000, "its name is too long"),
        ("a\0b", "null character"),
    ],
)
def test_what_cannot_be_a_path_is_one_short_line(typed, said) -> None:
    """A path that the system would choke on is refused before anything is done with it."""
    with pytest.raises(UnusableFileError, match=said) as caught:
        expanded(typed)
    assert len(str(caught.value)) < 400


def test_a_tilde_is_the_home_directory(monkeypatch) -> None:
    """As in a shell, also where no shell replaces it."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expanded("~/x") == Path("/home/somebody/x")
    assert expanded("plain/x") == Path("plain/x")


@pytest.mark.parametrize(
    ("variable", "place"), [("TRUTHGPT_CACHE", cache_dir), ("TRUTHGPT_SETTINGS", settings_dir)]
)
def test_a_directory_of_an_unknown_user_is_an_error_of_ours(monkeypatch, variable, place) -> None:
    """The environment can hold anything, and the error has one line."""
    monkeypatch.setenv(variable, "~no-such-user/x")
    with pytest.raises(UnusableFileError, match="no home directory"):
        place("below")
