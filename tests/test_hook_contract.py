"""The hooks, docs/hooks.md, the typed `Hooks` and the tests say the same of each other."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from truthgpt_core import hookspecs
from truthgpt_core.plugin_system import discovery

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TESTS = ROOT / "packages" / "truthgpt-core" / "tests" / "test_hookspecs.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
}
FIRST_LINES = "from truthgpt_core import PluginManager\nmanager = PluginManager()"

MARK = "truthgpt_spec"
KINDS = {name: getattr(spec, MARK) for name, spec in vars(hookspecs).items() if hasattr(spec, MARK)}
CALLED = {name for name, kind in KINDS.items() if not kind["historic"]}


def functions(code: str, owner: str | None = None) -> dict[str, ast.FunctionDef]:
    """The functions of a module, or the methods of a class in it, by name."""
    body = ast.parse(code).body
    if owner is not None:
        (found,) = [each for each in body if isinstance(each, ast.ClassDef) and each.name == owner]
        body = found.body
    return {each.name: each for each in body if isinstance(each, ast.FunctionDef)}


CODE = inspect.getsource(hookspecs)
SPECS = {name: spec for name, spec in functions(CODE).items() if name in KINDS}
TYPED = functions(CODE, "Hooks")


def returned(function: ast.FunctionDef) -> str:
    """The annotation of what a function returns."""
    assert function.returns is not None, f"{function.name} does not say what it returns"
    return ast.unparse(function.returns)


def signature(function: ast.FunctionDef) -> str:
    """What a function takes and returns, in one line."""
    return f"{function.name}({ast.unparse(function.args)}) -> {returned(function)}"


# The page


@dataclass(frozen=True)
class Section:
    """What stands under one heading of the page."""

    heading: str
    text: str

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """The blocks of code, each with its language."""
        return re.findall(r"^```(\w+)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)


def sections() -> list[Section]:
    """The sections of the page, in order."""
    parts = re.split(r"^(#{2,3} .*)$", PAGE, flags=re.MULTILINE)
    return [Section(*pair) for pair in zip(parts[1::2], parts[2::2], strict=True)]


def hook_sections() -> dict[str, Section]:
    """Those under "The hooks", by the hook that each is named after."""
    every = sections()
    (start,) = [at for at, section in enumerate(every) if section.heading == "## The hooks"]
    return {each.heading.removeprefix("### "): each for each in every[start + 1 :]}


def files() -> dict[str, str]:
    """The code that the page says is a file, by the name that its first line gives."""
    found: dict[str, str] = {}
    for section in sections():
        for language, code in section.blocks:
            named = re.match(r"# (\w+\.py)\n", code)
            if language == "python" and named:
                assert named[1] not in found, f"{named[1]} is there twice"
                found[named[1]] = code
    return found


def sessions() -> dict[str, list[str]]:
    """The sessions of the page, by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for section in sections():
        for language, code in section.blocks:
            if language == "pycon":
                found.setdefault(section.heading.lstrip("# "), []).append(code)
    return found


def test_every_hook_has_a_section_and_no_other_has() -> None:
    """The page documents the hooks that there are, in their order, and none that there is not."""
    assert list(hook_sections()) == list(SPECS)


@pytest.mark.parametrize("hook", SPECS)
def test_a_hook_is_documented_with_its_signature(hook: str) -> None:
    """A section begins with the hook's true arguments, annotations and result."""
    language, code = hook_sections()[hook].blocks[0]
    assert language == "python"
    (shown,) = functions(code).values()
    assert signature(shown) == signature(SPECS[hook])


@pytest.mark.parametrize("hook", SPECS)
def test_a_hook_is_documented_as_the_kind_that_it_is(hook: str) -> None:
    """A section says whether the hook is historic, and which of the results count."""
    kind = KINDS[hook]
    said = re.findall(r"^- \*\*Kind\*\*: (.*)\.$", hook_sections()[hook].text, re.MULTILINE)
    results = "first result" if kind["firstresult"] else "all results"
    assert said == ["historic" if kind["historic"] else results]


@pytest.mark.parametrize("hook", SPECS)
def test_a_hook_is_documented_argument_by_argument(hook: str) -> None:
    """A section says who calls the hook, what each argument is and, if it counts, the result."""
    said = re.findall(r"\*\*(.+?)\*\*", hook_sections()[hook].text)
    arguments = [each.arg for each in SPECS[hook].args.args]
    results = ["Returns"] if hook in CALLED else []
    assert said == ["Kind", "Called by", *arguments, *results]


@pytest.mark.parametrize("hook", SPECS)
def test_a_hook_is_documented_with_an_implementation(hook: str) -> None:
    """A section shows a function of the hook's name, marked, in a file of its own."""
    marked = [
        function
        for language, code in hook_sections()[hook].blocks[1:]
        if language == "python"
        for name, function in functions(code).items()
        if name == hook and function.decorator_list
    ]
    assert any(ast.unparse(function.decorator_list[0]) == "hookimpl" for function in marked)


