"""Where compiled code is kept, and that the next process finds it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from truthgpt_plugin_compile.compile_cache import CodeCache

NAME = "TORCHINDUCTOR_CACHE_DIR"
SCRIPT = Path(__file__).with_name("decode_once.py")


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)


def place(directory: Path, **recipe: Any) -> Path:
    """Where code is kept that is compiled with these options."""
    return CodeCache(directory, recipe, "cpu").path


def test_it_is_in_use_for_a_while_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is set while something compiles, and what was set before comes back."""
    for before in ("", str(Path(tempfile.gettempdir(), "torchinductor_somebody"))):
        monkeypatch.setenv(NAME, before)
        if not before:
            monkeypatch.delenv(NAME)
        seen = directory_in_use(tmp_path)
        assert seen == str(place(tmp_path))
        assert os.environ.get(NAME, "") == before


def directory_in_use(directory: Path) -> str:
    """Return what is set while something compiles, which then fails."""
    seen = ""
    with contextlib.suppress(ZeroDivisionError), CodeCache(directory, {}, "cpu").in_use():
        seen = os.environ[NAME]
        raise ZeroDivisionError
    return seen


def test_a_choice_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that the user chose is used, and ours is not made."""
    monkeypatch.setenv(NAME, str(tmp_path / "mine"))
    with CodeCache(tmp_path / "ours", {}, "cpu").in_use():
        assert os.environ[NAME] == str(tmp_path / "mine")
    assert not (tmp_path / "ours").exists()


def test_another_recipe_is_kept_elsewhere(tmp_path: Path) -> None:
    """Code is found again for the same options, and never for others."""
    assert place(tmp_path, mode="default") == place(tmp_path, mode="default")
    assert place(tmp_path, mode="default") != place(tmp_path, mode="max-autotune")


def test_another_compiler_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code made by one compiler is not taken for that of another."""
    before = place(tmp_path)
    monkeypatch.setenv("CXX", sys.executable)
    assert place(tmp_path) != before


def decode_once(directory: Path) -> str:
    """Run the script in a new process that has chosen no directory itself."""
    environment = {key: value for key, value in os.environ.items() if key != NAME}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout.strip()


@pytest.mark.slow
@needs_compiler
def test_the_next_process_finds_what_was_compiled(tmp_path: Path) -> None:
    """The first process compiles into the directory, the second one takes it from there.

    A third finds everything damaged, and compiles anew.
    """
    directory = tmp_path / "kept"
    assert decode_once(directory) == "found 0"
    libraries = [each for each in directory.rglob("*.so") if each.stat().st_size]
    assert libraries
    assert decode_once(directory) == "found 1"
    for number, file in enumerate(sorted(directory.rglob("*"))):
        if file.is_file() and file.suffix != ".json":
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2] if number % 2 else b"\0" * len(whole))
    assert decode_once(directory) == "found 0"
