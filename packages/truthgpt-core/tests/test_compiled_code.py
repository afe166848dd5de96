"""C++ code is compiled once for this machine, and what was compiled is what is loaded."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_core import compiled_code
from truthgpt_core.compiled_code import NativeError, load_compiled
from truthgpt_core.paths import cache_dir

SOURCES = {
    "answer.cpp": b'#include "number.hpp"\nextern "C" int answer() { return NUMBER; }\n',
    "number.hpp": b"#define NUMBER 42\n",
}
FLAGS = ("-shared", "-fPIC")
LOAD = f"""
from truthgpt_core.compiled_code import load_compiled
from truthgpt_core.paths import cache_dir
load_compiled({SOURCES!r}, {FLAGS!r}, cache_dir("answers"), "answer")
"""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@needs_compiler
def test_the_first_file_is_compiled_and_includes_the_others(tmp_path: Path) -> None:
    assert load_compiled(SOURCES, FLAGS, tmp_path / "kept", "answer").answer() == 42


@needs_compiler
def test_it_is_compiled_anew_only_if_something_changed(tmp_path: Path) -> None:
    """One file in the directory for each content of the sources."""
    folder = tmp_path / "kept"
    for number in (b"42", b"42", b"43"):
        sources = {**SOURCES, "number.hpp": b"#define NUMBER " + number + b"\n"}
        assert load_compiled(sources, FLAGS, folder, "answer").answer() == int(number)
    assert len(list(folder.iterdir())) == 2


@needs_compiler
def test_what_does_not_compile_is_one_line_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"failed with exit code 1: .*error") as caught:
        load_compiled({"wrong.cpp": b"int f( {"}, FLAGS, tmp_path / "kept", "wrong")
    assert "Set CXX to another C++ compiler" in str(caught.value)


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeError, match=r"There is no C\+\+ compiler.*apt install g\+\+"):
        load_compiled(SOURCES, FLAGS, tmp_path / "kept", "answer")


def load() -> ctypes.CDLL:
    """Load the code, as a plugin does."""
    return load_compiled(SOURCES, FLAGS, cache_dir("answers"), "answer")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code is kept: nothing as yet."""
    monkeypatch.setenv("TRUTHGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each time that the compiler is called; it compiles fast."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    log, compiler = tmp_path / "calls", tmp_path / "compiler"
    real = compiled_code.find_compiler()
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@" -O0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return log


def compiled(calls: Path) -> int:
    """Return how often the compiler was called to compile."""
    return sum(line != "--version" for line in calls.read_text().splitlines())


def kept_in(folder: Path) -> Path:
    """Return the one file that is kept."""
    (kept,) = folder.iterdir()
    return kept


def load_in_new_process() -> None:
    """Load in a process that has not loaded it yet."""
    subprocess.run([sys.executable, "-c", LOAD], check=True, timeout=120)


def failing(tmp_path: Path, script: str) -> str:
    """Return the path of a compiler that is a shell script."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    return str(compiler)


def test_a_compiler_that_there_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable that is wrong, and says what to install."""
    monkeypatch.setenv("CXX", "nothing-of-this-name")
    with pytest.raises(NativeError, match="CXX=nothing-of-this-name is no C") as caught:
        load()
    assert "apt install g++" in (caught.value.hint or "")


def test_no_compiler_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler on the path the error says so."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match=r"There is no C\+\+ compiler"):
        load()


def test_a_compiler_that_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the first line of what the compiler said, and nothing is left behind."""
    script = '[ "$1" = --version ] && exit 0; echo "no such flag" >&2; echo more >&2; exit 3'
    monkeypatch.setenv("CXX", failing(tmp_path, script))
    with pytest.raises(NativeError) as caught:
        load()
    assert caught.value.message.endswith("failed with exit code 3: no such flag")
    assert caught.value.hint == "Set CXX to another C++ compiler."
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("machine", "flag"),
    [("x86_64", "-march=native"), ("aarch64", "-mcpu=native"), ("arm64", "-mcpu=native")],
)
def test_code_is_for_this_processor(
    machine: str, flag: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilers for 64-bit ARM, which macOS calls arm64, have another option for it."""
    script = '[ "$1" = --version ] && exit 0; echo "$1" >&2; exit 3'
    monkeypatch.setenv("CXX", failing(tmp_path, script))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(NativeError, match=f"failed with exit code 3: {flag}\\."):
        load()


def test_a_compiler_that_cannot_be_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is executable and no program is an error of ours, not of Python."""
    compiler = tmp_path / "compiler"
    compiler.write_bytes(b"\x7fELF")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeError, match="cannot be run"):
        load()


def test_it_is_compiled_once(folder: Path, calls: Path) -> None:
    """A second process loads what the first one compiled, and asks only for the version."""
    load_in_new_process()
    load_in_new_process()
    assert compiled(calls) == 1
    assert calls.read_text().splitlines()[-1] == "--version"


def test_a_umask_that_lets_a_group_write_changes_nothing(folder: Path, calls: Path) -> None:
    """Where new files are writable for a group, what is compiled is still loaded again."""
    before = os.umask(0o002)
    try:
        load_in_new_process()
        load_in_new_process()
    finally:
        os.umask(before)
    assert compiled(calls) == 1


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_may_have_written_is_not_loaded(folder: Path, calls: Path, mode: int) -> None:
    """A kept library that is writable for others is compiled anew, for its owner only."""
    load_in_new_process()
    kept_in(folder).chmod(mode)
    load_in_new_process()
    assert compiled(calls) == 2
    assert kept_in(folder).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_not_used(
    folder: Path, calls: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is loaded from it or kept in it; a warning says what to do."""
    load_in_new_process()
    kept = kept_in(folder)
    before = kept.stat()
    folder.chmod(mode)
    load()
    assert compiled(calls) == 2
    assert kept_in(folder).stat().st_mtime_ns == before.st_mtime_ns
    assert "chmod 700" in caplog.text
    assert str(folder) in caplog.text


def test_what_is_verified_is_what_is_loaded(
    folder: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes its name between the two is not loaded."""
    load_in_new_process()
    kept = kept_in(folder)
    verify, evil = compiled_code._digest, folder.parent / "evil.so"
    evil.write_bytes(b"no library")

    def swap(code: bytes) -> bytes:
        if evil.exists() and len(code) > 100:
            evil.replace(kept)
        return verify(code)

    monkeypatch.setattr(compiled_code, "_digest", swap)
    assert load().answer
    assert kept.read_bytes() == b"no library", "nothing was swapped, so this shows nothing"
    assert compiled(calls) == 1


def test_a_link_is_not_followed(folder: Path, calls: Path, tmp_path: Path) -> None:
    """A name that leads elsewhere is compiled anew, in its place."""
    load_in_new_process()
    kept = kept_in(folder)
    kept.rename(tmp_path / "elsewhere.so")
    kept.symlink_to(tmp_path / "elsewhere.so")
    load_in_new_process()
    assert compiled(calls) == 2
    assert not kept.is_symlink()


def test_a_pipe_is_not_waited_for(folder: Path, calls: Path) -> None:
    """Nor is it loaded."""
    load_in_new_process()
    kept = kept_in(folder)
    kept.unlink()
    os.mkfifo(kept)
    load_in_new_process()
    assert compiled(calls) == 2


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_library_is_compiled_anew(folder: Path, calls: Path, part: float) -> None:
    """What is left of a file, as after a full disk, does not kill the process."""
    load_in_new_process()
    kept = kept_in(folder)
    os.truncate(kept, int(kept.stat().st_size * part))
    load_in_new_process()
    assert compiled(calls) == 2


def test_garbage_is_compiled_anew(folder: Path, calls: Path) -> None:
    """A file that is no library is replaced."""
    load_in_new_process()
    kept_in(folder).write_bytes(b"no library" * 100)
    load_in_new_process()
    assert compiled(calls) == 2


def test_two_processes_may_compile_at_once(folder: Path, calls: Path) -> None:
    """Both succeed, and leave one file."""
    both = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(2)]
    assert [each.wait(120) for each in both] == [0, 0]
    assert kept_in(folder).suffix == ".so"


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder and the variable that moves it."""
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("TRUTHGPT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NativeError, match="cannot be kept in") as caught:
        load()
    assert str(tmp_path / "cache") in caught.value.message
    assert "TRUTHGPT_CACHE" in (caught.value.hint or "")
