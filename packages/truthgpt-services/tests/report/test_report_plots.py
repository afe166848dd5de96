"""What a user can rely on in the plots."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.report import plots

numbers = st.floats(allow_nan=True, allow_infinity=True)
names = st.text(max_size=60)


def drawn(name: str, *values: float) -> list[str]:
    one, two, three = values
    return [
        str(plots.decode_speed([plots.Speeds(name, one, two, three, [one, two, three])])),
        str(plots.memory([plots.Memory(name, one, two)])),
        str(plots.speed_against_kl([plots.Tradeoff(name, one, two, three, one, two)], three)),
        str(plots.layers([plots.Layers(name, 1, [one, two, three])])),
    ]


@settings(deadline=None)
@given(names, numbers, numbers, numbers)
def test_anything_can_be_drawn(name, one, two, three):
    """No value and no name breaks a plot or leaves its frame."""
    for svg in drawn(name, one, two, three):
        assert not re.search(r'="-?(nan|inf)', svg)
        for attribute in ("x", "x1", "x2", "cx"):
            for at in re.findall(rf' {attribute}="([^"]*)"', svg):
                assert -10 <= float(at) <= plots.WIDTH + 10


@pytest.mark.parametrize("position", range(4))
def test_names_are_escaped(position, hostile, parse):
    """A model's name cannot become markup, in labels, titles or descriptions."""
    svg = drawn(hostile, 1.0, 2.0, 3.0)[position]
    assert "<script" not in svg
    parse(svg)


def test_every_round_is_a_dot():
    """The plot of speeds shows what was measured and not only its summary."""
    rounds = [13.1, 13.5, 13.9, 13.4]
    svg = plots.decode_speed([plots.Speeds("baseline", 13.5, 13.2, 13.8, rounds)])
    assert svg.count('class="dot"') == 4


def test_neighbors_have_different_marks():
    """Variants are told apart by shape, without color."""
    assert len({str(plots.marker(index, 0, 0, 5)) for index in range(6)}) == 6


def test_the_bound_is_drawn_or_said_to_be_beyond():
    """A plot never hides where the bound of quality lies."""
    near = plots.speed_against_kl([plots.Tradeoff("a", 0.04, 0.001, 9, 8, 10)], 0.05)
    far = plots.speed_against_kl([plots.Tradeoff("a", 0.001, 0.0001, 9, 8, 10)], 0.05)
    assert 'class="bound"' in near
    assert 'class="bound"' not in far
    assert "bound 0.05" in far
    assert "further right" in far


def test_a_long_name_is_cut_in_the_plot_and_whole_in_its_title():
    """A label never runs over the figure beside it, and nothing is lost."""
    name = "quantize + torch_compile + something with a very long name"
    svg = plots.memory([plots.Memory(name, 1e6, 2e6)])
    assert f"<title>{name}</title>" in svg


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e300))
def test_ticks_reach_the_largest_value(top):
    """Every value lies within its axis, and an axis has only a few ticks."""
    ticks = plots.nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6)
    assert 2 <= len(ticks) <= 7
    assert all(math.isfinite(tick) for tick in ticks)
    assert len({plots.tick_label(tick) for tick in ticks}) == len(ticks)


def test_a_layer_that_diverges_more_is_drawn_higher():
    """Each decade takes as much room as the next, so that a small divergence can be seen too."""
    svg = plots.layers([plots.Layers("a", 0, [0.001, 0.01, 0.1])])
    (points,) = re.findall(r'points="([^"]*)"', svg)
    low, middle, high = (float(point.split(",")[1]) for point in points.split())
    assert low > middle > high
    assert low - middle == pytest.approx(middle - high, abs=0.2)
