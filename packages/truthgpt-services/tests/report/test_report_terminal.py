"""What a user can rely on in the terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from truthgpt_services.report import quantities
from truthgpt_services.report.formatting import WITHIN_NOISE
from truthgpt_services.report.schema import Ratio, Result
from truthgpt_services.report.terminal import print_report


def printed(report, width=80, encoding="utf-8", **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    print_report(report, Console(file=stream, width=width, **options))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("kind", ["report", "mixed_report", "single_report"])
def test_no_figure_is_cut(kind, width, samples):
    """Whatever the width, every figure and every interval is there in one piece."""
    report = getattr(samples, kind)()
    text = printed(report, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for group in quantities.groups(report):
        for row in group.rows:
            for cell in row.cells:
                for part in (cell.figure, cell.interval, cell.ratio, cell.ratio_interval):
                    assert part in text


def test_three_variants_stand_beside_each_other_at_80_columns(samples):
    """The usual terminal shows the usual run as one table, a line for each figure."""
    text = printed(samples.report(), 80)
    assert text.count("Weights in memory") == 1
    assert "27.9 (27.5\N{EN DASH}28.3)" in text


def test_many_variants_continue_in_another_table(samples):
    """More variants than fit are shown below, with the baseline again beside them."""
    variants = [samples.baseline()]
    variants += [samples.quantized().model_copy(update={"name": f"step{n}"}) for n in range(9)]
    text = printed(samples.report(variants=variants), 80)
    assert all(f"step{n}" in text for n in range(9))
    assert text.count("Weights in memory") == len(re.findall(r"^ +baseline ", text, re.M)) > 1


def test_steps_are_told_with_outcome_and_reason(samples):
    """Why a step was rejected stands in the terminal, not only in the page."""
    report = samples.mixed_report()
    text = " ".join(printed(report).split())
    for step in report.steps:
        assert step.outcome.value in text
        assert step.reason in text
    assert "180 of 211 linear layers covered" in text
    assert "and 27 more" in text


@pytest.mark.parametrize("low", [0.98, 1.01])
def test_no_difference_is_said_exactly_when_the_interval_spans_one(low, samples):
    """The terminal judges noise as the page does."""
    text = printed(samples.unlike(median=1.03, low=low, high=1.05))
    assert (WITHIN_NOISE in text) is (low < 1)


def test_a_step_that_was_accepted_anyway_says_so_and_when_it_breaks_even(samples):
    """Who reads only the terminal is not told less than the page tells."""
    step = samples.compile_step(overruled=True, reason="Accepted because all steps are.")
    text = " ".join(printed(samples.report(steps=[step]), 120).split())
    assert "accepted anyway" in text
    assert "break-even after 10,304 decoded tokens (8,904 to 12,111)" in text


def test_a_result_that_predicts_no_numbers_is_called_useless(samples):
    """In words, so that no colour is needed."""
    broken = samples.quantized(quality=samples.quality(perplexity=float("inf")))
    result = Result(variant="quantize", steps=["quantize"], summary="Accepted.")
    text = printed(samples.report(variants=[samples.baseline(), broken], result=result), 120)
    assert "not finite numbers: it is of no use" in text


def test_a_pipe_gets_no_escape_codes(samples):
    """Piped into a file, the report is plain text."""
    assert "\x1b" not in printed(samples.mixed_report(), force_terminal=False)


def test_an_ascii_pipe_gets_ascii(samples):
    """A stream that cannot take a times sign does not lose the report at the end of a run."""
    text = printed(samples.mixed_report(), encoding="ascii", force_terminal=False)
    assert "2.07x (2.02-2.12)" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_foreign_text_is_printed_and_never_acts(terminal, samples, hostile):
    """Neither rich's markup nor escape sequences in a name or reason take effect."""
    bad = samples.quantized().model_copy(update={"name": hostile})
    step = samples.quantize_step(name=hostile, reason=hostile, variant=hostile, notes=[hostile])
    report = samples.report(
        variants=[samples.baseline(), bad],
        steps=[step],
        result=Result(variant=hostile, steps=[], summary=hostile),
    )
    text = printed(report, 120, force_terminal=terminal)
    assert "[/bold][red]" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_a_ratio_that_is_not_a_number_is_printed_as_that(samples):
    """A broken measurement does not stop the report."""
    nan = Ratio(median=float("nan"), low=float("nan"), high=float("nan"))
    broken = samples.quantized().model_copy(update={"decode_ratio": nan})
    assert "NaN" in printed(samples.report(variants=[samples.baseline(), broken]))
