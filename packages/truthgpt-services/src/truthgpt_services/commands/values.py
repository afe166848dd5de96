"""Values of options that click has no type for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

metric_option = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Measure this too, with a metric of a plugin; may be repeated.",
)


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


def named_options(texts: Iterable[str]) -> dict[str, Any]:
    """Read what was typed after `--option`, each `NAME=VALUE`; a name given twice has a list.

    Raises:
        click.BadParameter: one has no name or no value.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise click.BadParameter(f"{text!r:.60} is not NAME=VALUE.", param_hint="--option")
        name, earlier = name.strip(), options.get(name.strip(), [])
        several = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        options[name] = several if len(several) > 1 else value
    return options


def named_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read the same for what declares no types: a value is a number, true, false or a text."""
    return {name: _value(given) for name, given in named_options(texts).items()}


def _value(given: str | list[str]) -> Any:
    if isinstance(given, list):
        return [_value(each) for each in given]
    if given in ("true", "false"):
        return given == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(given)
    return given
