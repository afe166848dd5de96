"""The losses of a run as an SVG file that stands by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from truthgpt_services.report.plots import nice_ticks, tick_label

_WIDTH, _HEIGHT = 640.0, 360.0
_LEFT, _RIGHT, _ABOVE, _BELOW = 56.0, 604.0, 36.0, 312.0
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#ddd}"
    ".train{fill:none;stroke:#2a6fb0;stroke-width:1.5}"
    ".validation{fill:none;stroke:#c2410c;stroke-width:2;stroke-dasharray:6 3}"
    "circle,.of-validation{fill:#c2410c}.of-train{fill:#2a6fb0}"
)
_MOST_POINTS = 500
"""More of them than the plot is wide cannot be told apart, and make a file of megabytes."""

Points = Sequence[tuple[float, float]]


def loss_plot(rows: Iterable[Mapping[str, Any]]) -> str:
    """Draw the loss of each step, and that of each evaluation with marks.

    Of a long run, the means of as many parts of it as can be seen are drawn.

    Args:
        rows: as `read_metrics` returns them.
    """
    all_rows = list(rows)
    train = _thinned(_points(all_rows, "step"))
    validation = _points(all_rows, "evaluation")
    every = [*train, *validation]
    steps = nice_ticks(max((x for x, _ in every), default=1.0))
    heights = _heights([y for _, y in every])
    low = heights[0]

    def at(point: tuple[float, float]) -> str:
        x = _LEFT + (_RIGHT - _LEFT) * point[0] / steps[-1]
        y = _BELOW - (_BELOW - _ABOVE) * (point[1] - low) / (heights[-1] - low)
        return f"{x:.1f},{y:.1f}"

    parts = [
        Markup(
            '<text x="{}" y="20">Loss, nats per token: '
            '<tspan class="of-train">training</tspan>, '
            '<tspan class="of-validation">validation (dashed)</tspan></text>'
        ).format(_LEFT),
        Markup('<text x="{}" y="{}" text-anchor="end">step</text>').format(_RIGHT, _HEIGHT - 10),
    ]
    for value in heights:
        y = at((0, value)).partition(",")[2]
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(_LEFT, _RIGHT, y, y, _LEFT - 6, float(y) + 4, tick_label(value))
        )
    for value in steps:
        x = at((value, low)).partition(",")[0]
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x, _BELOW + 16, tick_label(value)
            )
        )
    for name, points in (("train", train), ("validation", validation)):
        listed = " ".join(map(at, points))
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(name, listed))
    for point in validation:
        x, _, y = at(point).partition(",")
        parts.append(Markup('<circle cx="{}" cy="{}" r="3"/>').format(x, y))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img">'
        f"<title>Loss by step</title><style>{_STYLE}</style>{Markup('').join(parts)}</svg>\n"
    )


def _heights(losses: Sequence[float]) -> list[float]:
    """Return round numbers from just below the lowest loss to just above the highest."""
    bottom, top = min(losses, default=0.0), max(losses, default=1.0)
    each = nice_ticks(top - bottom)[1]
    low = math.floor(bottom / each * (1 + 1e-9)) * each
    return [low + number * each for number in range(max(math.ceil((top - low) / each), 1) + 1)]


def _thinned(points: Points) -> Points:
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _points(rows: Iterable[Mapping[str, Any]], kind: str) -> Points:
    return [
        (row["step"], row["loss"])
        for row in rows
        if row.get("kind") == kind and isinstance(row.get("loss"), int | float)
    ]
