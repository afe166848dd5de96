"""Single files that are read with care and written whole, and paths as they are typed."""

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
    is_unfinished,
    open_regular,
    read_json,
    read_regular_bytes,
    settings_dir,
    write_file,
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


def test_a_file_is_replaced_as_a_whole(tmp_path) -> None:
    """With the permissions that it had; a new one has those of new files."""
    path = tmp_path / "file"
    write_file(path, "ä")
    (tmp_path / "like").touch()
    assert path.stat().st_mode == (tmp_path / "like").stat().st_mode
    path.chmod(0o604)
    with path.open("rb") as old:
        write_file(path, b"\xff", flush=False)
        assert old.read() == "ä".encode()
    assert path.read_bytes() == b"\xff"
    assert path.stat().st_mode & 0o777 == 0o604
    assert len(list(tmp_path.iterdir())) == 2


def test_a_private_file_is_its_owner_s(tmp_path) -> None:
    """Whatever was there before, and whatever the umask is."""
    path = tmp_path / "file"
    path.touch(0o666)
    write_file(path, "x", private=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path) -> None:
    """What it leads to stays as it is."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path) -> None:
    """A directory is in its place, or the content is not a text; nothing is left beside it."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "directory", "x")
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "file", "\udc80")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["directory", "file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path) -> None:
    """At each moment; what else it leaves is known by its name."""
    path = tmp_path / "file"
    path.write_text("old")
    for moment in ("fsync", "replace"):
        child = os.fork()
        if child == 0:
            os.fsync = Path.replace = lambda *given: os._exit(9)  # type: ignore[method-assign]
            write_file(path, "new", flush=moment == "fsync")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_text() == "old"
    left = [each.name for each in tmp_path.iterdir() if each != path]
    assert len(left) == 2
    assert all(map(is_unfinished, left))


@pytest.mark.parametrize("content", ["[", "[]", "3", '"x"', "[" * 100_000, "\udc80"], ids=repr)
def test_what_is_no_json_object_is_a_value_error(tmp_path, content) -> None:
    """Deep JSON and bytes that are no text included."""
    path = tmp_path / "file"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"JSON|nested|Expecting|decode"):
        read_json(path)
    path.write_text('{"key": 1}')
    assert read_json(path) == {"key": 1}
    with pytest.raises(UnusableFileError, match="has more than 9 bytes"):
        read_json(path, limit=9)


def test_a_file_of_one_s_own_is_no_link_and_nobody_else_s_to_write(tmp_path) -> None:
    """What others may have written is refused, with the reason."""
    path, link = tmp_path / "file", tmp_path / "link"
    write_file(path, "x", private=True)
    link.symlink_to("file")
    with open_regular(path, own=True) as file:
        assert file.read() == b"x"
    with pytest.raises(UnusableFileError, match="it is a symbolic link"):
        open_regular(link, own=True)
    path.chmod(0o620)
    with pytest.raises(UnusableFileError, match="another user may have written it"):
        open_regular(path, own=True)
    open_regular(path).close()
