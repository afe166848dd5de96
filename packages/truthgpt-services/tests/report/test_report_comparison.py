"""What a user can rely on when two reports stand side by side."""

from __future__ import annotations

import io
import json
import math

import pytest
from click.testing import CliRunner
from rich.console import Console

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.commands.compare import compare
from truthgpt_services.report.compare import compare_reports
from truthgpt_services.report.files import write_report
from truthgpt_services.report.tables import print_comparison, print_evaluation
from truthgpt_services.results.schema import Replay


def changed(record, **changes):
    return record.model_copy(update=changes)


def test_the_same_report_differs_in_nothing(samples):
    """No warning and no difference; every ratio is 1, within the noise of its rounds."""
    found = compare_reports(samples.report(), samples.report())
    assert (found.warnings, found.differences) == ([], [])
    assert [name for name, _ in found.variants] == [
        "baseline",
        "quantize",
        "quantize + torch_compile",
    ]
    for _, figures in found.variants:
        assert all(each.ratio in (1.0, None) for each in figures)
        assert all(each.low is None or each.low <= 1 <= each.high for each in figures)


def test_a_ratio_is_the_second_over_the_first(samples):
    """Twice the speed is 2, half the memory 0.5; a figure that one lacks has no ratio."""
    fast = samples.baseline(
        decode_tokens_per_second=samples.samples(26.94), weights_bytes=269_030_784
    )
    found = compare_reports(samples.report(), samples.report(variants=[fast]))
    figures = {each.name: each for each in found.variants[0][1]}
    assert figures["Decode"].ratio == pytest.approx(2.0)
    assert figures["Decode"].low < 2 < figures["Decode"].high
    assert figures["Weights in memory"].ratio == 0.5
    assert (figures["Flips"].a, figures["Flips"].ratio) == (None, None)


def test_variants_that_only_one_has_are_named(samples):
    """They are not compared with anything, and not forgotten."""
    found = compare_reports(samples.report(), samples.mixed_report())
    assert (found.only_a, found.only_b) == ([], [])
    found = compare_reports(samples.report(), samples.single_report())
    assert found.only_a == ["quantize", "quantize + torch_compile"]


@pytest.mark.parametrize(
    ("part", "changes", "warning"),
    [
        ("source", {"parameters": 7}, "The models differ"),
        ("source", {"spec": "another"}, "The models may differ"),
        ("source", {"dtype": "bfloat16"}, "The baselines differ in dtype"),
        ("text", {"sha256": "0"}, "The texts differ"),
        ("text", {"window": 128}, "The texts differ"),
        ("machine", {"threads": 1}, "The machines differ"),
        ("settings", {"prompt_tokens": 64}, "The timed texts differ in length"),
    ],
)
def test_what_cannot_be_compared_is_said_plainly(part, changes, warning, samples):
    """A ratio of figures that mean different things would be believed."""
    a = samples.report()
    b = changed(a, **{part: changed(getattr(a, part), **changes)})
    found = compare_reports(a, b)
    assert [each for each in found.warnings if each.startswith(warning)] == found.warnings
    assert len(found.warnings) == 1
    (key,) = changes
    (difference,) = found.differences
    title = {"source": "model"}.get(part, part)
    assert difference.what == f"{title}: {key.replace('_', ' ')}"
    assert difference.b == str(changes[key])


def test_another_kernel_is_a_difference(samples):
    """As where the wheel of an engine took the place of code compiled on the machine."""
    made = Replay(tokens=512, engine="native", kernel="avx2", distribution="", sha256="a")
    a = changed(samples.report(), replay=made)
    b = changed(a, replay=changed(made, kernel="avx512-bf16", sha256="b"))
    (difference,) = compare_reports(a, b).differences
    assert (difference.what, difference.a, difference.b) == (
        *("replay: kernel", "avx2", "avx512-bf16"),
    )
    missing = compare_reports(samples.report(), a).differences
    assert ("replay: engine", "none", "native") in [(each.what, each.a, each.b) for each in missing]


def test_other_bounds_make_other_outcomes(samples):
    """What was accepted of one report might not be of the other."""
    a = samples.report()
    gate = changed(a.settings.gate, max_kl=0.5)
    found = compare_reports(a, changed(a, settings=changed(a.settings, gate=gate)))
    assert found.warnings == [
        "The bounds differ: what was accepted of one might not be of the other."
    ]


