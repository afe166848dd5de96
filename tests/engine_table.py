"""The table of engines in docs/engines.md, from what their classes declare.

    python tests/engine_table.py

prints it. The libraries of the engines need not be installed: they are imported when an engine is
made.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from truthgpt_core.decoding import SAMPLING_OPTIONS, Capabilities, Engine

PACKAGES = Path(__file__).parent.parent / "packages"


def engines() -> Iterator[type[Engine]]:
    """Import the classes of engines that the packages of this workspace have."""
    for source in sorted(PACKAGES.glob("*/src")):
        for file in sorted(source.rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(base, ast.Name) and base.id == "Engine" for base in node.bases
                ):
                    module = ".".join(file.relative_to(source).with_suffix("").parts)
                    if str(source) not in sys.path:
                        sys.path.append(str(source))
                    yield getattr(import_module(module), node.name)


def table() -> str:
    """Return the table: a column for each engine."""
    found = sorted(engines(), key=lambda engine: engine.name)
    rows = [["", *(f"`{engine.name}`" for engine in found)], ["---"] * (len(found) + 1)]
    for each in fields(Capabilities):
        values = [getattr(engine.capabilities, each.name) for engine in found]
        if each.name == "rows":
            shown = ["any" if value is None else str(value) for value in values]
        else:
            shown = ["yes" if value else "no" for value in values]
        rows.append([f"`{each.name}`", *shown])
    # Several texts are several requests, whatever the engine.
    for option in [each for each in SAMPLING_OPTIONS if each != "n"]:
        shown = ["yes" if option in engine.options else "no" for engine in found]
        rows.append([f"option `{option}`", *shown])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
