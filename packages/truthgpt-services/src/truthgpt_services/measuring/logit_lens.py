"""Where in a model a candidate comes to diverge from the baseline: the logit lens.

The hidden states after each decoder layer are read as if that layer were the last
one: through the baseline's final norm and its output embedding. Both models' states
go through the same two, so what differs is what the layers did.

See:
    nostalgebraist (2020). interpreting GPT: the logit lens. LessWrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truthgpt_services.measuring.divergence import divergence

_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
"""What transformers' models call the norm after their last layer."""


_HOOKED = "_output_capturing_hooks_installed"
"""How transformers marks a model that has its hooks."""


class NoLensError(Exception):
    """A model cannot be looked into; the message says why, as a clause."""


@dataclass(frozen=True)
class States:
    """What a model computes for one window.

    Attributes:
        hidden: after each decoder layer but the last, float32 of shape (layers - 1,
            tokens, width): what the last one leaves is in `logits`.
        logits: float32 of shape (tokens, vocabulary).
    """

    hidden: torch.Tensor
    logits: torch.Tensor

    def write(self, path: Path) -> None:
        """Write them to a file of that very name."""
        with path.open("wb") as file:
            np.savez(file, hidden=self.hidden.cpu().numpy(), logits=self.logits.cpu().numpy())

    @classmethod
    def read(cls, path: Path) -> States:
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(torch.from_numpy(file["hidden"]), torch.from_numpy(file["logits"]))


def states(model: Any, ids: list[int]) -> States:
    """Compute the states of a window.

    Args:
        model: a causal language model of transformers.
        ids: the window.

    Raises:
        NoLensError: the model does not give its hidden states.
    """
    return _states(model, ids)[0]


def divergence_by_layer(model: Any, ids: list[int], candidate: States) -> list[list[float]]:
    """Read a candidate's states with the baseline's lens.

    Args:
        model: the baseline.
        ids: the window that `candidate` was computed for.
        candidate: its states.

    Returns:
        For each decoder layer KL(baseline || candidate) at each token, in nats. The last
        layer's is that of the real predictions.

    Raises:
        NoLensError: the baseline's structure is not known, or the two do not match.
    """
    norm, head = _lens(model)
    ours, last = _states(model, ids, norm)
    for what, one, other in (
        ("layers", candidate.hidden.shape[0] + 1, ours.hidden.shape[0] + 1),
        ("hidden values for a token", candidate.hidden.shape[2], ours.hidden.shape[2]),
        ("tokens in its vocabulary", candidate.logits.shape[1], ours.logits.shape[1]),
    ):
        if one != other:
            raise NoLensError(f"it has {one} {what}, and the baseline {other}")

    def read(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = head(norm(hidden.to(last)))
        return logits.float().log_softmax(-1)

    with torch.inference_mode():
        # A model that scales or caps its logits does more than what is read here.
        if not torch.allclose(head(last)[0].float(), ours.logits, rtol=1e-2, atol=1e-2):
            raise NoLensError("its logits are more than a norm and its output embedding")
        found = [
            divergence(read(mine[None])[0], read(theirs[None])[0])
            for mine, theirs in zip(ours.hidden, candidate.hidden, strict=True)
        ]
        real = candidate.logits.to(last.device).log_softmax(-1)
        found.append(divergence(ours.logits.log_softmax(-1), real))
    return found


def _lens(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Module):
        raise NoLensError("it has no output embedding")
    body = model.base_model
    for owner in (body, getattr(body, "decoder", None)):
        for name in _NORMS:
            norm = getattr(owner, name, None)
            if isinstance(norm, torch.nn.Module):
                return norm, head
    raise NoLensError(f"no final norm is known of {type(model).__name__}")


def _states(
    model: Any, ids: list[int], norm: torch.nn.Module | None = None
) -> tuple[States, torch.Tensor]:
    """Return the states, and what `norm`, if given, made of the last layer's."""
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    normed: list[torch.Tensor] = []
    hook = None
    if norm is not None:
        hook = norm.register_forward_hook(lambda _module, _args, out: normed.append(out))
    try:
        # Code that was compiled without hidden states would have to be compiled anew.
        with (
            torch.inference_mode(),
            torch.compiler.set_stance("force_eager"),
            _without_lasting_hooks(model),
        ):
            found = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    finally:
        if hook is not None:
            hook.remove()
    hidden = getattr(found, "hidden_states", None)
    if not hidden or len(hidden) < 2:
        raise NoLensError(f"{type(model).__name__} does not give its hidden states")
    # The first are the embeddings; the last have gone through the norm already.
    between = [each[0].float() for each in hidden[1:-1]]
    stacked = torch.stack(between) if between else hidden[-1].new_empty(0, *hidden[-1].shape[1:])
    if norm is not None and not normed:
        raise NoLensError(f"{type(model).__name__} does not use its final norm as others do")
    last = normed[-1] if normed else hidden[-1]
    return States(stacked.float(), found.logits[0].float()), last


@contextmanager
def _without_lasting_hooks(model: Any) -> Iterator[None]:
    """Take away the hooks that transformers leaves in a model that it read hidden states from.

    What is measured later would be another model: hooks keep compiled code from being used.
    """
    before = {module: set(module._forward_hooks) for module in model.modules()}
    marked = {module for module in before if hasattr(module, _HOOKED)}
    try:
        yield
    finally:
        for module, known in before.items():
            for key in module._forward_hooks.keys() - known:
                del module._forward_hooks[key]
            if hasattr(module, _HOOKED) and module not in marked:
                delattr(module, _HOOKED)
