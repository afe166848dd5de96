"""What is known to exist whether or not it is installed: only ever used to say something helpful.

Nothing is dispatched through `catalogue.json`. It answers "which distribution do I
install to get this?" and gives `truthgpt --help` a line for commands whose code
has not been imported.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

Kind = Literal["commands", "optimizations", "training_backends", "clusters"]


@cache
def _catalogue() -> dict[str, dict[str, dict[str, str]]]:
    import json
    from importlib.resources import files

    file = files("truthgpt_core.plugin_system").joinpath("catalogue.json")
    catalogue: dict[str, dict[str, dict[str, str]]] = json.loads(file.read_text(encoding="utf-8"))
    return catalogue


def known(kind: Kind) -> list[str]:
    """Names of this kind that some distribution is known to have."""
    return sorted(_catalogue()[kind])


def distribution_of(kind: Kind, name: str) -> str | None:
    """The distribution known to have it, or None."""
    return _catalogue()[kind].get(name, {}).get("distribution")


def help_of(kind: Kind, name: str) -> str | None:
    """One line about it, or None."""
    return _catalogue()[kind].get(name, {}).get("help")
