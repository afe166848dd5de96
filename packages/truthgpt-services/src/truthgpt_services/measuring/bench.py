"""Measurements of one model that is in memory: its speed, and how well it predicts a text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truthgpt_core.decoding import Decoder, Engine, refuse_unknown_tokens, require
from truthgpt_services.errors import ModelError
from truthgpt_services.measuring import memory
from truthgpt_services.measuring.divergence import divergence
from truthgpt_services.measuring.logit_lens import NoLensError, States, divergence_by_layer, states
from truthgpt_services.measuring.protocol import (
    BenchRequests,
    Compared,
    LayersCompared,
    Opened,
    Recorded,
)
from truthgpt_services.measuring.replay import record
from truthgpt_services.models.loading import explained

FOLLOWED = 64
"""How many tokens a decoder of its own is timed for at least: how fast it is changes with the text,
of which a few tokens say little."""


class Bench(BenchRequests):
    """Measures a model.

    Args:
        engine: runs the model.
        tokenizer: to go with it.
        own_decoder: returns what decodes a text whose request gives no options; None for token by
            token.

    Attributes:
        engine: runs the model.
        tokenizer: as given.

    Raises:
        GenerationError: the engine gives no logits.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        own_decoder: Callable[[], Decoder | None] = lambda: None,
    ) -> None:
        require(engine, "logits", "Measuring")
        self.engine = engine
        self.tokenizer = tokenizer
        self._own_decoder = own_decoder
        self._decoding: _Decoding | None = None
        self._device: torch.device = getattr(engine, "device", torch.device("cpu"))

    @property
    def model(self) -> Any:
        """The model, if PyTorch runs it; else None."""
        return getattr(self.engine, "model", None)

    def describe(self, load_seconds: float) -> Opened:
        """Say what the model is made of, and begin to watch its memory."""
        memory.reset_peak(self._device)
        unknown = {
            "parameters": 0,
            "dtype": "",
            "weights_bytes": 0,
            "cache_bytes_per_token": None,
        }
        about = self.engine.describe()
        facts: dict[str, Any] = {name: about.get(name, unknown[name]) for name in unknown}
        return Opened(load_seconds=load_seconds, engine=self.engine.name, **facts)

    def record(self, ids: list[int]) -> Recorded:
        """Predict each next token of a text, for what runs the model later to agree with.

        Raises:
            ModelError: the predictions are not finite.
        """
        return record(self.engine, ids)

    def tokenize(self, text: str, limit: int) -> list[int]:
        """The first tokens of a text, `limit` at most."""
        # Eight characters a token are more than any text has, and tokenizing all of a
        # large one to use its beginning would take minutes.
        with explained("The text cannot be encoded"):
            ids: list[int] = self.tokenizer(text[: 8 * limit], verbose=False).input_ids
        refuse_unknown_tokens(ids, self.engine.vocabulary_size, "The text")
        return ids[:limit]

    def warm_up(self, ids: list[int], new_tokens: int) -> float:
        """Seconds that the first prompt and tokens take, compiling included."""
        began = time.perf_counter()
        self.read_prompt(ids, new_tokens)
        self.decode(new_tokens - 1)
        return time.perf_counter() - began

    def read_prompt(self, ids: list[int], new_tokens: int) -> float:
        """Read a prompt and choose the first token; `decode` goes on from there.

        Args:
            ids: the prompt.
            new_tokens: how many tokens will be decoded at most, the first among them.

        Returns:
            Seconds from prompt in to first token out.
        """
        decoder, self._decoding = self._own_decoder(), None
        if decoder is not None:
            limit = self.engine.context_length
            room = FOLLOWED if limit is None else min(FOLLOWED, limit - len(ids))
            new_tokens = max(new_tokens, room)
        began = time.perf_counter()
        (self._state,) = self.engine.open(len(ids) + new_tokens)
        if decoder is not None:
            made = decoder.decode(self.engine, self._state, ids, _likeliest)
            self._decoding = _Decoding(decoder.name, made, new_tokens, self.engine.end_tokens)
            self._decoding.take(1)
        else:
            self._token = self._next(ids)
        return time.perf_counter() - began

    def decode(self, tokens: int) -> float:
        """Seconds that so many more tokens take, not stopping at the end of the text.

        With a decoder of its own, passes give different numbers of tokens. The text is decoded in
        the first call then, for `FOLLOWED` tokens at least or to its end, and each call takes so
        many times what a token took: a ratio of slices would count the fastest too much.
        """
        if self._decoding is not None:
            return tokens * self._decoding.seconds_per_token()
        began = time.perf_counter()
        for _ in range(tokens):
            self._token = self._next([self._token])
        return time.perf_counter() - began

    def _next(self, tokens: list[int]) -> int:
        (logits,) = self.engine.forward([self._state], [tokens])
        return int(logits[-1].argmax())

    def peak_memory(self) -> int:
        """Highest bytes since the model was loaded."""
        return memory.peak(self._device)

    def available_memory(self) -> int | None:
        """Bytes that one more process can take; None: unknown."""
        return memory.available(self._device)

    def write_reference(self, ids: list[int], path: str | None, prompt: int = 0) -> list[float]:
        """Predict each next token of a window; write all log-probabilities to a file.

        Args:
            ids: the window.
            path: of the file; None to write none.
            prompt: how many tokens to read at once before following the rest one at
                a time; 0 to predict the whole window in one pass.

        Returns:
            The negative log-likelihood of each predicted token, in nats.
        """
        likelihoods = []
        file: np.memmap[Any, np.dtype[np.float32]] | None = None
        row = 0
        for predicted, targets in self._predict(ids, prompt):
            if path is not None:
                if file is None:
                    shape = (len(ids) - (prompt or 1), predicted.shape[-1])
                    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
                file[row : row + len(predicted)] = predicted.cpu().numpy()
            row += len(predicted)
            likelihoods.extend(_negative_log_likelihood(predicted, targets))
        return likelihoods

    def compare(self, ids: list[int], path: str, prompt: int = 0) -> Compared:
        """Predict the same window in the same way and compare with what `write_reference` wrote.

        See:
            Dutta, A. et al. (2024). Accuracy is Not All You Need. arXiv:2407.09141.
        """
        reference = np.load(path, mmap_mode="r", allow_pickle=False)
        found: dict[str, list[float]] = {"nll": [], "kl": [], "agrees": [], "flips": []}
        row = 0
        for predicted, targets in self._predict(ids, prompt):
            # A copy: torch wants to own what it may write to.
            rows = torch.from_numpy(reference[row : row + len(predicted)].copy())
            expected = rows.to(predicted.device)
            row += len(predicted)
            found["nll"].extend(_negative_log_likelihood(predicted, targets))
            found["kl"].extend(divergence(expected, predicted))
            theirs, ours = expected.argmax(-1), predicted.argmax(-1)
            found["agrees"].extend((theirs == ours).float().tolist())
            found["flips"].extend(((theirs == targets) != (ours == targets)).float().tolist())
        Path(path).unlink()
        return Compared(**found)

    def write_layers(self, ids: list[int], path: str) -> str:
        """Write what each decoder layer makes of a window to a file.

        Returns:
            Why that cannot be had, as a clause; empty if it was written.
        """
        if self.model is None:
            return f"the engine {self.engine.name} shows no hidden states"
        try:
            states(self.model, ids).write(Path(path))
        except NoLensError as error:
            return str(error)
        return ""

    def compare_layers(self, ids: list[int], path: str) -> LayersCompared:
        """Read what `write_layers` of a candidate wrote for the same window, by the logit lens."""
        candidate = States.read(Path(path))
        Path(path).unlink()
        try:
            return LayersCompared(divergence_by_layer(self.model, ids, candidate))
        except NoLensError as error:
            return LayersCompared([], str(error))

    def _predict(self, ids: list[int], prompt: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield log-probabilities, float32 of shape (tokens, vocabulary), and the true tokens."""
        require(self.engine, "prompt_logprobs", "Measuring quality")
        targets = torch.tensor(ids, device=self._device)
        if prompt == 0:
            logits = self.engine.prompt_logits(ids)
            yield logits[:-1].float().log_softmax(-1), targets[1:]
            return
        (state,) = self.engine.open(len(ids))
        (logits,) = self.engine.forward([state], [ids[:prompt]])
        for position in range(prompt, len(ids)):
            yield logits.float().log_softmax(-1), targets[position : position + 1]
            if position + 1 < len(ids):
                (logits,) = self.engine.forward([state], [[ids[position]]])


class _Decoding:
    """A text that a decoder of its own generates.

    Args:
        name: of the decoder.
        made: what it yields.
        wanted: how many tokens are decoded, if it has so many.
        end: tokens that end it; what would follow them says nothing of speed.
    """

    def __init__(
        self, name: str, made: Iterator[Sequence[int]], wanted: int, end: frozenset[int]
    ) -> None:
        self._name = name
        self._made = made
        self._wanted = wanted
        self._end = end
        self._came = 0
        self._seconds: float | None = None

    def take(self, tokens: int) -> None:
        """Let passes be taken until there are so many tokens or the text ends, one at least.

        Raises:
            ModelError: the decoder ends before.
        """
        while True:
            more = next(self._made, None)
            if more is None:
                raise ModelError(
                    f'The decoder "{self._name}" ended after {self._came} tokens of {tokens}',
                    hint="Measuring does not stop at the end of a text.",
                )
            self._came += len(more)
            if self._came >= tokens or not self._end.isdisjoint(more):
                return

    def seconds_per_token(self) -> float:
        """Seconds that each token after the first pass takes, on average over the text."""
        if self._seconds is None:
            began, first = time.perf_counter(), self._came
            self.take(self._wanted)
            self._seconds = (time.perf_counter() - began) / max(1, self._came - first)
        return self._seconds


def _likeliest(logits: torch.Tensor, tokens: Sequence[int]) -> int:
    return int(logits.argmax())


def _negative_log_likelihood(predicted: torch.Tensor, targets: torch.Tensor) -> list[float]:
    chosen = predicted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    likelihoods: list[float] = (-chosen).tolist()
    return likelihoods
