"""What a user can rely on in the page."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from truthgpt_services.formatting import WITHIN_NOISE
from truthgpt_services.report.html import common_start, render_html
from truthgpt_services.report.terminal import print_report
from truthgpt_services.results.schema import (
    BreakEven,
    Outcome,
    Ratio,
    Replay,
    Result,
    Skipped,
    StepCoverage,
)

MADE = Replay(
    tokens=512,
    engine="native",
    kernel="avx2",
    distribution="truthgpt-plugin-native 0.1.0",
    sha256="",
)
KINDS = ["report", "mixed_report", "single_report", "costly_report", "quick_report"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_refers_to_nothing_outside_itself(kind, samples, parse):
    """The page reads the same on a machine without a network, in ten years."""
    page = parse(render_html(getattr(samples, kind)()))
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert not attributes.get(name)
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert "@import" not in "".join(page.styles)
    assert re.findall(r"url\(([^)]*)\)", "".join(page.styles)) == ["#hatch"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed(kind, samples, parse):
    """Every tag is closed, every id is there once, and labels point at something."""
    page = parse(render_html(getattr(samples, kind)()))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)


def test_everything_in_the_report_is_on_the_page(samples, parse):
    """Every variant, step, outcome and reason can be found."""
    report = samples.mixed_report()
    text = parse(render_html(report)).text
    for variant in report.variants:
        assert variant.name in text
        assert " ".join(variant.measured.sample.split()[-3:]) in text
    for step in report.steps:
        for said in (step.name, step.distribution, step.outcome.value, step.reason, *step.notes):
            assert said in text
    for fact in (report.text.sha256, report.machine.cpu, *report.versions, report.result.summary):
        assert fact in text
    assert "Schema version 1" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replay": MADE}, "512 tokens on native, truthgpt-plugin-native 0.1.0, avx2"),
        ({"replay_missing": "the worker died"}, "nothing: the worker died"),
    ],
)
def test_what_was_recorded_is_on_the_page_and_in_the_terminal(changes, said, samples, parse):
    """On which engine and kernel, or why nothing was."""
    report = samples.report().model_copy(update=changes)
    assert said in parse(render_html(report)).text
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    assert f"Recorded for replay: {said}" in console.file.getvalue()


def test_skipped_layers_stand_under_their_reason(samples, parse):
    """What a step left alone can be unfolded, each reason once, the commonest first."""
    text = parse(render_html(samples.mixed_report())).text
    assert "180 of 211 linear layers" in text
    often = text.index("30 left alone: in_features is not a multiple of 64")
    assert often < text.index("1 left alone: shares its weight with the embedding")
    assert "model.layers.29.mlp.down_proj" in text


@pytest.mark.parametrize(
    ("low", "high", "same"),
    [(0.98, 1.02, True), (1, 1.1, True), (0.9, 1, True), (1.001, 1.1, False), (0.9, 0.99, False)],
)
def test_no_difference_is_said_exactly_when_the_interval_spans_one(low, high, same, samples, parse):
    """A ratio that the noise explains is not presented as a gain or a loss."""
    report = samples.unlike(median=(low + high) / 2, low=low, high=high)
    assert (WITHIN_NOISE in parse(render_html(report)).text) is same


def test_a_result_without_a_difference_does_not_boast(samples):
    """The large figure of the result says so if its speed-up is noise."""
    report = samples.unlike(median=1.01, low=0.97, high=1.04)
    result = Result(variant="quantize", steps=["quantize"], summary="Smaller, not faster.")
    html = render_html(report.model_copy(update={"result": result}))
    assert f'<span class="large words">{WITHIN_NOISE}</span>' in html


def test_a_result_that_is_the_baseline_is_not_compared_with_itself(samples, parse):
    """With one variant there is no ratio to show."""
    html = render_html(samples.single_report())
    assert 'class="ratio"' not in html
    assert WITHIN_NOISE not in html
    assert html.count('class="plot"') == 3


def test_a_saved_model_is_compared_with_the_source_file(samples, parse):
    """`smaller` says against which: the loaded baseline or the file it came from."""
    text = parse(render_html(samples.report())).text
    assert "Source file" in text
    assert "\N{MULTIPLICATION SIGN} against the source file" in text
    assert "The source file (hub) is 269 MB. Loaded as float32, the baseline takes 538 MB" in text


def test_foreign_text_is_shown_and_never_acts(samples, parse, hostile):
    """Markup in names, reasons and generated text is read as text, in the page and its plots."""
    bad = samples.quantized(sample=f"a {hostile}").model_copy(update={"name": hostile})
    step = samples.quantize_step(
        name=hostile,
        reason=hostile,
        distribution=hostile,
        variant=hostile,
        notes=[hostile],
        costs=[hostile],
        options={hostile: [hostile]},
        coverage=StepCoverage(
            unit=hostile, covered=1, total=2, skipped=[Skipped(name=hostile, reason=hostile)]
        ),
    )
    base = samples.report()
    html = render_html(
        samples.report(
            variants=[samples.baseline(sample=hostile), bad],
            steps=[step],
            result=Result(variant=hostile, steps=[hostile], summary=hostile),
            source=base.source.model_copy(update={"spec": hostile, "dtype": hostile}),
            versions={hostile: hostile},
            command=[hostile],
            sample_prompt=hostile,
            load=samples.costly_report().load.model_copy(update={"warning": hostile}),
        )
    )
    page = parse(html)
    assert "<script" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "{{7*7}}" in html
    assert "<script>alert(1)</script>" in page.text


def test_a_measurement_that_is_not_a_number_is_shown_as_that(samples, parse):
    """A variant whose perplexity overflowed still has its page, and is over the bounds."""
    broken = samples.quantized(
        quality=samples.quality(perplexity=math.inf, kl_mean=math.nan, kl_mean_error=math.nan)
    )
    text = parse(render_html(samples.report(variants=[samples.baseline(), broken]))).text
    assert "NaN" in text
    assert "not a finite number" in text
    assert "not drawn" in text


def test_a_result_that_predicts_no_numbers_is_called_useless(samples, parse):
    """Accepted because all steps were to be, it is not presented as a success."""
    broken = samples.quantized(quality=samples.quality(kl_mean=math.nan))
    report = samples.report(
        variants=[samples.baseline(), broken],
        steps=[samples.quantize_step(overruled=True, reason="Accepted because all steps are.")],
        result=Result(variant="quantize", steps=["quantize"], summary="Accepted."),
    )
    page = parse(render_html(report))
    assert "The predictions of quantize are not finite numbers: it is of no use." in page.text
    assert "accepted anyway" in page.text
    assert page.named("p")[1]["class"] == "alarm"


def test_each_figure_of_quality_has_its_error(samples, parse):
    """Perplexity, KL, its tail, agreement and flips, read at once and one token at a time."""
    text = parse(render_html(samples.report())).text
    for error in (
        *("19.90 ± 1.9", "1.001× (± 0.00082)", "0.00142 ± 0.00006", "0.023 ± 0.004"),
        *("98.3 % ± 0.29 %", "1.0 % ± 0.21 %", "14.82 ± 4.2", "0.00151 ± 0.00021"),
        *("0.012 ± 0.003", "98.2 % ± 1.2 %", "1.0 % ± 1.0 %"),
    ):
        assert error in text


def test_flips_over_their_bound_are_said_to_be(samples, parse):
    """A bound that the user set is held against the figure, as the gate does."""
    settings = samples.report().settings
    gate = settings.gate.model_copy(update={"max_flips": 0.005})
    report = samples.report(settings=settings.model_copy(update={"gate": gate}))
    assert "over the bound of 0.5 %" in parse(render_html(report)).text
    assert "over the bound" not in parse(render_html(samples.report())).text


def test_layers_are_drawn_and_stand_in_a_table(samples, parse):
    """Who cannot see the plot reads the same numbers, and why one variant has none."""
    blind = samples.compiled().model_copy(
        update={"layers": None, "layers_missing": "it has 28 layers, and the baseline 30"}
    )
    report = samples.report(variants=[samples.baseline(), samples.quantized(), blind])
    page = parse(render_html(report))
    first, last = report.variants[1].layers[0], report.variants[1].layers[-1]
    assert f"1 {first.kl_mean:.4f} ± {first.kl_mean_error:.4f}" in page.text
    assert f"30 {last.kl_mean:.5f} ± {last.kl_mean_error:.5f}" in page.text
    assert "quantize + torch_compile: it has 28 layers, and the baseline 30." in page.text
    assert "nostalgebraist" in page.text


@pytest.mark.parametrize(
    ("even", "told"),
    [
        ({"tokens": 1234, "fewest": 980, "most": 1600}, "after 1,234 decoded tokens (980 to 1,600"),
        ({"tokens": None, "fewest": None, "most": None}, "never"),
        ({"tokens": 0, "fewest": 0, "most": 0}, "at once"),
    ],
)
def test_a_step_says_when_it_breaks_even(even, told, samples, parse):
    """A minute of compiling is worth it from some number of tokens on, or never."""
    step = samples.compile_step(break_even=BreakEven(extra_seconds=12.0, **even))
    assert f"Break-even {told}" in parse(render_html(samples.report(steps=[step]))).text


def test_every_outcome_has_a_word_and_not_only_a_colour(samples, parse):
    """Outcomes can be told apart without color."""
    steps = [samples.unmeasured_step(f"s{i}", one, "Because.") for i, one in enumerate(Outcome)]
    text = parse(render_html(samples.report(steps=steps))).text
    assert all(outcome.value in text for outcome in Outcome)


def test_the_table_names_its_rows_and_columns(samples, parse):
    """A screen reader can say which quantity and which variant a figure belongs to."""
    page = parse(render_html(samples.report()))
    scopes = [attributes.get("scope") for attributes in page.named("th")]
    assert set(scopes) == {"col", "row", "rowgroup"}
    # The table of figures, and that of the layers of two variants.
    assert scopes.count("col") == 4 + 3


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [("a cat sat", "a cat sat", 9), ("a cat sat", "a car", 2), ("a", "b", 0), ("a b", "a b c", 2)],
)
def test_samples_part_at_a_whole_word(one, other, length):
    """The mark of what differs begins at the word that differs."""
    assert common_start(one, other) == length


def test_the_same_text_is_said_to_be_the_same(samples, parse):
    """If the optimized model writes what the baseline writes, the page says it."""
    report = samples.report()
    same = samples.quantized(sample=report.variants[0].measured.sample)
    result = Result(variant="quantize", steps=["quantize"], summary="Faster.")
    page = parse(render_html(samples.report(variants=[samples.baseline(), same], result=result)))
    assert "Both wrote the same, character by character." in page.text
    assert not page.named("mark")


def tiles(page):
    """The key figures of a page that are marked as a gain or a cost."""
    kinds = [attributes.get("class") for attributes in page.named("div")]
    return kinds.count("gain"), kinds.count("cost")


def test_what_got_worse_stands_beside_what_was_gained(samples, parse):
    """Slower prompts, a later first token and larger files are in the headline and are tiles."""
    page = parse(render_html(samples.costly_report()))
    headline = page.text.partition("KL 0.0014")[0]
    for said in ("decodes 8.53×", "reads prompts 0.80×", "161 ms → 197 ms", "source file 98.4 MB"):
        assert said in headline
    assert tiles(page) == (3, 3)
    assert "Prefill speed cost 0.80× 1,032 against 1,291 tok/s" in page.text
    assert "First token cost 197 ms against 161 ms" in page.text
    assert "Saved files cost 1.54× 151 MB against 98.4 MB of the source file" in page.text


def test_a_result_without_costs_names_none(samples, parse):
    """What only gained is not called costly."""
    page = parse(render_html(samples.report(variants=[samples.baseline(), samples.quantized()])))
    assert tiles(page)[1] == 0
    assert "at a cost" not in page.text


def test_a_step_with_costs_is_accepted_at_a_cost(samples, parse):
    """In its outcome, and each cost with its figure."""
    text = parse(render_html(samples.costly_report())).text
    assert "accepted, at a cost quantize" in text
    assert "Cost reads prompts 0.80× as fast (0.78 to 0.82×) ; first token 161 ms" in text


def test_the_control_shows_what_no_difference_looks_like(samples, parse):
    """The baseline against itself stands in the table, and its launches can be unfolded."""
    text = parse(render_html(samples.costly_report())).text
    assert "Decode, control" in text
    assert "1.00× (0.98\N{EN DASH}1.02)" in text
    assert "in 5 launches of 7 rounds" in text
    assert "control, decode" in text
    # The launch in which the control came out lowest and highest.
    assert "0.986×" in text
    assert "1.024×" in text


def test_a_control_that_differs_is_a_warning(samples, parse):
    """If the same model measures differently, no speed of the page is to be trusted much."""
    whole = samples.costly_report()
    control = whole.control.model_copy(update={"decode_ratio": samples.launched(1.08, 0.03)})
    page = parse(render_html(whole.model_copy(update={"control": control})))
    assert "the baseline against itself decodes 1.08× as fast (1.05\N{EN DASH}1.11)" in page.text
    assert "warning" in [attributes.get("class") for attributes in page.named("p")]


def test_a_busy_machine_is_a_warning(samples, parse):
    """What other programs did is on the page, and a sentence at its top if it was too much."""
    whole = samples.costly_report()
    assert "0.1 before, 0.2 while measuring (median), 0.9 at most, of 2" in (
        parse(render_html(whole)).text
    )
    said = "Other programs keep 1.6 of 2 CPU cores busy."
    busy = whole.load.model_copy(update={"warning": said})
    text = parse(render_html(whole.model_copy(update={"load": busy}))).text
    assert said in text.partition("Decode speed")[0]


def test_a_quick_run_claims_no_speed_anywhere(samples, parse):
    """Of too few launches no ratio of speeds is shown, large or small; sizes still are."""
    report = samples.quick_report()
    text = parse(render_html(report)).text
    assert "not measured closely enough" in text
    assert "8.5" not in text
    assert "0.80×" not in text
    assert "0.28×" in text


def test_a_step_that_ran_out_of_time_claims_no_speed(samples, parse):
    """One launch, where the others had five, tells nothing of how launches differ."""
    whole = samples.costly_report()
    once = Ratio(median=9.99, low=0.0, high=math.inf, launches=[9.99])
    result = whole.variants[1].model_copy(update={"decode_ratio": once})
    step = whole.steps[0].model_copy(update={"decode_ratio": once, "reason": "It is smaller."})
    report = whole.model_copy(
        update={
            "variants": [whole.variants[0], result],
            "steps": [step],
            "result": whole.result.model_copy(update={"summary": "It is smaller."}),
        }
    )
    text = parse(render_html(report)).text
    assert "9.99" not in text
    assert "Decode speed not measured closely enough" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_says_whose_it_is_where_columns_are_stacked(kind, samples, parse):
    """On a phone each figure stands under its quantity, with the name of its variant."""
    report = getattr(samples, kind)()
    page = parse(render_html(report))
    named = [td["data-variant"] for td in page.named("td") if "data-variant" in td]
    names = [variant.name for variant in report.variants]
    assert named == names * (len(named) // len(names))
    assert "attr(data-variant)" in "".join(page.styles)


def test_a_wide_table_says_that_it_scrolls(samples, parse):
    """With more variants than a window shows, none is cut off without a hint."""
    hint = "the table scrolls sideways"
    variants = [samples.baseline()]
    assert hint not in parse(render_html(samples.report(variants=variants))).text
    variants += [samples.quantized().model_copy(update={"name": f"step{n}"}) for n in range(5)]
    assert hint in parse(render_html(samples.report(variants=variants))).text
