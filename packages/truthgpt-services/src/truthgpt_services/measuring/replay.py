"""Recording what a model predicts, and whether an engine that runs it later predicts the same.

A record has the log-probability of each token of a text, and those of the likeliest tokens in its
place. On the engine and kernel that recorded them, they come out the same, but for the last digits.
Another engine or kernel rounds differently, and is compared by the Kullback-Leibler divergence.

The divergence of a replay is coarse-grained: of each prediction, the tokens that were recorded have
a bin each, and all others have one together. By the data processing inequality this is a **lower
bound** of the divergence over the whole vocabulary: what differs among the tokens that were not
recorded is not seen. Of what rounding to int8 causes in SmolLM2-135M, which is spread over all
tokens, 64 recorded ones show four fifths.

See:
    Cover, T. and Thomas, J. (2006). Elements of Information Theory, 2nd edition, section 2.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch

from truthgpt_core.decoding import Engine, require
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_services.errors import ModelError
from truthgpt_services.measuring.protocol import Recorded
from truthgpt_services.results.record import LEAST, Predictions, Record

TOP = 64
"""Tokens that are recorded for each prediction; the file has half a megabyte then."""

LARGEST_DIFFERENCE = 1e-5
"""Nats by which a log-probability may differ on the same engine and kernel."""

LARGEST_KL = 1e-3
"""Nats per token that another engine or kernel may diverge, beside the report's standard error."""

_DIGITS = 6
_LEAST_REST = 1e-6
"""Probability of all tokens that were not recorded: what is less is rounding of the others."""

_ROWS = 64
_GROUP = "truthgpt.plugins"


@dataclass(frozen=True)
class Agreement:
    """Whether an engine predicts what was recorded.

    Attributes:
        agrees: it does. False also if it could not be replayed.
        same: it is the engine, with the kernel, that the record was made on. False also if the
            engine does not say what its kernel is.
        difference: the largest absolute difference of the log-probabilities of the tokens of the
            text, in nats; None if it could not be replayed.
        kl: the mean of KL(recorded || replayed) in nats per token, coarse-grained: a lower bound
            of that over the whole vocabulary. None if it could not be replayed.
        bound: what decides: on the same engine and kernel the largest `difference`, else the
            largest `kl`.
        sentence: all of that in words, or why it could not be replayed.
    """

    agrees: bool
    same: bool
    difference: float | None
    kl: float | None
    bound: float
    sentence: str


def record(engine: Engine, ids: Sequence[int]) -> Recorded:
    """Record what a model predicts of a text; it takes one pass.

    Args:
        engine: runs the model.
        ids: the text; cut where the model's context ends. Two tokens at least.

    Raises:
        GenerationError: the engine gives no logits of prompts, or does not know a token.
        ModelError: the predictions are not finite.
    """
    ids = list(ids[: engine.context_length])
    targets = torch.tensor(ids[1:]).unsqueeze(-1)
    found: dict[str, list[Any]] = {"logprobs": [], "top_ids": [], "top_logprobs": []}
    vocabulary = 0
    for rows, predicted in _predict(engine, ids, "Recording predictions"):
        if not bool(predicted.isfinite().all()):
            raise ModelError("The predictions are not finite numbers")
        vocabulary = predicted.shape[-1]
        top = predicted.topk(min(TOP, vocabulary))
        found["logprobs"] += _rounded(predicted.gather(-1, targets[rows]).squeeze(-1))
        found["top_ids"] += top.indices.tolist()
        found["top_logprobs"] += map(_rounded, top.values)
    return Recorded(
        Predictions(vocabulary=vocabulary, ids=ids, **found),
        engine=engine.name,
        kernel=_kernel_of(engine),
        distribution=_distribution_of(engine),
    )


def replay(engine: Engine, record: Record) -> Agreement:
    """Predict what was recorded once more, and compare; it takes one pass.

    Args:
        engine: runs the saved model.
        record: what `read_record` returned for that.

    Returns:
        Whether it agrees. An engine that cannot predict the text does not agree, and the sentence
        says why: it gives no logits, its context is too short, its vocabulary is another, or what
        it gives is not finite.
    """
    made, known = record.made, record.predictions
    kernel, origin = _kernel_of(engine), _distribution_of(engine)
    ours = (engine.name, kernel, origin)
    same = bool(kernel) and ours == (made.engine, made.kernel, made.distribution)
    bound = LARGEST_DIFFERENCE if same else record.kl_error + LARGEST_KL
    try:
        difference, kl = _compare(engine, known)
    except (TruthGPTError, RuntimeError) as error:
        why = error.message if isinstance(error, TruthGPTError) else in_one_line(error)
        sentence = f"The record of this model cannot be replayed on the engine {engine.name}: {why}"
        return Agreement(False, same, None, None, bound, sentence)
    agrees = (difference if same else kl) <= bound
    parts = [
        f"Log-probabilities differ by {difference:.3g} at most",
        f"KL is {kl:.3g} nats/token or more",
    ]
    parts[0 if same else 1] += f" (bound {bound:.3g})"
    on = f"{engine.name}, {kernel or 'kernel unknown'}"
    where = f"the same engine and kernel ({on})"
    if not same:
        where = f"{on}, recorded on {made.engine}, {made.kernel or 'kernel unknown'}"
    verdict = "agrees with" if agrees else "does not agree with"
    sentence = (
        f"The replay of {len(known.ids)} tokens {verdict} the record. "
        f"{parts[0]}, {parts[1]}; {where}."
    )
    return Agreement(agrees, same, difference, kl, bound, sentence)


