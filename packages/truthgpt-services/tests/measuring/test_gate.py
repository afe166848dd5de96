"""The gate: what makes a step stay, and what takes it back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.optimization import Stage
from truthgpt_services.optimizing.criteria import as_measured, quality_lost
from truthgpt_services.optimizing.gate import DEFAULT_GATE, Effect, break_even, judge
from truthgpt_services.results.schema import Gate, Measurements, Outcome, Quality, Ratio, Samples

EFFECT = Effect()
SAME = Ratio(median=1.0, low=0.99, high=1.01)
FASTER = Ratio(median=1.3, low=1.1, high=1.5)
SLOWER = Ratio(median=0.5, low=0.4, high=0.6)


def measured(
    size=1000,
    *,
    perplexity=10.0,
    kl=0.0,
    decode_kl=0.0,
    flips=0.0,
    decode_flips=0.0,
    warmup=1.0,
    cache=None,
):
    one = Samples(median=1.0, low=1.0, high=1.0, values=[1.0])
    return Measurements(
        load_seconds=1.0,
        warmup_seconds=warmup,
        decode_tokens_per_second=one,
        prefill_tokens_per_second=one,
        first_token_seconds=one,
        weights_bytes=size,
        saved_bytes=size,
        peak_memory_bytes=size,
        build_peak_memory_bytes=size,
        quality=Quality(
            perplexity=perplexity,
            kl_mean=kl,
            kl_mean_error=0.0,
            kl_p999=kl,
            top1_agreement=1.0,
            decode_kl_mean=decode_kl,
            decode_top1_agreement=1.0,
            flips=flips,
            decode_flips=decode_flips,
        ),
        sample="",
        cache_bytes_per_token=cache,
    )


def decide(
    candidate=None,
    *,
    before=None,
    baseline=None,
    decode=SAME,
    prefill=SAME,
    gate=DEFAULT_GATE,
    effect=EFFECT,
    closely=True,
    tokens=0,
):
    candidate, baseline = candidate or measured(), baseline or measured()
    lost = quality_lost(
        as_measured("candidate", candidate), as_measured("baseline", baseline), gate.model_dump()
    )
    return judge(
        candidate,
        before or measured(),
        decode=decode,
        prefill=prefill,
        gate=gate,
        effect=effect,
        objection=lost or "",
        closely=closely,
        tokens=tokens,
    )


@pytest.mark.parametrize("which", ["decode", "prefill"])
def test_faster_beyond_noise_is_kept(which):
    """Faster decoding is enough, and faster reading of prompts is enough."""
    decision = decide(**{which: FASTER})
    assert decision.accepted
    assert "1.30× as fast (1.10 to 1.50×)" in decision.reason


@pytest.mark.parametrize("which", ["decode", "prefill"])
def test_a_slowdown_beyond_the_bound_is_rejected(which):
    """Smaller weights are no excuse; what is within the bound, or within noise, is accepted."""
    decision = decide(measured(500), **{which: SLOWER})
    assert decision.outcome is Outcome.REJECTED
    assert "0.50× as fast (0.40 to 0.60×): more than 5 % slower." in decision.reason
    within = Ratio(median=0.97, low=0.95, high=0.99)
    noisy = Ratio(median=0.8, low=0.6, high=1.1)
    assert decide(measured(500), **{which: within}).accepted
    assert decide(measured(500), **{which: noisy}).accepted
    free = DEFAULT_GATE.model_copy(update={"max_slowdown": 0.7})
    assert decide(measured(500), gate=free, **{which: SLOWER}).accepted


def test_too_little_evidence_is_not_acceptance():
    """An interval that holds both a gain and none decides nothing, and says how much was done."""
    decision = decide(decode=Ratio(median=1.1, low=0.9, high=1.3, launches=[1.0] * 12))
    assert decision.outcome is Outcome.UNDECIDED
    assert decision.reason.startswith("Too little evidence of a gain after 12 launches: it ")


def test_a_speed_that_was_not_measured_closely_is_never_a_gain():
    """With few rounds or launches only a smaller size is accepted."""
    decision = decide(decode=FASTER, closely=False)
    assert decision.outcome is Outcome.UNDECIDED
    assert decision.reason.startswith("Not measured closely enough to claim a gain in speed")
    assert decide(measured(500), decode=FASTER, closely=False).accepted


def test_no_difference_is_taken_back():
    """A step that does nothing is not kept for having been asked for."""
    decision = decide()
    assert not decision.accepted
    assert decision.reason.startswith("Neither faster nor smaller by 2 % beyond noise: it ")


@pytest.mark.parametrize(
    "ratio",
    [
        Ratio(median=1.4, low=0.9, high=2.0),
        Ratio(median=1.4, low=1.0, high=2.0),
        Ratio(median=1.02, low=1.015, high=1.09),
        Ratio(median=1.4, low=1.019, high=2.0),
        SLOWER,
    ],
    ids=["noisy", "touches 1", "once kept by luck", "too little at worst", "slower"],
)
def test_a_speed_that_is_no_gain_is_taken_back(ratio):
    """The whole interval must reach the gain that was asked for: a median can be luck."""
    assert not decide(decode=ratio, prefill=ratio).accepted


def test_a_gain_counts_from_the_lower_end_of_its_interval():
    """At exactly what was asked for a step is kept; without a bound it still has to be faster."""
    assert decide(decode=Ratio(median=1.03, low=1.02, high=1.04)).accepted
    free = DEFAULT_GATE.model_copy(update={"min_gain": 0.0})
    assert decide(decode=Ratio(median=1.03, low=1.001, high=1.04), gate=free).accepted
    assert not decide(decode=Ratio(median=1.03, low=1.0, high=1.04), gate=free).accepted
    assert not decide(measured(1000), gate=free).accepted


def test_what_falls_short_is_not_rounded_up_to_the_bound():
    """A reason that shows 1.02 where 1.02 was asked for would contradict itself."""
    decision = decide(decode=Ratio(median=1.04, low=1.0178, high=1.06))
    assert "decodes 1.040× as fast (1.018 to 1.060×)" in decision.reason


@pytest.mark.parametrize(
    ("gain", "faster", "smaller", "said"),
    [
        ("any", True, True, ""),
        ("speed", True, False, "Not faster by 2 % beyond noise"),
        ("size", False, True, "Not smaller by 2 %"),
    ],
)
def test_what_counts_as_a_gain_can_be_chosen(gain, faster, smaller, said):
    """Who needs speed is not given a smaller model that is no faster, and the other way round."""
    gate = DEFAULT_GATE.model_copy(update={"gain": gain})
    decisions = [decide(decode=FASTER, gate=gate), decide(measured(500), gate=gate)]
    assert [each.accepted for each in decisions] == [faster, smaller]
    assert all(each.accepted or each.reason.startswith(said) for each in decisions)


@pytest.mark.parametrize("where", ["flips", "decode_flips"])
def test_flips_are_bounded_only_if_asked(where):
    """Off by default; a bound holds for both paths, and is the last value that is allowed."""
    bounded = DEFAULT_GATE.model_copy(update={"max_flips": 0.01})
    assert decide(measured(100, **{where: 0.5})).accepted
    assert decide(measured(100, **{where: 0.01}), gate=bounded).accepted
    decision = decide(measured(100, **{where: 0.02}), gate=bounded)
    assert not decision.accepted
    assert decision.reason == "It loses quality: 0.0200 of tokens flip, above 0.01."


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        ({}, "neither faster nor smaller"),
        ({"kl": 0.3}, "it loses quality: KL to the baseline is 0.3000"),
        ({"kl": math.nan}, "its predictions are not finite numbers."),
    ],
)
def test_if_all_are_kept_the_reason_says_why_one_would_not_be(candidate, why):
    """The user who overrules the gate still learns what it found."""
    gate = DEFAULT_GATE.model_copy(update={"keep_all": True})
    decision = decide(measured(**candidate), gate=gate)
    assert (decision.accepted, decision.overruled) == (True, True)
    assert decision.reason.startswith("Accepted because all steps are; else it would not have been")
    assert why in decision.reason
    paid = decide(measured(500), gate=gate)
    assert (paid.accepted, paid.overruled) == (True, False)


def test_a_step_has_repaid_itself_when_its_tokens_have_saved_its_seconds():
    """Twice as fast at 1 token/s saves a second a token; the ends of the interval are told too."""
    fast = Ratio(median=2.0, low=1.5, high=3.0)
    found = break_even(measured(warmup=31.0), measured(), fast, 10.0)
    assert found.extra_seconds == 40.0
    assert (found.fewest, found.tokens, found.most) == (20, 40, 80)


def test_a_step_that_is_not_faster_is_never_repaid():
    """A difference that may be noise repays nothing, whatever its median."""
    for ratio in (SLOWER, SAME, Ratio(median=1.4, low=1.0, high=2.0)):
        found = break_even(measured(warmup=31.0), measured(), ratio, 10.0)
        assert (found.fewest, found.tokens, found.most) == (None, None, None)


def test_a_step_that_costs_nothing_at_first_is_repaid_at_once():
    """One that starts faster than what was there before has nothing to make up for."""
    found = break_even(measured(warmup=1.0), measured(warmup=9.0), FASTER, 2.0)
    assert found.tokens == 0


@pytest.mark.parametrize(
    ("size", "keep"), [(980, True), (981, False), (1000, False), (1200, False)]
)
def test_a_size_counts_from_the_gain_asked_for(size, keep):
    """2 % smaller is kept by default, and less is not."""
    assert decide(measured(size)).accepted is keep


def test_size_is_compared_with_what_was_there_before():
    """A step does not live on what an earlier step has saved."""
    assert not decide(measured(500), before=measured(500), baseline=measured(1000)).accepted


@pytest.mark.parametrize("where", ["kl", "decode_kl"])
def test_a_divergence_above_the_bound_is_taken_back(where):
    """Measured in one pass or token by token: either one is enough, whatever was gained."""
    decision = decide(measured(100, **{where: 0.06}), decode=FASTER)
    assert not decision.accepted
    assert decision.reason == ("It loses quality: KL to the baseline is 0.0600, above 0.05.")


def test_a_perplexity_above_the_bound_is_taken_back():
    """Compared with the baseline's, not with that of the step before."""
    candidate = measured(100, perplexity=10.21)
    decision = decide(candidate, before=measured(perplexity=10.2))
    assert not decision.accepted
    assert "perplexity is 1.021× the baseline's, above 1.02×" in decision.reason


