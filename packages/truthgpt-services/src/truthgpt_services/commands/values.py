"""Values of options that click has no type for."""

from __future__ import annotations

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
