"""How numbers and foreign text are written, the same on the page and in the terminal.

Sizes are decimal: 1 MB is 1,000,000 bytes. A figure never claims more than it
knows: 100 % is exactly all, and an interval that excludes 1 is never rounded to 1.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime

from truthgpt_services.results.schema import Ratio, Samples

ABSENT = "\N{EM DASH}"
WITHIN_NOISE = "within noise"
TIMES = "\N{MULTIPLICATION SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
INFINITY = "\N{INFINITY}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
DASH = "\N{EN DASH}"
ARROW = "\N{RIGHTWARDS ARROW}"

_SIZES = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("PB", 1e15))
_REORDERING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def number(value: float, digits: int = 3) -> str:
    """Write `value` with at least `digits` significant digits, whole ones all shown."""
    if special := _special(value):
        return special
    if value == 0:
        return "0"
    if not _is_plain(value):
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{_decimals(value, digits)}f}"


def interval(low: float, high: float, decimals: int | None = None) -> str:
    """Write both ends, to as many decimals if that is given."""
    ends = [
        number(end) if decimals is None or _special(end) else f"{end:,.{decimals}f}"
        for end in (low, high)
    ]
    return (DASH if min(low, high) >= 0 else " to ").join(ends)


def samples(measured: Samples) -> tuple[str, str]:
    """Write the median and, to the same precision, its interval."""
    decimals = _decimals(measured.median, 3) if _is_plain(measured.median) else None
    return number(measured.median), interval(measured.low, measured.high, decimals)


def ratio(value: float, decimals: int | None = None) -> str:
    """Write candidate / reference, as in 2.31 times."""
    if special := _special(value):
        return special
    if not _is_plain(value):
        return number(value) + TIMES
    return f"{value:,.{_ratio_decimals(value) if decimals is None else decimals}f}{TIMES}"


def ratio_interval(measured: Ratio) -> tuple[str, str]:
    """Write the median and its interval, fine enough that 1 is not shown where it is excluded."""
    ends = (measured.low, measured.high)
    if not _is_plain(measured.median) or not all(map(math.isfinite, ends)):
        return ratio(measured.median), interval(*ends)
    decimals = _ratio_decimals(measured.median)
    while measured.differs and decimals < 9 and any(round(end, decimals) == 1 for end in ends):
        decimals += 1
    return ratio(measured.median, decimals), interval(*ends, decimals)


def plus_minus(value: float, error: float) -> tuple[str, str]:
    """Write a mean and its standard error, both as precise as the error allows.

    The error is empty if it is 0.
    """
    if error == 0:
        return number(value), ""
    if not _is_plain(value) or not _is_plain(error):
        return number(value), f"{PLUS_MINUS} {number(error, 2)}"
    decimals = _decimals(error, 1 if f"{error:e}"[0] > "2" else 2)
    return f"{value:,.{decimals}f}", f"{PLUS_MINUS} {error:,.{decimals}f}"


def share(value: float) -> str:
    """Write a share as a percentage; 100 % and 0 % stand only for all and none."""
    if special := _special(value):
        return special
    decimals = 1
    while decimals < 9 and value not in (0, 1) and round(value * 100, decimals) in (0, 100):
        decimals += 1
    return f"{value * 100:.{0 if value in (0, 1) else decimals}f} %"


def share_plus_minus(value: float, error: float) -> tuple[str, str]:
    """Write a share and its standard error as percentages; the error is empty if it is 0."""
    if error == 0:
        return share(value), ""
    error_text = number(error) if _special(error) else f"{number(error * 100, 2)} %"
    return share(value), f"{PLUS_MINUS} {error_text}"


def size(count: float) -> str:
    """Write bytes in decimal units."""
    if special := _special(count):
        return special
    if abs(count) < 1000:
        return f"{count:.0f} B"
    unit, scale = next(
        ((unit, scale) for unit, scale in _SIZES if abs(float(f"{count / scale:.2e}")) < 1000),
        _SIZES[-1],
    )
    return f"{number(count / scale)} {unit}"


def seconds(value: float) -> str:
    """Write a duration in milliseconds, seconds, or whole minutes and hours."""
    if special := _special(value):
        return special
    if value == 0:
        return "0 s"
    if float(f"{value:.2e}") < 1:
        return f"{number(value * 1000)} ms"
    if value < 119.95:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def seconds_interval(median: float, low: float, high: float) -> str:
    """Write both ends of a duration, without their unit if it is the median's."""
    written = [seconds(value).split() for value in (median, low, high)]
    if all(len(parts) == 2 and parts[1] == written[0][1] for parts in written):
        return f"{written[1][0]}{DASH}{written[2][0]}"
    return f"{seconds(low)} to {seconds(high)}"


def bound(value: float) -> str:
    """Write a bound that the user set, with the digits that it needs and no more."""
    return _special(value) or f"{value:.6g}"


def moment(created: str) -> str:
    """Write an ISO 8601 time to the minute in UTC; anything else as it is."""
    try:
        read = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{read.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if read.tzinfo else created


def visible(text: str) -> str:
    r"""Write out characters that would act instead of being read, as in \x1b.

    Control characters drive a terminal, those that change the direction of text
    can hide what it says, and lone surrogates cannot be encoded. Line breaks and
    tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def shortened(text: str, length: int) -> str:
    """Cut `text` to `length` characters, the last one saying that it was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + ELLIPSIS


def _escaped(character: str) -> str:
    acts = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    if not acts and character not in _REORDERING:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _special(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return INFINITY if value > 0 else f"-{INFINITY}"
    return ""


def _is_plain(value: float) -> bool:
    """Tell whether `value` is read more easily without an exponent."""
    return value == 0 or 1e-6 <= abs(value) < 1e9


def _decimals(value: float, digits: int) -> int:
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def _ratio_decimals(value: float) -> int:
    if abs(value) >= 1:
        return _decimals(value, 3)
    return 2 if abs(value) >= 0.1 or value == 0 else _decimals(value, 2)