def test_quality_on_the_bound_is_kept():
    """A bound is the last value that is allowed."""
    assert decide(measured(100, kl=0.05, decode_kl=0.05, perplexity=10.2)).accepted


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["kl", "decode_kl", "perplexity"])
def test_what_is_not_finite_is_taken_back(where, value):
    """NaN is below no bound and above none; it must not slip through."""
    decision = decide(measured(100, **{where: value}), decode=FASTER)
    assert not decision.accepted
    assert "finite" in decision.reason


def test_bounds_can_be_chosen():
    """The user who accepts more loss, or asks for more gain, gets that."""
    lossy = measured(500, kl=0.3)
    assert decide(lossy, gate=Gate(max_kl=0.5, max_perplexity_ratio=2, min_gain=0.1)).accepted
    greedy = Gate(max_kl=0.5, max_perplexity_ratio=2, min_gain=0.6)
    assert not decide(lossy, gate=greedy).accepted


@given(
    st.integers(1, 2000),
    st.floats(0, 0.2) | st.just(math.nan),
    st.floats(0, 0.2) | st.just(math.nan),
    st.floats(5, 15),
    st.floats(0.5, 2),
)
def test_nothing_is_kept_that_breaks_a_bound(size, kl, decode_kl, perplexity, speed):
    """Whatever was measured: kept means within every bound, and gained something."""
    ratio = Ratio(median=speed, low=speed * 0.9, high=speed * 1.1)
    candidate = measured(size, kl=kl, decode_kl=decode_kl, perplexity=perplexity)
    if decide(candidate, decode=ratio).accepted:
        assert max(kl, decode_kl) <= 0.05
        assert perplexity / 10 <= 1.02
        assert size <= 980 or ratio.low >= 1.02


