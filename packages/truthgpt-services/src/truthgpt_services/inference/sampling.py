"""Choosing the next token from logits, with every generation option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from truthgpt_core.decoding import (
    GenerationError,
    LogitsProcessor,
    RefusedError,
    SamplingParams,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from truthgpt_services.inference.constraints import Constraint

    Floats = NDArray[np.float32]

_TINY = float(np.finfo(np.float32).tiny)

_FLOORS = (1e-2, 1e-4)
"""Tokens that are at least this times as probable as the likeliest are tried for `top_p` first."""

_ROWS = 64
"""Positions of a prompt whose log-probabilities are in memory together."""


class Sampler:
    """Chooses the tokens of one sequence.

    Logits are changed in the order that `SamplingParams` names. Everything is computed on the
    CPU and in float32; the random numbers are those of NumPy's PCG64 (O'Neill, "PCG: A Family of
    Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation",
    2014), which makes independent ones of seeds that follow each other.

    Args:
        params: how.
        prompt_length: how many of the tokens are the prompt's.
        end: tokens that end a text.
        device: where logits processors get the logits.
        processors: change the logits before a token is chosen, in this order.
        constraint: what the text has to be; of this sequence alone.
        seed: of the random choice; that of `params` if None.

    Attributes:
        logprobs: one for each token that was chosen, if `params.logprobs` asks for them: of the
            model's own distribution, before anything changes it.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_length: int,
        end: frozenset[int] = frozenset(),
        device: torch.device | str = "cpu",
        processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
        seed: int | None = None,
    ) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self._params = params
        self._prompt_length = prompt_length
        self._end = np.array(sorted(end), dtype=np.int64)
        self._device = device
        self._processors = processors
        self._constraint = constraint
        self._followed = prompt_length
        seed = params.seed if seed is None else seed
        self._random = np.random.Generator(np.random.PCG64(seed % 2**64))
        self._bias_ids = np.array([*params.logit_bias], dtype=np.int64)
        self._bias = np.array([*params.logit_bias.values()], dtype=np.float32)
        self._counts = _Counts(prompt_length) if _counts_tokens(params) else None
        self._is_plain = (
            params.temperature == 0.0
            and not params.logit_bias
            and not params.min_new_tokens
            and self._counts is None
            and constraint is None
            and not processors
        )

    @property
    def finished(self) -> bool:
        """Whether a constraint admits nothing more: the text is over, end token or not."""
        return self._constraint is not None and self._constraint.finished

    def __call__(self, logits: torch.Tensor, tokens: Sequence[int]) -> int:
        """Return the next token. It is called once for each token of the answer, in order.

        Args:
            logits: of any floating dtype, of shape (vocabulary,).
            tokens: the sequence so far, prompt included.

        Raises:
            GenerationError: the logits have NaN or infinity, every token is ruled out, a token
                of `logit_bias` is unknown, or the tokens break the constraint.
        """
        logits = logits.detach()
        if self._is_plain:
            token = _greedy(logits)
        else:
            scores = self._changed(logits, tokens)
            token = choose(scores, self._params, self._random)
        if self._params.logprobs is not None:
            self.logprobs += token_logprobs(logits[None], [token], self._params.logprobs)
        if self._constraint is not None:
            self._constraint.accept(token)
            self._followed = len(tokens) + 1
        return token

    def _changed(self, logits: torch.Tensor, tokens: Sequence[int]) -> Floats:
        """Return a copy of the logits after everything that comes before the temperature."""
        params = self._params
        scores: Floats = np.array(logits.float().cpu().numpy())
        if params.logit_bias:
            refuse_unknown_bias(int(self._bias_ids.max()), len(scores))
            scores[self._bias_ids] += self._bias
        if self._counts is not None:
            self._counts.penalize(scores, tokens, params)
        if self._constraint is not None:
            for token in tokens[self._followed :]:
                self._constraint.accept(token)
            self._constraint.rule_out(scores)
        if len(tokens) - self._prompt_length < params.min_new_tokens:
            self._postpone_end(scores)
        if self._processors:
            changed = torch.from_numpy(scores).to(self._device)
            for processor in self._processors:
                changed = processor(changed, tokens)
            scores = np.array(changed.detach().float().cpu().numpy())
            if self._constraint is not None:
                # A processor may write over what was ruled out.
                self._constraint.rule_out(scores)
        return scores

    def _postpone_end(self, scores: Floats) -> None:
        end = self._end[self._end < len(scores)]
        before = scores[end]
        scores[end] = -np.inf
        if self._constraint is not None and scores.max() == -np.inf:
            # The text is whole and cannot go on: its form counts more than its length.
            scores[end] = before