def _compare(engine: Engine, known: Predictions) -> tuple[float, float]:
    """Return the largest difference of log-probabilities, and the mean coarse-grained KL.

    Raises:
        TruthGPTError: the engine cannot predict the text.
    """
    limit = engine.context_length
    if limit is not None and limit < len(known.ids):
        raise ModelError(f"the record has {len(known.ids)} tokens, and the context holds {limit}")
    targets = torch.tensor(known.ids[1:]).unsqueeze(-1)
    top = torch.tensor(known.top_ids)
    expected = torch.tensor(
        [[*top, own] for top, own in zip(known.top_logprobs, known.logprobs, strict=True)],
        dtype=torch.float64,
    )
    # The token of the text is one of the likeliest, mostly: it has one bin.
    twice = (top == targets).any(-1)
    bins = torch.cat([top, targets], dim=-1)
    difference, divergence = 0.0, 0.0
    for rows, predicted in _predict(engine, known.ids, "Replaying a record"):
        if predicted.shape[-1] != known.vocabulary:
            raise ModelError(
                f"its logits are of {predicted.shape[-1]} tokens, and the record's of "
                f"{known.vocabulary}"
            )
        if bool(predicted.isnan().any()):
            raise ModelError("its predictions are not finite numbers")
        chosen = predicted.gather(-1, bins[rows])
        apart = (chosen[:, -1] - expected[rows, -1]).abs().max()
        difference = max(difference, float(apart))
        divergence += float(_coarse(expected[rows], chosen, twice[rows]).sum())
    return difference, max(divergence / (len(known.ids) - 1), 0.0)


def _coarse(expected: torch.Tensor, found: torch.Tensor, twice: torch.Tensor) -> torch.Tensor:
    """Return KL(expected || found) of each row, with all that is not in it as one more bin.

    Args:
        expected: log-probabilities of shape (rows, bins).
        found: the same.
        twice: where the last bin is one of the others, too; boolean of shape (rows).
    """
    is_own = torch.ones_like(expected, dtype=torch.bool)
    is_own[twice, -1] = False
    both = [torch.where(is_own, each.exp(), 0.0) for each in (expected, found)]
    rest, other = ((1.0 - each.sum(-1)).clamp_min(_LEAST_REST) for each in both)
    terms = torch.where(is_own, both[0] * (expected - found), 0.0)
    return terms.sum(-1) + rest * (rest / other).log()


def _predict(
    engine: Engine, ids: Sequence[int], feature: str
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield some rows at a time, and their log-probabilities: float64 of (rows, vocabulary).

    They are `LEAST` at least. The last token's prediction is not among them.

    Raises:
        GenerationError: the engine gives no logits of prompts, or does not know a token.
        ModelError: what it gives are not logits of each token.
    """
    for capability in ("logits", "prompt_logprobs"):
        require(engine, capability, feature)
    with engine.session():
        logits = engine.prompt_logits(ids)
    if logits.ndim != 2 or len(logits) != len(ids):
        raise ModelError(f"its logits for {len(ids)} tokens have the shape {tuple(logits.shape)}")
    for start in range(0, len(ids) - 1, _ROWS):
        rows = slice(start, min(start + _ROWS, len(ids) - 1))
        # Not all at once: a large vocabulary in float64 takes gigabytes.
        yield rows, logits[rows].cpu().double().log_softmax(-1).clamp_min(LEAST)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(each, _DIGITS) for each in values.tolist()]


def _kernel_of(engine: Engine) -> str:
    return str(engine.describe().get("kernel", ""))


def _distribution_of(engine: Engine) -> str:
    """Return the distribution that an engine comes from as "NAME VERSION"; empty if unknown."""
    package = type(engine).__module__.partition(".")[0]
    for entry_point in entry_points(group=_GROUP):
        if entry_point.module.partition(".")[0] == package and entry_point.dist:
            return f"{entry_point.dist.name} {entry_point.dist.version}"
    return ""
