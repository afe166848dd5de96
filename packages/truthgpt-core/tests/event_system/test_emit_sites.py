"""Wherever a package of ours emits an event, it emits the dataclass of its type."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from truthgpt_core import event_system

PACKAGES = Path(__file__).parents[3]
FILES = sorted(PACKAGES.glob("*/src/**/*.py"))
PAYLOADS = {
    name
    for name in event_system.__all__
    if hasattr(getattr(event_system, name), "event_type")
    and hasattr(getattr(event_system, name), "__dataclass_fields__")
    and name not in ("Event", "EventPayload", "Subscription")
}
PASS_ON = {"TrainingService.emit", "WorkerProcess._hear"}
"""What emits that which its caller, or another process, emits: a dataclass or a mapping."""


@dataclass
class Sites(ast.NodeVisitor):
    """The calls in a module that emit, and what each one emits: None if it is no dataclass."""

    file: Path
    found: list[tuple[str, str | None]] = field(default_factory=list)
    _scope: list[str] = field(default_factory=list)
    _annotated: dict[str, str] = field(default_factory=dict)
    _imported: set[str] = field(default_factory=set)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "truthgpt_core.event_system":
            self._imported |= {each.asname or each.name for each in node.names}

    def visit_ClassDef(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._annotated = self._annotated, {}
        self.visit_ClassDef(node)
        self._annotated = outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._annotated[node.target.id] = ast.unparse(node.annotation).removesuffix(" | None")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        if name in ("emit", "emit_event") and ".".join(self._scope) not in PASS_ON:
            self.found.append((f"{self.file}:{node.lineno}", self._emitted(node)))
        self.generic_visit(node)

    def _emitted(self, node: ast.Call) -> str | None:
        if len(node.args) != 1 or node.keywords:
            return None
        (argument,) = node.args
        made = ast.unparse(argument.func) if isinstance(argument, ast.Call) else None
        if isinstance(argument, ast.Name):
            made = self._annotated.get(argument.id)
        return made if made in PAYLOADS & self._imported else None


def sites(file: Path, code: str) -> list[tuple[str, str | None]]:
    visitor = Sites(file)
    visitor.visit(ast.parse(code))
    return visitor.found


def all_sites() -> Iterator[tuple[str, str | None]]:
    for file in FILES:
        yield from sites(file.relative_to(PACKAGES), file.read_text(encoding="utf-8"))


def test_what_we_emit_is_the_dataclass_of_its_type():
    """No call in our packages emits a mapping, or anything else that is not a dataclass of ours."""
    assert [where for where, payload in all_sites() if payload is None] == []


def test_every_type_of_ours_is_emitted():
    """There is no type that listeners would wait for in vain."""
    assert {payload for _, payload in all_sites()} == PAYLOADS


@pytest.mark.parametrize(
    ("emitted", "payload"),
    [
        ("CheckpointSaved(path='a', step=1)", "CheckpointSaved"),
        ("EventType.CHECKPOINT_SAVED, {'path': 'a', 'step': 1}", None),
        ("CheckpointSaved(path='a', step=1), {}", None),
        ("ModelSaved(name='a', path='b')", None),
        ("saved", "CheckpointSaved"),
        ("given", None),
    ],
)
@pytest.mark.parametrize("call", ["emit_event", "self.run.emit", "emit"])
def test_a_site_that_passes_something_else_is_found(call, emitted, payload):
    """What is emitted is found under any name of the call; ModelSaved is somebody else's here."""
    code = f"""
from truthgpt_core.event_system import CheckpointSaved, EventType
def save(given):
    saved: CheckpointSaved | None = given
    {call}({emitted})
"""
    assert sites(Path("a.py"), code) == [("a.py:5", payload)]
