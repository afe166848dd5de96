"""What an answer depends on, as a key that it is kept under."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.data.encoding import TextEncoder
from truthgpt_services.inference.decoding import GenerationError, Sampling

_FORMAT = "1"
_CHUNK = 1 << 26
_LIBRARIES = ("truthgpt-services", "torch", "transformers")


class Identity:
    """Makes the keys of requests to one model.

    In a key are the content of the weights, the modules they are in, the model's
    configuration and the adapters in use; the tokenizer; the plugins that take part in
    decoding; the versions of the libraries that compute; and the request. Not in it is what
    changes an answer by rounding alone: the device, the threads, and which other prompts were
    decoded with this one.

    The weights are read when the first key is made, and again when one of them was changed or
    replaced. PyTorch counts changes, but not those that are made through `.data`.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        plugins: whose hooks are called.
    """

    def __init__(self, model: Any, tokenizer: Any, plugins: PluginManager) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._plugins = plugins
        self._seen: _Seen | None = None
        self._content = ""
        self._words: tuple[int, str] | None = None

    def key(
        self, tokens: Sequence[int], max_new_tokens: int, sampling: Sampling, stop: frozenset[int]
    ) -> str:
        """Return the key of a request, 64 hexadecimal digits.

        Args:
            tokens: of the prompt.
            max_new_tokens: how many the answer has at most.
            sampling: how they are chosen.
            stop: those that end it.

        Raises:
            GenerationError: the weights are not in memory.
        """
        chosen = asdict(sampling)
        if sampling.temperature == 0:
            # The likeliest token is the same one, whatever else was said.
            chosen = {"temperature": 0.0}
        parts = [
            _FORMAT,
            [version(library) for library in _LIBRARIES],
            self._of_model(),
            _adapters(self._model),
            self._of_tokenizer(),
            self._of_plugins(),
            [*map(int, tokens)],
            int(max_new_tokens),
            {name: repr(value) for name, value in chosen.items()},
            sorted(stop),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _of_model(self) -> str:
        if self._seen is None or not self._seen.are_those_of(self._model):
            # Looked at before they are read: a change meanwhile is then seen next time.
            seen = _Seen(self._model)
            self._content = f"{_structure(self._model)} {_content(self._model)}"
            self._seen = seen
        return self._content

    def _of_tokenizer(self) -> str:
        # Tokens can be added to a tokenizer; nothing else of it changes in use.
        size = len(self._tokenizer)
        if self._words is None or self._words[0] != size:
            spaces = getattr(self._tokenizer, "clean_up_tokenization_spaces", None)
            kind = type(self._tokenizer).__qualname__
            self._words = size, f"{kind} {spaces} {TextEncoder(self._tokenizer).key}"
        return self._words[1]

    def _of_plugins(self) -> list[list[str]]:
        found = []
        for row in self._plugins.rows():
            if "make_decode_step" not in (row.hooks or ()):
                continue
            release = row.own_version if row.distribution is None else row.distribution.version
            # Who writes a plugin as a file changes it more often than its version.
            code = b"" if row.file is None else row.file.read_bytes()
            found.append([row.name, str(release), hashlib.sha256(code).hexdigest()])
        return found


class _Seen:
    """The weights of a model as they were once, without keeping them."""

    def __init__(self, model: Any) -> None:
        self._steps = _optimizer_steps().made
        # An address alone could by now be that of another tensor.
        self._tensors = [
            (weakref.ref(tensor), tensor.data_ptr(), _changes(tensor))
            for _, tensor in _tensors(model)
        ]

    def are_those_of(self, model: Any) -> bool:
        if self._steps != _optimizer_steps().made:
            return False
        now = [tensor for _, tensor in _tensors(model)]
        return len(now) == len(self._tensors) and all(
            seen() is tensor and address == tensor.data_ptr() and changes == _changes(tensor)
            for (seen, address, changes), tensor in zip(self._tensors, now, strict=True)
        )


class _Steps:
    """How many steps all optimizers of the process have made, of whichever model."""

    def __init__(self) -> None:
        self.made = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.made += 1


@cache
def _optimizer_steps() -> _Steps:
    # The fused ones change weights without PyTorch counting it.
    return _Steps()


def _changes(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _content(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            raise GenerationError(
                f"The cache cannot tell whose answers it has: {name} is not in memory",
                hint='Configure with "use_cache": False.',
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), _CHUNK):
            digest.update(flat[begin : begin + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()


def _structure(model: Any) -> str:
    """Return a hash of what a model is besides its weights."""
    config = model.config.to_dict()
    # Where it was loaded from.
    config.pop("_name_or_path", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(repr(model).encode())
    return digest.hexdigest()


def _adapters(model: Any) -> list[str]:
    """Say which adapters of peft are in use, layer by layer: that can be switched."""
    used = []
    for name, module in model.named_modules():
        active = getattr(module, "active_adapters", None)
        if isinstance(active, list | tuple):
            used.append(f"{name} {active} {getattr(module, 'disable_adapters', None)}")
    return used