@pytest.mark.parametrize("table", [PAGE, ARCHITECTURE], ids=["hooks.md", "architecture.md"])
def test_the_tables_list_every_hook(table: str) -> None:
    """The tables of hooks, here and in docs/architecture.md, have a row for each one."""
    rows = table.partition("| hook |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| \[?`(\w+)`", rows, re.MULTILINE) == list(SPECS)


# The examples

RUN_SESSIONS = """
import contextlib, doctest, io, json, sys
import deaf_hooks

sys.path.insert(0, "")
count, *hooks = sys.argv[1:]
deaf_hooks.deafen(*hooks)
said = []
for number in range(int(count)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        doctest.testfile(f"session{number}.txt", module_relative=False)
    said.append(out.getvalue())
json.dump(said, sys.stdout)
"""


def run(folder: Path, code: str, *arguments: str) -> str:
    """Run code in a process of its own, where the files of the page can be imported."""
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=ENVIRONMENT | {"TRUTHGPT_SETTINGS": str(folder / "settings")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_sessions(folder: Path, heading: str, *deaf_to: str) -> list[str]:
    """Return what is wrong with each session under a heading; nothing if it is as shown."""
    begin = "".join(f">>> {line}\n" for line in FIRST_LINES.splitlines())
    texts = sessions()[heading]
    for number, text in enumerate(texts):
        (folder / f"session{number}.txt").write_text(begin + text, encoding="utf-8")
    said: list[str] = json.loads(run(folder, RUN_SESSIONS, str(len(texts)), *deaf_to))
    return said


def test_the_page_says_how_its_sessions_begin() -> None:
    """A reader is told the lines that every session begins with."""
    begin = re.search(r"begins with\n`(.*?)` and `(.*?)`:", PAGE)
    assert begin
    assert "\n".join(begin.groups()) == FIRST_LINES


def test_every_file_is_followed_by_a_session_that_imports_it() -> None:
    """Nothing on the page is shown and not run."""
    shown = [block for section in sections() for block in section.blocks]
    for name, code in files().items():
        language, after = shown[shown.index(("python", code)) + 1]
        assert language == "pycon"
        assert name.removesuffix(".py") in re.findall(r"\w+", after.splitlines()[0])


@pytest.mark.parametrize("heading", sessions())
def test_a_session_gives_what_it_shows(heading: str, tmp_path: Path) -> None:
    """What the page says that an example gives is what it gives."""
    assert "".join(run_sessions(tmp_path, heading)) == ""


@pytest.mark.parametrize("hook", SPECS)
def test_a_session_shows_the_hook_at_work(hook: str, tmp_path: Path) -> None:
    """The examples of a hook depend on it: were it not called, they would give something else."""
    assert all("Failed example" in said for said in run_sessions(tmp_path, hook, hook))


def test_the_programs_run(tmp_path: Path) -> None:
    """Code that is neither a file nor a signature runs as it stands."""
    kept = set(files().values()) | {each.blocks[0][1] for each in hook_sections().values()}
    programs = [
        code
        for section in sections()
        for language, code in section.blocks
        if language == "python" and code not in kept
    ]
    assert programs
    for program in programs:
        run(tmp_path, program)


def test_the_metadata_is_metadata() -> None:
    """The pyproject.toml on the page can be read, and names groups and a class that there are."""
    (text,) = [code for each in sections() for language, code in each.blocks if language == "toml"]
    groups = tomllib.loads(text)["project"]["entry-points"]
    assert groups.keys() <= discovery.GROUPS
    for value in groups[discovery.PLUGINS].values():
        module, _, name = value.partition(":")
        assert f"class {name}(Plugin):" in files()[f"{module}.py"]


# The types


def test_the_typed_hooks_are_those_that_are_called() -> None:
    """`Hooks` has a method for each hook that is called from outside, and for no other."""
    assert TYPED.keys() == CALLED


@pytest.mark.parametrize("hook", sorted(CALLED))
def test_a_typed_hook_is_the_hook(hook: str) -> None:
    """What a type checker sees is the hook's arguments, by keyword only, and its result.

    That is what one implementation returns or, if all count, a list of what those return
    that do not return None.
    """
    spec, typed = SPECS[hook].args, TYPED[hook].args
    assert [each.arg for each in typed.args] == ["self"]
    assert [ast.unparse(each) for each in typed.kwonlyargs] == [
        ast.unparse(each) for each in spec.args
    ]
    result = returned(SPECS[hook])
    if not KINDS[hook]["firstresult"]:
        result = f"list[{result.removesuffix(' | None')}]"
    assert returned(TYPED[hook]) == result


# The tests


@pytest.mark.new_process
def test_every_hook_has_tests_that_need_it() -> None:
    """For each hook there are tests marked with it, and all of them fail if it is not called."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "deaf_hooks", "-rx", "--tb=short"),
            *("-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", str(TESTS)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"deaf to (\w+)$", done.stdout, re.MULTILINE)) == set(SPECS)