class Candidates(NamedTuple):
    """Tokens that can be chosen.

    Attributes:
        tokens: their ids, int64 of shape (count,); None if it is all tokens, in order.
        cumulative: sums of their weights up to each, float64 of shape (count,). A weight is a
            probability, but for a common factor.
    """

    tokens: NDArray[np.int64] | None
    cumulative: NDArray[np.float64]

    def pick(self, uniform: NDArray[np.float64] | float) -> NDArray[np.int64]:
        """Choose by the inverse of the distribution function.

        Args:
            uniform: random numbers, at least 0 and below 1, of any shape.

        Returns:
            Tokens, int64 of the same shape.
        """
        sums = self.cumulative
        places = np.searchsorted(sums, uniform * sums[-1], side="right")
        # The product may be rounded up to the last sum, which nothing is above.
        places = np.minimum(places, np.searchsorted(sums, sums[-1]))
        return np.asarray(places if self.tokens is None else self.tokens[places])


def choose(scores: Floats, params: SamplingParams, random: np.random.Generator) -> int:
    """Choose the next token from logits that all else has changed.

    Args:
        scores: float32 of shape (vocabulary,); they are overwritten.
        params: `temperature`, `top_k`, `top_p` and `min_p` count here.
        random: for the choice; not used at temperature 0.

    Raises:
        GenerationError: there is NaN or infinity among the scores, or they are all -inf.
    """
    if params.temperature == 0.0:
        token = int(scores.argmax())
        _refuse(float(scores[token]))
        return token
    return int(candidates(scores, params).pick(random.random()))


