"""Hook calls are typed: mypy catches wrong arguments and knows results, as a plugin's author does.

The files under typing/ are checked and never run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api", reason="mypy is not installed")

HERE = Path(__file__).parent / "typing"
MESSAGE = re.compile(r"^(?P<file>.*?):(?P<line>\d+): (?P<kind>error|note): (?P<text>.*)$")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str, str]]:
    """What `mypy --strict` says of the files, with nothing but the installed packages known."""
    folder = tmp_path_factory.mktemp("mypy")
    out, error, _ = api.run(
        [
            *("--strict", "--no-error-summary", "--hide-error-context", "--show-error-codes"),
            *("--config-file", "", "--no-color-output", "--cache-dir", str(folder)),
            *(str(HERE / "hooks_right.py"), str(HERE / "hooks_wrong.py")),
        ]
    )
    assert error == ""
    found = [MESSAGE.match(line) for line in out.splitlines()]
    assert all(found), out
    return [
        (Path(each["file"]).name, int(each["line"]), each["kind"], each["text"])
        for each in found
        if each is not None
    ]


def marked(file: str, mark: str) -> dict[int, str]:
    lines = (HERE / file).read_text().splitlines()
    return {
        number: line.partition(f"# {mark}: ")[2]
        for number, line in enumerate(lines, 1)
        if f"# {mark}: " in line
    }


def test_right_uses_are_fine_and_their_results_known(messages) -> None:
    """Right uses give no error, and mypy reveals the type of each result."""
    said = [each for each in messages if each[0] == "hooks_right.py"]
    assert [each for each in said if each[2] == "error"] == []
    revealed = {line: text for _, line, _, text in said if "Revealed type" in text}
    expected = marked("hooks_right.py", "reveals")
    assert expected
    assert revealed == {line: f'Revealed type is "{kind}"' for line, kind in expected.items()}


def test_wrong_uses_are_errors(messages) -> None:
    """Each wrong use is an error at its line, and there is no other."""
    errors = {
        line: text.rpartition("[")[2].rstrip("]")
        for file, line, kind, text in messages
        if (file, kind) == ("hooks_wrong.py", "error")
    }
    assert errors
    assert errors == marked("hooks_wrong.py", "error")
