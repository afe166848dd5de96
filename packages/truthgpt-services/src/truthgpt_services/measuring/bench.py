"""Measurements of one model that is in memory: its speed, and how well it predicts a text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truthgpt_core.hookspecs import Hooks
from truthgpt_services.inference.decoding import (
    Sampling,
    Sequence,
    choose,
    refuse_unknown_tokens,
    stop_tokens,
    stream,
    vocabulary_of,
)
from truthgpt_services.inference.prompts import as_conversation, read_prompt
from truthgpt_services.measuring import memory
from truthgpt_services.measuring.divergence import divergence
from truthgpt_services.measuring.logit_lens import NoLensError, States, divergence_by_layer, states
from truthgpt_services.models.loading import explained
from truthgpt_services.models.saved_model import weights_bytes

_GREEDY = Sampling()


class Bench:
    """Measures a model; every method takes and returns what JSON can hold.

    Args:
        model: a causal language model of transformers.
        tokenizer: to go with it.
        hooks: the hooks of the plugin manager.

    Attributes:
        model: the model.
    """

    def __init__(self, model: Any, tokenizer: Any, hooks: Hooks) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._hooks = hooks
        self._device = next(model.parameters()).device

    def describe(self) -> dict[str, Any]:
        """Say what the model is made of, and begin to watch its memory."""
        memory.reset_peak(self._device)
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights_bytes": weights_bytes(self.model),
        }

    def tokenize(self, text: str, limit: int) -> list[int]:
        """The first tokens of a text, `limit` at most."""
        # Eight characters a token are more than any text has, and tokenizing all of a
        # large one to use its beginning would take minutes.
        with explained("The text cannot be encoded"):
            ids: list[int] = self._tokenizer(text[: 8 * limit], verbose=False).input_ids
        refuse_unknown_tokens(ids, vocabulary_of(self.model), "The text")
        return ids[:limit]

    def warm_up(self, ids: list[int], new_tokens: int) -> float:
        """Seconds that the first prompt and tokens take, compiling included."""
        return self.read_prompt(ids, new_tokens) + self.decode(new_tokens - 1)

    def read_prompt(self, ids: list[int], new_tokens: int) -> float:
        """Read a prompt and choose the first token; `decode` goes on from there.

        Args:
            ids: the prompt.
            new_tokens: how many tokens will be decoded at most, the first among them.

        Returns:
            Seconds from prompt in to first token out.
        """
        with torch.inference_mode():
            began = time.perf_counter()
            self._sequence = Sequence(self.model, self._hooks, len(ids) + new_tokens)
            self._token = choose(self._sequence.prefill(torch.tensor([ids])), _GREEDY, None)
            self._token.item()
            return time.perf_counter() - began

    def decode(self, tokens: int) -> float:
        """Seconds that so many more tokens take, not stopping at the end of the text."""
        with torch.inference_mode():
            began = time.perf_counter()
            for _ in range(tokens):
                self._token = choose(self._sequence.step(self._token), _GREEDY, None)
                self._token.item()
            return time.perf_counter() - began

    def peak_memory(self) -> int:
        """Highest bytes since the model was loaded."""
        return memory.peak(self._device)

    def available_memory(self) -> int | None:
        """Bytes that one more process can take; None: unknown."""
        return memory.available(self._device)

    def sample(self, prompt: str, new_tokens: int) -> str:
        """What the model says to a prompt, greedily.

        A model with a chat template is asked the prompt, and its answer begins a line; any
        other continues the prompt.
        """
        read = read_prompt(self._tokenizer, as_conversation(self._tokenizer, prompt))
        tokens = stream(
            self.model,
            self._hooks,
            torch.tensor([read.tokens]),
            max_new_tokens=new_tokens,
            stop=stop_tokens(self.model, self._tokenizer),
        )
        text: str = self._tokenizer.decode(list(tokens))
        return f"\n{text}" if read.is_chat else text

    def write_reference(self, ids: list[int], path: str | None, *, prompt: int = 0) -> list[float]:
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

    def compare(self, ids: list[int], path: str, *, prompt: int = 0) -> dict[str, list[float]]:
        """Predict the same window in the same way and compare with what `write_reference` wrote.

        Returns:
            For each predicted token: `nll`, the negative log-likelihood in nats;
            `kl`, KL(reference || this) in nats; `agrees`, 1 if both have the same
            first choice, else 0; `flips`, 1 if the first choice of one of them is the
            true token and that of the other is not, else 0.

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
        return found

    def write_layers(self, ids: list[int], path: str) -> str:
        """Write what each decoder layer makes of a window to a file.

        Returns:
            Why that cannot be had, as a clause; empty if it was written.
        """
        try:
            states(self.model, ids).write(Path(path))
        except NoLensError as error:
            return str(error)
        return ""

    def compare_layers(self, ids: list[int], path: str) -> dict[str, Any]:
        """Read what `write_layers` of a candidate wrote for the same window, with the logit lens.

        Returns:
            `kl`: for each layer KL(this || candidate) at each token, in nats;
            `missing`: why that cannot be had, as a clause, or empty.
        """
        candidate = States.read(Path(path))
        Path(path).unlink()
        try:
            return {"kl": divergence_by_layer(self.model, ids, candidate), "missing": ""}
        except NoLensError as error:
            return {"kl": [], "missing": str(error)}

    def _predict(self, ids: list[int], prompt: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield log-probabilities, float32 of shape (tokens, vocabulary), and the true tokens."""
        tokens = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            if prompt == 0:
                logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1]
                yield logits.float().log_softmax(-1), tokens[0, 1:]
                return
            sequence = Sequence(self.model, self._hooks, len(ids))
            logits = sequence.prefill(tokens[:, :prompt])
            for position in range(prompt, len(ids)):
                token = tokens[:, position : position + 1]
                yield logits.float().log_softmax(-1), token[0]
                if position + 1 < len(ids):
                    logits = sequence.step(token)


def _negative_log_likelihood(predicted: torch.Tensor, targets: torch.Tensor) -> list[float]:
    chosen = predicted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    likelihoods: list[float] = (-chosen).tolist()
    return likelihoods