def candidates(scores: Floats, params: SamplingParams) -> Candidates:
    """Return the tokens that can be chosen and their weights.

    `top_k` is of Fan et al., "Hierarchical Neural Story Generation", 2018; `top_p` of Holtzman et
    al., "The Curious Case of Neural Text Degeneration", 2020; `min_p` of Nguyen et al., "Turning
    Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2025. All three look at
    probabilities after the temperature, each at what the one before left, as in transformers. Of
    tokens that are equally likely, those with lower ids come first.

    Args:
        scores: float32 of shape (vocabulary,); they are overwritten.
        params: how, with a temperature above 0.

    Raises:
        GenerationError: as for `choose`.
    """
    best = float(scores.max())
    _refuse(best)
    # From the highest down: divided by a small temperature it would be infinite.
    scores -= np.float32(best)
    with np.errstate(over="ignore"):
        scores /= np.float32(max(params.temperature, _TINY))
    if 0 < params.top_k < len(scores):
        # By their scores: weights of two that differ may both be rounded to nothing.
        tokens = _likeliest(scores, params.top_k)
        weights: Floats = np.exp(scores[tokens])
        total = float(weights.sum(dtype=np.float64))
    elif params.top_p < 1.0:
        every = np.exp(scores, out=scores)
        # Added up in pairs: as exact as the weights are.
        total = float(every.sum())
        tokens = _enough(every, params.top_p, total)
        weights = every[tokens]
    else:
        every = np.exp(scores, out=scores)
        if params.min_p == 0.0:
            return Candidates(None, torch.from_numpy(every).cumsum(-1, dtype=torch.float64).numpy())
        tokens = np.flatnonzero(every >= np.float32(params.min_p))
        return Candidates(tokens, every[tokens].cumsum(dtype=np.float64))
    if params.top_p < 1.0:
        # A token is left out if those before it already have top_p: the first never is.
        sums = weights.cumsum(dtype=np.float64)
        count = int(np.searchsorted(sums, params.top_p * total)) + 1
        tokens, weights = tokens[:count], weights[:count]
    if params.min_p > 0.0:
        kept = weights >= np.float32(params.min_p)
        tokens, weights = tokens[kept], weights[kept]
    return Candidates(tokens, weights.cumsum(dtype=np.float64))


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Return what a model thinks of tokens, of a prompt or of a piece of one.

    Args:
        logits: of any floating dtype, of shape (count, vocabulary); nothing has changed them.
        tokens: the one that follows each position.
        top: how many likeliest tokens to name beside each.

    Raises:
        GenerationError: the logits have NaN or infinity.
    """
    found = []
    for begin in range(0, len(tokens), _ROWS):
        logs = logits[begin : begin + _ROWS].detach().float().log_softmax(-1).cpu()
        # What is infinite or NaN makes all of its row NaN.
        if not np.isfinite(highest := float(logs.amax())):
            _refuse(highest)
        for row, token in zip(logs.numpy(), tokens[begin : begin + _ROWS], strict=True):
            likeliest = _likeliest(row, min(top, len(row))) if top else ()
            those = tuple((int(each), float(row[each])) for each in likeliest)
            found.append(TokenLogprobs(token=int(token), logprob=float(row[token]), top=those))
    return found


def refuse_unknown_bias(highest: int, vocabulary: int) -> None:
    """Refuse a `logit_bias` of tokens that a model does not know.

    Args:
        highest: of their ids.
        vocabulary: how many tokens the model knows.

    Raises:
        GenerationError: it does not know that one.
    """
    if highest >= vocabulary:
        raise GenerationError(
            f"logit_bias has the token {highest}, and the model knows {vocabulary}",
            hint=f"Ids are 0 to {vocabulary - 1}.",
        )


class _Counts:
    """How often each token is in a sequence, and the penalties for it."""

    def __init__(self, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._counted = 0

    def penalize(self, scores: Floats, tokens: Sequence[int], params: SamplingParams) -> None:
        """Change scores, in place.

        `repetition_penalty` is that of Keskar et al., "CTRL: A Conditional Transformer Language
        Model for Controllable Generation", 2019; `frequency_penalty` and `presence_penalty` are
        those of OpenAI's API.
        """
        self._count(tokens, len(scores))
        if params.repetition_penalty != 1.0:
            seen = np.flatnonzero(self._seen)
            those, penalty = scores[seen], np.float32(params.repetition_penalty)
            scores[seen] = np.where(those > 0, those / penalty, those * penalty)
        if params.frequency_penalty or params.presence_penalty:
            made = np.flatnonzero(self._made)
            each, once = np.float32(params.frequency_penalty), np.float32(params.presence_penalty)
            scores[made] -= each * self._times[made] + once

    def _count(self, tokens: Sequence[int], vocabulary: int) -> None:
        if self._counted == 0:
            self._seen = np.zeros(vocabulary, dtype=bool)
            self._made = np.zeros(vocabulary, dtype=bool)
            self._times = np.zeros(vocabulary, dtype=np.float32)
        new = np.asarray(tokens[self._counted :], dtype=np.int64)
        answer = new[max(0, self._prompt_length - self._counted) :]
        # A prompt may have tokens that the model reads and cannot write.
        answer = answer[answer < vocabulary]
        self._seen[new[new < vocabulary]] = True
        self._made[answer] = True
        np.add.at(self._times, answer, 1)
        self._counted = len(tokens)


def _counts_tokens(params: SamplingParams) -> bool:
    penalties = (params.frequency_penalty, params.presence_penalty)
    return params.repetition_penalty != 1.0 or any(penalties)


def _greedy(logits: torch.Tensor) -> int:
    if logits.device.type == "cpu":
        # NumPy is ten times as fast as torch here. Both find NaN before any number.
        scores = logits.float().numpy()
        token = int(scores.argmax())
        _refuse(float(scores[token]))
        return token
    value, index = logits.max(-1)
    _refuse(float(value))
    return int(index)


def _refuse(best: float) -> None:
    """Refuse scores by the highest of them, which is NaN if any is."""
    if best == -np.inf:
        raise RefusedError(
            "No token can be chosen: every one is ruled out",
            hint="Look at logit_bias, min_new_tokens, the constraint and the logits processors.",
        )
    if not np.isfinite(best):
        raise GenerationError(
            f"No token can be chosen: the model's logits have {best}",
            hint="Weights may be damaged, or too large for float16: try float32 or bfloat16.",
        )


def _likeliest(values: Floats, count: int) -> NDArray[np.int64]:
    """Return the ids of the highest values, from the highest down, without those of -infinity."""
    least = float(torch.from_numpy(values).topk(count).values[-1])
    ids = np.flatnonzero(values > least if least == -np.inf else values >= np.float32(least))
    return ids[np.argsort(-values[ids], kind="stable")[:count]]


def _enough(weights: Floats, top_p: float, total: float) -> NDArray[np.int64]:
    """Return ids of weights that reach a part of their total, the fewest of them first."""
    # Those that are below this have less than the rest of the total, all together. The half is
    # for rounding.
    safe = 0.5 * (1.0 - top_p) * total / len(weights)
    for floor in (*_FLOORS, safe):
        ids = np.flatnonzero(weights >= np.float32(max(floor, _TINY)))
        if floor <= safe or weights[ids].sum(dtype=np.float64) >= top_p * total:
            break
    # Sorting may take milliseconds, and only those around the last need it. The upper half of
    # the bits of a positive float is a bin, narrower than a hundredth of its value.
    those = weights[ids]
    bins = (those.view(np.uint32) >> 16).astype(np.int64)
    bins = bins.max() - bins
    last = np.searchsorted(np.bincount(bins, those).cumsum(), top_p * total)
    around = np.flatnonzero(bins == last)
    around = around[np.argsort(-those[around], kind="stable")]
    return np.concatenate([ids[bins < last], ids[around]])
