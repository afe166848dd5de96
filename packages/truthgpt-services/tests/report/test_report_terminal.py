"""What a user can rely on in the terminal."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from truthgpt_services.formatting import WITHIN_NOISE
from truthgpt_services.report import quantities
from truthgpt_services.report.terminal import print_report, print_short_report
from truthgpt_services.results.schema import Ratio, Result


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
    """In words, so that no color is needed."""
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


def short(report, width=80, directory="build/demo", encoding="utf-8", **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    print_short_report(report, Path(directory), Console(file=stream, width=width, **options))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("kind", ["report", "costly_report", "quick_report", "single_report"])
def test_two_steps_take_ten_lines(kind, samples):
    """What a run came to is read at a glance, in the usual terminal."""
    lines = short(getattr(samples, kind)()).splitlines()
    assert len(lines) <= 10
    assert all(cell_len(line) <= 80 for line in lines)


def test_a_warning_still_leaves_ten_lines(samples):
    """A busy machine is said to be one, beside the costs."""
    whole = samples.costly_report()
    said = "Other programs keep 1.6 of 2 CPU cores busy: small differences cannot be told."
    report = whole.model_copy(update={"load": whole.load.model_copy(update={"warning": said})})
    lines = short(report).splitlines()
    assert len(lines) <= 10
    assert f"Warning: {said}" in " ".join(" ".join(lines).split())


def test_the_first_lines_name_gain_and_cost(samples):
    """Who reads no further knows what got worse."""
    text = " ".join(short(samples.costly_report()).split())
    gain, cost = text.index("decodes 8.53×"), text.index("reads prompts 0.80×")
    assert gain < cost < text.index("quantize: accepted, at a cost (decode 8.53×, prefill 0.80×")


def test_each_step_has_one_line(samples):
    """Its name, its outcome, and why, as far as the line goes."""
    report = samples.mixed_report()
    lines = short(report).splitlines()
    for step in report.steps:
        (line,) = [line for line in lines if line.startswith(f"{step.name}: {step.outcome.value}")]
        assert len(line) <= 80
    assert "torch_compile: rejected (Neither faster nor smaller than quantize by 2 %)" in lines


def test_the_last_lines_say_where_the_report_is_and_what_to_type(samples):
    """The command can be copied, whatever the directory is called."""
    directory = "build/a rather long name of a directory, which no terminal shows on one line/demo"
    report, following = short(samples.report(), directory=directory).splitlines()[-2:]
    assert report.startswith(f"Report: {directory}/report.html")
    assert shlex.split(following.removeprefix("Next:")) == [
        *("truthgpt", "generate", directory, samples.report().sample_prompt)
    ]


def test_a_useless_result_is_not_recommended(samples):
    """What predicts non-finite numbers cannot generate."""
    broken = samples.quantized(quality=samples.quality(perplexity=float("inf")))
    result = Result(variant="quantize", steps=["quantize"], summary="Accepted.")
    text = short(samples.report(variants=[samples.baseline(), broken], result=result))
    assert "it is of no use" in text
    assert "truthgpt generate" not in text


def test_a_quick_run_claims_no_speed(samples):
    """Neither in few lines nor in full."""
    for text in (short(samples.quick_report()), printed(samples.quick_report())):
        assert "not measured closely enough" in " ".join(text.split())
        assert "8.5" not in text
        assert "0.80×" not in text


def test_in_full_costs_control_and_load_are_told(samples):
    """Who reads only the terminal is not told less than the page tells."""
    text = " ".join(printed(samples.costly_report(), 120).split())
    assert "accepted, at a cost" in text
    assert "cost: reads prompts 0.80× as fast (0.78 to 0.82×); first token" in text
    assert "Decode, control" in text
    assert "5 launches of 7 rounds" in text
    assert "0.1 before, 0.2 while measuring (median), 0.9 at most, of 2" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_foreign_text_never_acts_in_the_short_report(encoding, samples, hostile):
    """Nor does it break a line into two, in any encoding."""
    step = samples.quantize_step(name=f"a\n{hostile}", reason=hostile, costs=[hostile])
    report = samples.report(
        steps=[step], sample_prompt=hostile, result=Result(variant="", steps=[], summary="Done.")
    )
    text = short(report, 120, f"build/{hostile}", encoding)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text.splitlines()) == 4


def test_the_short_report_is_printed_in_ascii(samples):
    """Arrow, times sign and ellipsis have plain forms."""
    text = short(samples.costly_report(), encoding="ascii", force_terminal=False)
    assert "first token 161 ms -> 197 ms" in " ".join(text.split())
    assert "(decode 8.53x, prefill 0.80x, weights 0.28x)" in text
