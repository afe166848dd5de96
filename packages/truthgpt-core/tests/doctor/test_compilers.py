"""What is said of the C++ compiler, which is tried out."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

pytestmark = pytest.mark.slow

PATH = os.environ.get("PATH", "")


def test_a_compiler_that_works_says_its_version(doctor, monkeypatch) -> None:
    """A library is compiled, linked and loaded with it."""
    if sys.platform != "linux" or shutil.which("g++", path=PATH) is None:
        pytest.skip("there is no g++")
    monkeypatch.setenv("PATH", PATH)
    _, findings = doctor()
    assert findings["compilers", "C++ compiler"]["status"] == "ok"
    assert "makes libraries that load" in findings["compilers", "C++ compiler"]["detail"]


def test_no_compiler_is_a_warning(doctor) -> None:
    """Models run without a compiler; the fix says how to get one."""
    code, findings = doctor()
    about = findings["compilers", "C++ compiler"]
    assert about["status"] == "warning"
    assert "apt install g++" in about["fix"] or "xcode-select" in about["fix"]
    assert code == 0


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo x.cpp:1: error: no headers >&2; exit 1", "does not compile: x.cpp:1: error: no"),
        ("kill -SEGV $$", "does not compile: killed by SIGSEGV"),
        ("exit 0", "does not compile: exit code 0"),
        ('while [ "$1" != -o ]; do shift; done; echo junk > "$2"', "libraries that do not load: "),
    ],
)
def test_a_compiler_that_fails_is_a_failure(
    doctor, program, monkeypatch, script: str, said: str
) -> None:
    """A program by that name is not enough: what it makes has to load."""
    monkeypatch.setenv("CXX", str(program("my-compiler", script)))
    code, findings = doctor()
    about = findings["compilers", "C++ compiler"]
    assert about["status"] == "failed"
    assert said in about["detail"]
    assert "CXX" in about["fix"]
    assert code == 1


def test_cxx_has_to_be_one_program(doctor, program, monkeypatch) -> None:
    """What torch would not find is a failure, though it would work in a shell."""
    program("g++", "exit 0")
    monkeypatch.setenv("CXX", "ccache g++")
    _, findings = doctor()
    assert findings["compilers", "C++ compiler"]["status"] == "failed"
    assert "'ccache g++'" in findings["compilers", "C++ compiler"]["detail"]
