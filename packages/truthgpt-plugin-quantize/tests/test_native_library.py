"""Compiling the C++ code, keeping it, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from truthgpt_core import compiled_code
from truthgpt_core.compiled_code import NativeError, find_compiler
from truthgpt_plugin_quantize.native import library

LOAD = "from truthgpt_plugin_quantize.native import library; library.load()"


@pytest.fixture(autouse=True)
def _loaded_anew() -> Iterator[None]:
    library.load.cache_clear()
    yield
    library.load.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code is kept: nothing as yet."""
    monkeypatch.setenv("TRUTHGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "optimizations" / "quantize"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each time that the compiler is called; it compiles fast."""
    log, compiler = tmp_path / "calls", tmp_path / "compiler"
    real = find_compiler()
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
        library.load()
    assert "apt install g++" in (caught.value.hint or "")


def test_no_compiler_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler on the path the error says so."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match=r"There is no C\+\+ compiler"):
        library.load()


def test_a_compiler_that_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the first line of what the compiler said, and nothing is left behind."""
    script = '[ "$1" = --version ] && exit 0; echo "no such flag" >&2; echo more >&2; exit 3'
    monkeypatch.setenv("CXX", failing(tmp_path, script))
    with pytest.raises(NativeError) as caught:
        library.load()
    assert caught.value.message.endswith("failed with exit code 3: no such flag")
    assert caught.value.hint == "Set CXX to another C++ compiler."
    assert list(folder.iterdir()) == []


def test_a_compiler_that_cannot_be_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is executable and no program is an error of ours, not of Python."""
    compiler = tmp_path / "compiler"
    compiler.write_bytes(b"\x7fELF")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeError, match="cannot be run"):
        library.load()


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
    library.load()
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
    assert library.load().pool_new
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


SANITIZED = """
import torch
from truthgpt_plugin_quantize.native import rows
largest = torch.finfo(torch.float32).max
x = torch.zeros(9, 96)
x[0, 3], x[1, 3], x[2, 3] = float("nan"), float("inf"), -float("inf")
x[3], x[4], x[5] = largest, -largest, 1e-38
x[6] = 1e-45
x[7, ::2], x[7, 1::2] = largest, -largest
x[8] = torch.randn(96)
signs = torch.tensor([127, -127], dtype=torch.int8).repeat(16, 48)
for weight, scales in ((signs, torch.ones(16, 3)), (signs, torch.ones(16))):
    out = rows.multiply(x, weight, scales)
    assert out[0:3].isnan().all(), out[0:3]
    assert (out[5:7] == 0).all()
    assert (out[8] - x[8] @ weight[0].float()).abs().max() < 127 * 96 * x[8].abs().max() / 127
halves = torch.full((16, 4), 1.0).half()
packed = torch.full((16, 64), 255, dtype=torch.uint8)
wide = torch.cat((x, x[:, :32]), 1)
assert rows.multiply(wide, packed, halves, halves)[0:3].isnan().all()
for dtype in (torch.float32, torch.bfloat16):
    rows.convert(signs, torch.full((16, 3), largest), None, dtype)
    rows.convert(packed, halves * 65504, -halves * 65504, dtype)
print("done")
"""


def test_extremes_are_defined_in_cpp(folder: Path, tmp_path: Path) -> None:
    """NaN, infinities and the ends of float32 do nothing that C++ leaves undefined."""
    compiler = tmp_path / "compiler"
    flags = "-O1 -fsanitize=undefined,float-cast-overflow -fno-sanitize-recover=all"
    real = find_compiler()
    compiler.write_text(f'#!/bin/sh\nexec {real} "$@" {flags}\n')
    compiler.chmod(0o755)
    probe = tmp_path / "probe.cpp"
    probe.write_text("int f(int x) { return x + x; }\n")
    made = subprocess.run(
        [str(compiler), "-shared", "-fPIC", str(probe), "-o", str(tmp_path / "probe.so")],
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("this compiler has no sanitizer")
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"CXX": str(compiler)},
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


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
        library.load()
    assert str(tmp_path / "cache") in caught.value.message
    assert "TRUTHGPT_CACHE" in (caught.value.hint or "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process in this way")
def test_threads_that_cannot_be_started_are_an_error() -> None:
    """Where memory does not suffice for that many threads, the process goes on without."""
    script = """
import resource
from truthgpt_core.compiled_code import NativeError
from truthgpt_plugin_quantize.native import library
library.load()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
try:
    library.pool(1000, 0)
except NativeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1000 threads cannot be started\n"), done.stderr
