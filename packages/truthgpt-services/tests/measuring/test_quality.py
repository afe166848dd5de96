"""What predictions come to, with what is not known of it."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest

from truthgpt_services.measuring.quality import alone, compared


def text(generator, windows=4, tokens=128):
    """Likelihoods of a text, each token for itself."""
    return [[generator.expovariate(0.5) for _ in range(tokens)] for _ in range(windows)]


def beside(ours, theirs):
    """What a comparison gives, of which only the likelihoods matter here."""
    nothing = [[0.0] * len(window) for window in ours]
    found = dict.fromkeys(("kl", "agrees", "flips"), nothing)
    return found | {"nll": ours, "reference": theirs}


def test_the_error_of_perplexity_is_how_far_it_scatters():
    """From text to text, as the delta method says: perplexity times the error of its logarithm."""
    generator = random.Random(0)
    found = [alone(text(generator), text(generator, 1)) for _ in range(40)]
    scatter = stdev(each.perplexity for each in found)
    error = fmean(each.perplexity_error for each in found)
    assert 0.7 * scatter < error < 1.4 * scatter


def test_the_ratio_of_perplexities_is_known_better_than_either():
    """Both read the same tokens, so what makes these hard says nothing of the difference."""
    generator = random.Random(1)
    theirs = text(generator)
    ours = [[value + generator.gauss(0.01, 0.02) for value in window] for window in theirs]
    quality = compared(beside(ours, theirs), beside(ours[:1], theirs[:1]))
    assert quality.perplexity_ratio == pytest.approx(math.exp(0.01), abs=0.003)
    assert 0 < quality.perplexity_ratio_error < 0.01 * quality.perplexity_error
    reference = alone(theirs, theirs[:1])
    assert quality.perplexity / reference.perplexity == pytest.approx(quality.perplexity_ratio)
    assert reference.perplexity_ratio_error == 0.0