def test_speeds_that_were_not_measured_closely_are_not_compared(samples):
    """A quick run beside a thorough one gives no ratio of speeds, and says why."""
    found = compare_reports(samples.costly_report(), samples.quick_report())
    assert "B was not measured closely enough to compare speeds." in found.warnings
    for _, figures in found.variants:
        ratios = {each.name: each.ratio for each in figures}
        assert ratios["Decode"] is ratios["Prefill"] is ratios["First token"] is None
        assert ratios["Weights in memory"] == 1.0


def test_a_busy_machine_is_said_to_have_been_one(samples):
    """A speed that other programs slowed says little of the model."""
    a = samples.costly_report()
    busy = changed(a, load=changed(a.load, warning="Other programs keep 1.6 cores busy."))
    assert compare_reports(a, busy).warnings == [
        "B was measured on a busy machine: Other programs keep 1.6 cores busy."
    ]


def test_launches_are_what_was_repeated(samples):
    """Rounds of one process are alike, so they do not make a ratio of two runs more certain."""
    one, other = (samples.from_launches(speed, 0.02) for speed in (20.0, 40.0))
    a, b = (
        samples.report(variants=[samples.baseline(decode_tokens_per_second=each)])
        for each in (one, other)
    )
    few = compare_reports(a, b).variants[0][1][0]
    rounds = [
        changed(
            each,
            variants=[samples.baseline(decode_tokens_per_second=changed(speed, launches=[]))],
        )
        for each, speed in ((a, one), (b, other))
    ]
    many = compare_reports(*rounds).variants[0][1][0]
    assert few.ratio == pytest.approx(2.0)
    assert few.high - few.low > many.high - many.low


def test_another_version_is_a_difference_and_no_obstacle(samples):
    """Comparing versions is what many a comparison is made for."""
    a = samples.report()
    found = compare_reports(a, changed(a, versions=a.versions | {"torch": "3.0"}))
    assert found.warnings == []
    assert [(each.what, each.a, each.b) for each in found.differences] == [
        ("version: torch", "2.9.1+cpu", "3.0")
    ]


@pytest.mark.parametrize("width", [60, 120])
def test_the_comparison_is_printed_whole(width, samples, hostile):
    """Warnings, differences and each variant with both figures and their ratio, in one piece."""
    b = samples.mixed_report()
    b = changed(b, source=changed(b.source, spec=hostile))
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    print_comparison(compare_reports(samples.report(), b), "monday", hostile, console)
    text = stream.getvalue()
    assert "A is monday" in text
    assert "Not comparable: The models may differ" in " ".join(text.split())
    for figure in ("34.9", "27.9", "538 MB", "0.80×"):
        assert figure in text
    assert "\x1b" not in text


def test_a_model_alone_is_not_compared_with_itself(samples):
    """Speed, memory and perplexity; nothing of a divergence that nobody measured."""
    stream = io.StringIO()
    print_evaluation(samples.single_report(), Console(file=stream, width=80))
    text = stream.getvalue()
    for figure in ("13.5", "13.3\N{EN DASH}13.6", "213", "538 MB", "19.87", "Once upon a time"):
        assert figure in text
    for word in ("KL", "Flips", "agreement", "×"):
        assert word not in text


def test_directories_and_files_are_compared_from_the_command_line(samples, tmp_path):
    """As a user types it; `--json` gives the same as data."""
    write_report(samples.report(), tmp_path / "a")
    broken = samples.baseline(quality=samples.quality(perplexity=math.inf))
    write_report(samples.report(variants=[broken]), tmp_path / "b")
    arguments = [str(tmp_path / "a"), str(tmp_path / "b" / "report.json")]
    done = CliRunner().invoke(compare, arguments)
    assert done.exit_code == 0
    assert "Only in A: quantize, quantize + torch_compile" in done.output
    data = json.loads(CliRunner().invoke(compare, [*arguments, "--json"]).output)
    assert (data["a"], data["only_a"][0]) == (arguments[0], "quantize")
    figures = {each["name"]: each for each in data["variants"][0]["figures"]}
    assert figures["Perplexity"]["b"] == "Infinity"
    assert figures["Decode"]["ratio"] == 1.0


def test_a_report_that_is_missing_is_named(samples, tmp_path):
    """Which of the two, and where it was looked for."""
    write_report(samples.report(), tmp_path / "a")
    done = CliRunner().invoke(compare, [str(tmp_path / "a"), str(tmp_path / "no")])
    assert isinstance(done.exception, TruthGPTError)
    assert f"There is no report at {tmp_path / 'no'}" in str(done.exception)
