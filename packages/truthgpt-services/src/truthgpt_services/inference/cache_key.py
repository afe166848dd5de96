"""What an answer depends on, as a key that it is kept under."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from truthgpt_core.decoding import SAMPLING_OPTIONS, Decoder, Engine, SamplingParams
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.fingerprint import Fingerprint, UnseenError

_FORMAT = "4"
_CHUNK = 1 << 26
_LIBRARIES = ("truthgpt-services", "torch", "transformers", "numpy", "llguidance")

# Tensors whose changes PyTorch does not count are read for each key, up to so many bytes.
_UNCOUNTED = 1 << 20

_HOOKS = frozenset(
    {
        *("make_cache", "make_decode_step", "make_decoder", "make_engine", "make_stored_matmul"),
        "register_components",
    }
)
"""A plugin with one of them may take part in decoding."""

_Tensors = list[tuple[str, torch.Tensor]]


class Identity:
    """Makes the keys of requests to one model.

    In a key are the content of the weights and buffers; every module with its attributes, its
    hooks and the code that it runs; the configurations; the plugins that take part in
    decoding; the versions of the libraries that compute; and the request. Not in it is what
    changes an answer by rounding alone: the device, the threads, and which other prompts were
    decoded with this one. Nor is the tokenizer: tokens are kept and not their text.

    The weights are read when the first key is made, and again when one of them was changed or
    replaced. PyTorch counts changes, but not those that go past it: through `.data`, an array
    of NumPy that shares the memory, or the address.

    Args:
        engine: runs the model. The model of that of PyTorch is looked at; others have a
            `fingerprint`, or no keys.
        plugins: whose hooks are called.
    """

    def __init__(self, engine: Engine, plugins: PluginManager) -> None:
        self._engine = engine
        self._model: Any = getattr(engine, "model", None)
        self._plugins = plugins
        self._seen: _Seen | None = None
        self._content = ""

    def key(
        self,
        tokens: Sequence[int],
        params: SamplingParams,
        end: frozenset[int],
        decoder: Decoder,
        others: Mapping[str, Any],
    ) -> str:
        """Return the key of a request, 64 hexadecimal digits.

        Args:
            tokens: of the prompt.
            params: how tokens are chosen, and how many.
            end: tokens that end it.
            decoder: the strategy.
            others: the options that are not in `params`.

        Raises:
            UnseenError: something that can change the answer cannot be seen.
        """
        apart = {"max_new_tokens", "stop", "n", "logprobs", "prompt_logprobs"}
        if params.temperature == 0:
            # The likeliest token is the same one, whatever is said of chance.
            apart |= {"temperature", "top_k", "top_p", "min_p", "seed"}
        names = [name for name in SAMPLING_OPTIONS if name not in apart]
        chosen = {name: repr(getattr(params, name)) for name in names}
        chosen["logit_bias"] = repr(sorted(params.logit_bias.items()))
        parts = [
            _FORMAT,
            _versions(),
            self._of_engine(),
            self._of_plugins(),
            [*map(int, tokens)],
            int(params.max_new_tokens),
            chosen,
            sorted(end),
            sorted(params.stop),
            [decoder.name, *(f"{name}={others[name]!r}" for name in sorted(others))],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def forget(self) -> None:
        """Read the weights again for the next key."""
        self._seen = None

    def _of_engine(self) -> list[Any]:
        if not isinstance(self._engine, TorchEngine):
            found = self._engine.fingerprint()
            if found is None:
                raise UnseenError(f"what the engine {self._engine.name} computes cannot be seen")
            return [self._engine.name, found]
        device = next(self._model.parameters()).device.type
        return [
            self._of_model(),
            [str(torch.get_default_dtype()), torch.is_autocast_enabled(device)],
            str(torch.get_autocast_dtype(device)),
        ]

    def _of_model(self) -> list[str]:
        fingerprint = Fingerprint()
        structure = repr(fingerprint.of_model(self._model))
        tensors = [
            *self._model.named_parameters(),
            *self._model.named_buffers(),
            *fingerprint.tensors,
        ]
        for name, tensor in tensors:
            _check_readable(name, tensor)
        counted = [each for each in tensors if not each[1].is_inference()]
        if self._seen is None or not self._seen.are(counted):
            # Looked at before they are read: a change meanwhile is then seen next time.
            seen = _Seen(counted)
            self._content = _content(counted)
            self._seen = seen
        return [
            hashlib.sha256(structure.encode()).hexdigest(),
            self._content,
            _content(_uncounted(tensors)),
        ]

    def _of_plugins(self) -> list[list[str]]:
        found = []
        for row in self._plugins.rows():
            if _HOOKS.isdisjoint(row.hooks or ()):
                continue
            # Who writes a plugin as a file changes it more often than its version.
            code = b""
            if row.file is not None:
                try:
                    code = row.file.read_bytes()
                except OSError:
                    raise UnseenError(f"the file of the plugin {row.name} is gone") from None
            elif row.distribution is None:
                raise UnseenError(
                    f"the plugin {row.name} takes part in decoding and was registered by hand"
                )
            release = row.own_version if row.distribution is None else row.distribution.version
            found.append([row.name, str(release), hashlib.sha256(code).hexdigest()])
        return found


class _Seen:
    """Tensors as they were once, without keeping them."""

    def __init__(self, tensors: _Tensors) -> None:
        self._steps = _optimizer_steps().made
        # An address alone could by now be that of another tensor.
        self._tensors = [
            (name, weakref.ref(tensor), tensor.data_ptr(), tensor._version)
            for name, tensor in tensors
        ]

    def are(self, tensors: _Tensors) -> bool:
        if self._steps != _optimizer_steps().made:
            return False
        return len(tensors) == len(self._tensors) and all(
            before == name
            and seen() is tensor
            and address == tensor.data_ptr()
            and changes == tensor._version
            for (before, seen, address, changes), (name, tensor) in zip(
                self._tensors, tensors, strict=True
            )
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


@cache
def _versions() -> list[str]:
    return [version(library) for library in _LIBRARIES]


def _check_readable(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_meta:
        raise UnseenError(f"{name} is not in memory")
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not plain or tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnseenError(f"{name} is a {type(tensor).__name__} whose bytes cannot be read")


def _uncounted(tensors: _Tensors) -> _Tensors:
    found = [each for each in tensors if each[1].is_inference()]
    if sum(tensor.nbytes for _, tensor in found) > _UNCOUNTED:
        raise UnseenError(
            f"{found[0][0]} was made in inference mode, where PyTorch does not count changes"
        )
    return found


def _content(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), _CHUNK):
            digest.update(flat[begin : begin + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()
