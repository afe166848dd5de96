"""Values of options that click has no type for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click


def fraction(value: str) -> float:
    """Read a number that may be written as a percentage: `0.02` or `2%`.

    Raises:
        click.BadParameter: it is neither.
    """
    from truthgpt_core import config

    try:
        return config.fraction(value)
    except ValueError:
        raise click.BadParameter(f"{value!r:.60} is not a fraction such as 0.02 or 2%.") from None


def named_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read options that are written NAME=VALUE.

    Args:
        texts: the options. A value is a number, `true`, `false` or a text.

    Raises:
        click.UsageError: one has no name or no value.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals:
            raise click.UsageError(f'--option "{text}" is not written NAME=VALUE.')
        found[name] = _value(value)
    return found


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
