"""C++ code is compiled once for this machine, and what was compiled is what is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from truthgpt_core.compiled_code import NativeError, load_compiled

SOURCES = {
    "answer.cpp": b'#include "number.hpp"\nextern "C" int answer() { return NUMBER; }\n',
    "number.hpp": b"#define NUMBER 42\n",
}
FLAGS = ("-shared", "-fPIC")

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