def test_a_step_of_execution_that_no_token_ran_through_is_rejected():
    """Whatever was measured as faster or smaller is not its doing."""
    effect = Effect(Stage.EXECUTION, used=False)
    for decision in (decide(decode=FASTER, effect=effect), decide(measured(500), effect=effect)):
        assert decision.outcome is Outcome.REJECTED
        assert decision.reason.startswith("No measured token is known to have run through it")
    assert decide(decode=FASTER, effect=Effect(Stage.EXECUTION, changed=False)).accepted


def test_a_step_of_weights_that_changed_nothing_is_rejected():
    """Its own account of what it covered is not asked."""
    effect = Effect(Stage.WEIGHTS, changed=False, note="0 of 272 tensors differ")
    decision = decide(decode=FASTER, effect=effect)
    assert decision.outcome is Outcome.REJECTED
    assert decision.reason == "It changed nothing: 0 of 272 tensors differ."


@pytest.mark.parametrize(
    ("now", "then", "tokens", "accepted"),
    [
        (6, 10, 100, True),
        (6, 10, 1, False),
        (10, 10, 100, False),
        (20, 10, 100, False),
        (None, 10, 100, False),
        (6, None, 100, False),
    ],
    ids=["smaller", "short", "same", "larger", "unknown", "before unknown"],
)
def test_keys_and_values_count_as_memory(now, then, tokens, accepted):
    """Beside 1,000 bytes of weights, those of the tokens that were timed, if both are known."""
    found = decide(measured(cache=now), before=measured(cache=then), tokens=tokens)
    assert found.accepted is accepted
    assert ("keys and values of" in found.reason) == (now in (6, 20) and then == 10)
