"""The C++ compiler: whether what it makes can be loaded, which compiling a model needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from truthgpt_core.child_process import Ended, last_line, run
from truthgpt_core.diagnosis import Diagnosis

CXX = "CXX"
DEFAULT = "clang++" if sys.platform == "darwin" else "g++"
"""What torch's compiler looks for if CXX is not set, and nothing else."""

_SUBJECT = "C++ compiler"
_INSTALL = (
    "xcode-select --install"
    if sys.platform == "darwin"
    else f"Install {DEFAULT} (Debian, Ubuntu: apt install {DEFAULT})"
)
_ANOTHER = f"Reinstall it, or set {CXX} to another."
_SOURCE = """\
#include <vector>
extern "C" int answer() {
    std::vector<int> numbers{40, 2};
    int sum = 0;
    for (int number : numbers) sum += number;
    return sum;
}
"""
_LOAD = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).answer() != 42)"


def examine(seconds: float) -> Iterator[Diagnosis]:
    """Try the C++ compiler, and look for Python's headers.

    Args:
        seconds: how long each of compiling and loading may take.
    """
    yield _compiler(seconds)
    if sys.platform == "linux":
        yield _headers()


def _compiler(seconds: float) -> Diagnosis:
    chosen = os.environ.get(CXX)
    compiler = DEFAULT if chosen is None else chosen
    path = shutil.which(compiler)
    if path is None and chosen is None:
        return Diagnosis.warning(
            _SUBJECT,
            f"there is no {DEFAULT}: models cannot be compiled for the CPU",
            f"{_INSTALL}, or set {CXX} to another.",
        )
    if path is None:
        return Diagnosis.failed(
            _SUBJECT,
            f"{CXX} is {compiler!r}, and there is no such program",
            f"Set {CXX} to the one program to run, without options, or unset it.",
        )
    named = compiler if chosen is None else f"{CXX}={compiler}"
    try:
        with tempfile.TemporaryDirectory(prefix="truthgpt-doctor-") as folder:
            problem = _try_out(path, named, Path(folder), seconds)
        if problem is not None:
            return problem
        version = run([path, "--version"], seconds).out.decode(errors="replace")
    except OSError as error:
        return Diagnosis.failed(_SUBJECT, f"{named}: {error}", _ANOTHER)
    first = version.strip().splitlines()[:1]
    return Diagnosis.ok(_SUBJECT, ", ".join([*first, "makes libraries that load"]))


def _try_out(compiler: str, named: str, folder: Path, seconds: float) -> Diagnosis | None:
    """Compile, link and load a small library; return what went wrong, None if nothing did."""
    source, library = folder / "answer.cpp", folder / "answer.so"
    source.write_text(_SOURCE)
    options = ("-shared", "-fPIC", "-std=c++17")
    compiled = run([compiler, *options, source, "-o", library], seconds)
    if compiled.code != 0 or not library.exists():
        return Diagnosis.failed(
            _SUBJECT, f"{named} does not compile: {_why(compiled, seconds)}", _ANOTHER
        )
    loaded = run([sys.executable, "-I", "-c", _LOAD, library], seconds)
    if loaded.code != 0:
        return Diagnosis.failed(
            _SUBJECT,
            f"{named} makes libraries that do not load: {_why(loaded, seconds)}",
            f"{_ANOTHER} If nothing in {folder.parent} may be run, set TMPDIR to another place.",
        )
    return None


def _why(ended: Ended, seconds: float) -> str:
    if ended.code is None:
        return f"no end within {seconds:g} s"
    errors = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    return (errors[0].strip() if errors else last_line(ended.stderr)) or ended.how


def _headers() -> Diagnosis:
    # What torch compiles for the CPU is an extension module.
    header = Path(sysconfig.get_path("include"), "Python.h")
    if header.exists():
        return Diagnosis.ok("Python headers", str(header.parent))
    version = ".".join(platform.python_version_tuple()[:2])
    return Diagnosis.warning(
        "Python headers",
        f"there is no {header}: models cannot be compiled for the CPU",
        f"Install them (Debian, Ubuntu: apt install python{version}-dev).",
    )
