"""What a user can rely on in the sentence that a run came to."""

from __future__ import annotations

import math

import pytest

from truthgpt_services.optimizing.summary import summary
from truthgpt_services.results.schema import Outcome, Ratio

FILE = 269_060_552


@pytest.fixture
def told(samples):
    """Return the sentence about `quantize`, with what is given of it changed."""

    def of(decode=(2.02, 2.12), prefill=(0.96, 1.01), closely=True, file_bytes=FILE, **changes):
        ratios = {
            f"{name}_ratio": Ratio(median=sum(ends) / 2, low=ends[0], high=ends[1])
            for name, ends in (("decode", decode), ("prefill", prefill))
        }
        result = samples.quantized(**changes).model_copy(update=ratios)
        return summary(
            [samples.baseline(), result],
            [samples.quantize_step()],
            "quantize",
            file_bytes=file_bytes,
            closely=closely,
        )

    return of


def test_gain_and_cost_stand_in_one_sentence(told):
    """What got worse is not left to a table."""
    first = told(prefill=(0.78, 0.82), saved_bytes=400_000_000).partition(". KL")[0]
    assert first == (
        "quantize decodes 2.07× as fast as the baseline, with weights 0.46× the size, at a cost: "
        "reads prompts 0.80× as fast; first token 612 ms → 623 ms; saved files 400 MB, "
        "source file 269 MB"
    )


def test_without_a_cost_none_is_named(told):
    """Both speeds are named if both are gains."""
    assert told(prefill=(1.15, 1.21)) == (
        "quantize decodes 2.07× as fast and reads prompts 1.18× as fast as the baseline, "
        "with weights 0.46× the size. KL 0.0014, same first choice for 98.3% of tokens."
    )


def test_a_model_that_got_slower_says_so(told):
    """It was accepted for its size; its speed is the cost."""
    assert told(decode=(0.88, 0.92)).startswith(
        "quantize has weights 0.46× the size of the baseline's, "
        "at a cost: decodes 0.90× as fast. KL"
    )


@pytest.mark.parametrize(("speed", "is_named"), [(3.0, True), (0.2, False)])
def test_an_engine_that_is_faster_than_the_result_is_named(speed, is_named, samples):
    """Who gains less by a step than by another engine reads it beside the gain."""
    before, result = samples.baseline(), samples.quantized()
    native = {"measured": before.measured.model_copy(update={"engine": "native"})}
    once = Ratio(median=speed, low=0.0, high=math.inf)
    twin = before.model_copy(update={"name": "baseline on torch", "decode_ratio": once})
    variants = [before.model_copy(update=native), twin, result]
    said = summary(variants, [samples.quantize_step()], "quantize")
    assert said.endswith("decodes the model as it was faster: --engine torch.") is is_named


def test_noise_is_no_gain(told):
    """An interval that spans 1 is neither faster nor slower."""
    assert "decodes as fast as the baseline within noise" in told(decode=(0.98, 1.4))


@pytest.mark.parametrize("ends", [{"closely": False}, {"decode": (0.0, math.inf)}])
def test_too_few_launches_claim_no_speed(ends, told):
    """Neither a quick run nor a step of a single launch."""
    said = told(**ends)
    assert said.startswith(
        "quantize has weights 0.46× the size (its speed was not measured closely enough). KL"
    )


def test_what_cannot_be_told_is_said(samples):
    """Too little evidence is another thing than evidence against a step."""
    steps = [samples.compile_step(outcome=Outcome.UNDECIDED), samples.quantize_step()]
    assert summary([samples.baseline()], steps, "baseline") == (
        "No step was accepted (of torch_compile it cannot be told whether it helps): "
        "the output is the model as it was."
    )
