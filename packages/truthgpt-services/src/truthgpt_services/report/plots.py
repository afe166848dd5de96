"""Draws the report's plots as inline SVG.

Each function takes plain values and returns markup that is safe to put in a page:
every text is escaped. Colors come from the page's CSS classes. Nothing is told
by color alone: variants differ by the shape of their mark, bars by hatching.

A plot is 360 units wide, which is a phone's width, so that its text keeps its size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truthgpt_services.formatting import bound as bound_text
from truthgpt_services.formatting import interval, number, shortened, size, visible

WIDTH = 360.0
_NAME_LENGTH = 26
_TOP = 1e300
"""Larger values are drawn as this one, so that sums of them stay finite."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """The decode speed of one variant: every round, their median, and its interval."""

    name: str
    median: float
    low: float
    high: float
    values: Sequence[float]
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one variant, in bytes."""

    name: str
    weights: float
    peak: float
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Speed and divergence of one variant."""

    name: str
    kl: float
    kl_error: float
    speed: float
    low: float
    high: float
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Layers:
    """The divergence of one variant after each decoder layer; `index` chooses its mark."""

    name: str
    index: int
    values: Sequence[float]
    marked: bool = False


def decode_speed(variants: Sequence[Speeds]) -> Markup:
    """Draw every round as a dot, the interval as a band, and the median as a line."""
    top = _reach(value for one in variants for value in (*one.values, one.high, one.median))
    ticks = nice_ticks(top)
    left, right, row = 6.0, WIDTH - 10.0, 66.0
    bottom = row * len(variants) + 4

    def across(value: float) -> float:
        return left + (right - left) * _part(value, ticks[-1])

    parts = [_axis(ticks, across, 0, bottom, "tok/s")]
    for index, one in enumerate(variants):
        y = index * row
        figure = f"{number(one.median)} tok/s"
        parts.append(_row_head(index, y, one.name, figure, marked=one.marked))
        drawn = [value for value in one.values if math.isfinite(value)]
        if math.isfinite(one.low) and math.isfinite(one.high):
            start, end = across(one.low), across(one.high)
            parts.append(
                _tag(
                    "rect",
                    class_="band",
                    x=min(start, (start + end) / 2 - 1),
                    y=y + 24,
                    width=max(end - start, 2),
                    height=32,
                )
            )
        if math.isfinite(one.median):
            x = across(one.median)
            parts.append(_tag("line", class_="median", x1=x, x2=x, y1=y + 22, y2=y + 58))
        step = 24 / max(len(drawn) - 1, 1)
        parts.extend(
            _tag("circle", class_="dot", cx=across(value), cy=y + 28 + position * step, r=2.3)
            for position, value in enumerate(drawn)
        )
    description = "; ".join(
        f"{one.name}: {number(one.median)}, interval {interval(one.low, one.high)}"
        for one in variants
    )
    return _figure("decode", bottom + 32, "Decode speed in tokens per second", description, parts)


def memory(variants: Sequence[Memory]) -> Markup:
    """Draw weights and peak memory as a pair of bars for each variant."""
    top = _reach(value for one in variants for value in (one.weights, one.peak)) or 1.0
    row, left, longest = 62.0, 6.0, WIDTH - 84.0
    parts = [
        _tag(
            "defs",
            _tag(
                "pattern",
                _tag("path", class_="hatch", d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2"),
                id="hatch",
                width=6,
                height=6,
                patternUnits="userSpaceOnUse",
            ),
        )
    ]
    for index, one in enumerate(variants):
        y = index * row
        parts.append(_row_head(index, y, one.name, "", marked=one.marked))
        for offset, kind, value in ((22, "weights", one.weights), (38, "peak", one.peak)):
            length = longest * _part(_finite(value), top)
            parts.append(
                _tag(
                    "rect",
                    class_=f"bar {kind}",
                    x=left,
                    y=y + offset,
                    width=max(length, 1),
                    height=12,
                )
            )
            parts.append(
                _text(left + max(length, 1) + 6, y + offset + 10, size(value), class_="figure")
            )
    bottom = row * len(variants) + 6
    for x, kind, label in ((left, "weights", "weights"), (120.0, "peak", "peak of the process")):
        parts.append(_tag("rect", class_=f"bar {kind}", x=x, y=bottom + 8, width=18, height=10))
        parts.append(_text(x + 24, bottom + 17, label, class_="tick"))
    description = "; ".join(
        f"{one.name}: weights {size(one.weights)}, peak {size(one.peak)}" for one in variants
    )
    return _figure("memory", bottom + 26, "Memory of weights and at the peak", description, parts)


def speed_against_kl(variants: Sequence[Tradeoff], bound: float) -> Markup:
    """Draw each variant by its divergence and speed, with the bound as a dashed line."""
    finite = [
        (index, one)
        for index, one in enumerate(variants)
        if math.isfinite(one.kl) and math.isfinite(one.speed)
    ]
    reach = _reach(one.kl + _error(one) for _, one in finite)
    with_bound = 0 < bound < math.inf and (reach == 0 or bound <= 4 * reach)
    across_ticks = nice_ticks(max(reach, bound) if with_bound else reach)
    up_ticks = nice_ticks(_reach(v for _, one in finite for v in (one.speed, _finite(one.high))))
    left, right, above, below = 40.0, WIDTH - 14.0, 24.0, 204.0

    def across(value: float) -> float:
        return left + (right - left) * _part(value, across_ticks[-1])

    def up(value: float) -> float:
        return below - (below - above) * _part(value, up_ticks[-1])

    parts = [_axis(across_ticks, across, above, below, "KL to the baseline, nats per token")]
    parts.append(_text(0, 10, "tok/s", class_="tick"))
    for value in up_ticks:
        y = up(value)
        parts.append(_tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(_text(left - 6, y + 4, tick_label(value), class_="tick", anchor="end"))
    if with_bound:
        x = across(bound)
        parts.append(_tag("line", class_="bound", x1=x, x2=x, y1=above, y2=below))
        before = x > WIDTH / 2
        parts.append(
            _text(
                x + (-5 if before else 5),
                above + 10,
                f"bound {bound_text(bound)}",
                class_="tick",
                anchor="end" if before else "start",
            )
        )
    elif 0 < bound < math.inf:
        beyond = f"bound {bound_text(bound)} \N{RIGHTWARDS ARROW}"
        parts.append(_text(right, above - 8, beyond, class_="tick", anchor="end"))
    for index, one in finite:
        x, y = across(one.kl), up(one.speed)
        if math.isfinite(one.low) and math.isfinite(one.high):
            parts.append(
                _tag("line", class_="whisker", x1=x, x2=x, y1=up(one.low), y2=up(one.high))
            )
        error = _error(one)
        start, end = across(max(one.kl - error, 0)), across(one.kl + error)
        parts.append(_tag("line", class_="whisker", x1=start, x2=end, y1=y, y2=y))
        parts.append(marker(index, x, y, 6, marked=one.marked))
    bottom = below + 44
    for index, one in enumerate(variants):
        place = f"KL {number(one.kl)}"
        if not any(index == position for position, _ in finite):
            place += ", not drawn"
        parts.append(_row_head(index, bottom, one.name, place, marked=one.marked))
        bottom += 20
    description = "; ".join(
        f"{one.name}: KL {number(one.kl)}, {number(one.speed)} tok/s" for one in variants
    )
    if not with_bound:
        description += f"; the bound of {bound_text(bound)} is further right than the plot reaches"
    return _figure("tradeoff", bottom + 6, "Speed against divergence", description, parts)


def layers(variants: Sequence[Layers]) -> Markup:
    """Draw how far each variant is from the baseline after each layer, in decades."""
    count = max((len(one.values) for one in variants), default=1)
    lowest, highest = _decades(value for one in variants for value in one.values)
    left, right, above, below = 44.0, WIDTH - 14.0, 24.0, 204.0

    def across(layer: int) -> float:
        return left + (right - left) * (layer - 1) / max(count - 1, 1)

    def up(value: float) -> float:
        part = (math.log10(value) - lowest) / (highest - lowest) if value > 0 else 0.0
        return below - (below - above) * min(max(part, 0.0), 1.0)

    parts = [_text(0, 10, "nats per token", class_="tick")]
    for decade in range(lowest, highest + 1):
        y = up(10.0**decade)
        parts.append(_tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        label = tick_label(10.0**decade)
        parts.append(_text(left - 6, y + 4, label, class_="tick", anchor="end"))
    step = max(1, math.ceil(count / 6))
    ticks = [layer for layer in range(1, count, step) if count - layer >= step / 2]
    parts.extend(
        _text(across(layer), below + 14, str(layer), class_="tick", anchor="middle")
        for layer in (*ticks, count)
    )
    parts.append(_text(right, below + 28, "layer", class_="tick", anchor="end"))
    for one in variants:
        finite = [
            (layer, across(layer), up(value))
            for layer, value in enumerate(one.values, start=1)
            if math.isfinite(value)
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in finite)
        parts.append(_tag("polyline", class_="line", points=points))
        parts.extend(
            marker(one.index, x, y, 4, marked=one.marked)
            for layer, x, y in finite
            if (layer - 1) % step == 0 or layer == len(one.values)
        )
    bottom = below + 44
    for one in variants:
        last = f"last layer {number(one.values[-1])}" if one.values else ""
        parts.append(_row_head(one.index, bottom, one.name, last, marked=one.marked))
        bottom += 20
    description = "; ".join(
        f"{one.name}: {', '.join(number(value) for value in one.values)}" for one in variants
    )
    return _figure("layers", bottom + 6, "Divergence after each layer", description, parts)


def choices(layers: Sequence[tuple[str, float]]) -> Markup:
    """Draw what layers diverge if changed alone, in decades, and what was chosen for each.

    Args:
        layers: choice and divergence, in the model's order.
    """
    kinds = list(dict.fromkeys(choice for choice, _ in layers))
    lowest, highest = _decades(value for _, value in layers)
    left, right, above, below = 44.0, WIDTH - 14.0, 24.0, 184.0
    parts = [_text(0, 10, "nats per token", class_="tick")]
    for decade in range(lowest, highest + 1):
        y = below - (below - above) * (decade - lowest) / (highest - lowest)
        parts.append(_tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        label = tick_label(10.0**decade)
        parts.append(_text(left - 6, y + 4, label, class_="tick", anchor="end"))
    for at, (choice, value) in enumerate(layers):
        x = left + (right - left) * at / max(len(layers) - 1, 1)
        part = (math.log10(value) - lowest) / (highest - lowest) if value > 0 else 0.0
        y = below - (below - above) * min(max(part, 0.0), 1.0)
        parts.append(marker(kinds.index(choice), x, y, 3))
    parts.append(_text(right, below + 18, "layer", class_="tick", anchor="end"))
    bottom = below + 40
    for index, kind in enumerate(kinds):
        count = sum(choice == kind for choice, _ in layers)
        parts.append(_row_head(index, bottom, kind, f"{count} layers", marked=False))
        bottom += 20
    description = "; ".join(f"{choice} {number(value)}" for choice, value in layers)
    return _figure("choices", bottom + 6, "What was chosen for each layer", description, parts)


def marker(index: int, x: float, y: float, radius: float, *, marked: bool = False) -> Markup:
    """Draw the mark of the variant at `index`; its shape tells it from its neighbors."""
    class_ = "mark marked" if marked else "mark"
    shape = index % 6
    if shape == 0:
        return _tag("circle", class_=class_, cx=x, cy=y, r=radius * 0.9)
    if shape == 1:
        side = radius * 1.6
        return _tag("rect", class_=class_, x=x - side / 2, y=y - side / 2, width=side, height=side)
    corners = {2: (3, -90.0), 3: (4, -90.0), 4: (3, 90.0), 5: (6, 0.0)}
    count, turn = corners[shape]
    points = " ".join(
        f"{x + radius * 1.15 * math.cos(angle):.1f},{y + radius * 1.15 * math.sin(angle):.1f}"
        for angle in (math.radians(turn + 360 / count * corner) for corner in range(count))
    )
    return _tag("polygon", class_=class_, points=points)


def lone_marker(index: int, *, marked: bool = False) -> Markup:
    """Draw the mark of a variant to stand in a line of text."""
    drawn = marker(index, 8, 8, 6, marked=marked)
    return _tag("svg", drawn, class_="lone", viewBox="0 0 16 16", aria_hidden="true")


def nice_ticks(top: float, count: int = 4) -> list[float]:
    """Return round numbers from 0 to at least `top`, about `count` steps apart."""
    top = _clamped(top)
    if top < 1e-300:
        return [0.0, 1.0]
    rough = top / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(
        (factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0) if factor * magnitude >= rough),
        10 * magnitude,
    )
    return [step * position for position in range(math.ceil(top / step * (1 - 1e-9)) + 1)]


def tick_label(value: float) -> str:
    """Write a round number as short as it can be."""
    if value and not 1e-4 <= value < 1e6:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{float(f'{value:.6g}'):,.10f}".rstrip("0").rstrip(".")


def _decades(values: Iterable[float]) -> tuple[int, int]:
    """Return the powers of ten between which an axis shows all values that are not nothing."""
    drawn = [value for value in values if 0 < value < math.inf]
    highest = min(math.ceil(math.log10(max(drawn, default=1.0))), sys.float_info.max_10_exp)
    lowest = math.floor(math.log10(min(drawn, default=0.1)))
    # What is a millionth of the largest is as good as nothing.
    return min(max(lowest, highest - 6), highest - 1), highest


def _axis(
    ticks: Sequence[float],
    across: Callable[[float], float],
    above: float,
    below: float,
    title: str,
) -> Markup:
    parts = []
    for position, value in enumerate(ticks):
        x = across(value)
        parts.append(_tag("line", class_="grid", x1=x, x2=x, y1=above, y2=below))
        anchor = "start" if x < 20 else "end" if position == len(ticks) - 1 else "middle"
        parts.append(_text(x, below + 14, tick_label(value), class_="tick", anchor=anchor))
    parts.append(_text(across(ticks[-1]), below + 28, title, class_="tick", anchor="end"))
    return Markup("").join(parts)


def _row_head(index: int, y: float, name: str, figure: str, *, marked: bool) -> Markup:
    short = shortened(name, _NAME_LENGTH)
    content: Markup | str = short
    if short != name:
        content = Markup("{}{}").format(_tag("title", name), short)
    parts = [
        marker(index, 12, y + 11, 5, marked=marked),
        _text(24, y + 15, content, class_="name marked" if marked else "name"),
    ]
    if figure:
        parts.append(_text(WIDTH - 4, y + 15, figure, class_="figure", anchor="end"))
    return Markup("").join(parts)


def _figure(
    key: str, height: float, title: str, description: str, parts: Sequence[Markup]
) -> Markup:
    return _tag(
        "svg",
        _tag("title", title, id=f"{key}-title")
        + _tag("desc", description, id=f"{key}-desc")
        + Markup("").join(parts),
        class_="plot",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def _text(
    x: float, y: float, content: Markup | str, *, class_: str, anchor: str = "start"
) -> Markup:
    return _tag("text", content, class_=class_, x=x, y=y, text_anchor=anchor)


def _tag(name: str, content: Markup | str = "", /, **attributes: float | str) -> Markup:
    """Build an element; `class_` stands for class, and `_` for `-`."""
    listed = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"),
            value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip("."),
        )
        for key, value in attributes.items()
    )
    written = content if isinstance(content, Markup) else visible(content)
    return Markup("<{0}{1}>{2}</{0}>").format(name, listed, written)


def _reach(values: Iterable[float]) -> float:
    """Return the largest finite value, or 0."""
    return max((_clamped(value) for value in values if math.isfinite(value)), default=0.0)


def _part(value: float, whole: float) -> float:
    return min(_clamped(value) / whole, 1.0)


def _error(one: Tradeoff) -> float:
    return max(_finite(one.kl_error), 0.0)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _clamped(value: float) -> float:
    return min(max(value, 0.0), _TOP) if not math.isnan(value) else 0.0
