"""The engine that runs a model of transformers with PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from truthgpt_core.decoding import (
    Capabilities,
    Engine,
    GenerationError,
    KVCache,
    SequenceState,
    end_tokens_of,
    generation_defaults,
    refuse_too_long,
    refuse_unknown_tokens,
)
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.optimization import StoresMatrix
from truthgpt_services.models.saved_model import weights_bytes

DecodeStep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_CHOSEN_BY = ("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16")
"""What a CPU may have for which PyTorch takes other kernels, and does not say so itself."""

SMALLEST_CACHE = 256
"""Positions in the smallest cache; larger ones double, so that few shapes are ever compiled."""


class TorchEngine(Engine):
    """Runs a causal language model of transformers.

    Sequences that are opened together share a key-value cache and are computed in one pass; what
    differs in length between them is padded on the left and masked.

    Args:
        model: the model, on its device.
        hooks: `make_cache` makes the caches, `make_decode_step` the step that computes one token.

    Attributes:
        model: the model.
        device: where it is.
    """

    name: ClassVar[str] = "torch"

    def __init__(self, model: Any, hooks: Hooks) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        config = model.config.get_text_config()
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        known = getattr(model.get_input_embeddings(), "num_embeddings", None)
        known = known or getattr(config, "vocab_size", None)
        self.vocabulary_size: int | None = known if isinstance(known, int) else None
        self.end_tokens = end_tokens_of(model)
        self.defaults = generation_defaults(model)
        self.capabilities = Capabilities(crop=_can_crop(model))
        self._hooks = hooks
        forward = inspect.signature(type(model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    def open(self, positions: int, count: int = 1) -> list[SequenceState]:
        """Begin sequences that share a cache."""
        length = cache_length(positions, self.context_length)
        # torch.compile compiles once for tensors made in inference mode and again for
        # others: the step always gets these, wherever a token comes from.
        with torch.inference_mode():
            cache = self._hooks.make_cache(model=self.model, rows=count, positions=length)
            if cache is None:
                raise GenerationError(f"No plugin has a key-value cache for {self._kind}")
            group = _Group(self, cache, count, length)
        return list(group.states)

    def forward(
        self,
        states: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        *,
        all_logits: bool = False,
    ) -> list[torch.Tensor]:
        """Append tokens; sequences that were opened together take one pass."""
        for each in tokens:
            self._check(each)
        groups: dict[_Group, list[int]] = {}
        rows = [self._own(state) for state in states]
        if len(set(rows)) < len(rows):
            raise GenerationError("A sequence is given twice")
        for index, row in enumerate(rows):
            groups.setdefault(row.group, []).append(index)
        # Of all groups before the first is computed: an error changes none.
        for group, indices in groups.items():
            group.check_room(max(len(tokens[index]) for index in indices))
        found: dict[_Row, torch.Tensor] = {}
        with torch.inference_mode():
            for group, indices in groups.items():
                given = {rows[index]: tokens[index] for index in indices}
                found |= group.forward(given, all_logits=all_logits)
        return [found[row] for row in rows]

    def prompt_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Compute them without a cache."""
        self._check(tokens)
        ids = torch.tensor([list(tokens)], device=self.device)
        with torch.inference_mode():
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return logits

    def crop(self, state: SequenceState, length: int) -> None:
        """Take back the last tokens of a sequence."""
        if not 0 <= length <= state.length:
            raise GenerationError(f"A sequence of {state.length} tokens cannot keep {length}")
        if length < state.length:
            row = self._own(state)
            with torch.inference_mode():
                row.group.crop(row, length)

    def close(self, states: Sequence[SequenceState]) -> None:
        """Go on without these sequences; the cache is freed with the last that shares it."""
        for state in states:
            _row(state).closed = True

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep the model in evaluation mode: one that is being trained drops out at random else."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def describe(self) -> dict[str, Any]:
        """Return the size of the model, the dtype of most of it, and what computes."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights_bytes": weights_bytes(self.model),
            "kernel": _kernel(self.model, self.device),
        }

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise GenerationError("The prompt is empty")
        refuse_unknown_tokens(tokens, self.vocabulary_size)

    def _own(self, state: SequenceState) -> _Row:
        row = _row(state)
        if not row.group.is_of(self):
            raise GenerationError("The sequence was opened by another engine")
        if row.closed:
            raise GenerationError("The sequence is closed")
        return row

    @property
    def _kind(self) -> str:
        return type(self.model).__name__


class _Row(SequenceState):
    """One sequence of a group."""

    def __init__(self, group: _Group, index: int, positions: int) -> None:
        self.group = group
        self.index = index
        self.length = 0
        self.positions = positions
        self.closed = False


class _Group:
    """Sequences that share a cache: each pass appends the same number of columns to all of them.

    A column in which a sequence has no token is masked for it: padding on the left, tokens that
    were cropped, and passes that it took no part in.
    """

    def __init__(self, engine: TorchEngine, cache: KVCache, rows: int, length: int) -> None:
        self.states = [_Row(self, index, length) for index in range(rows)]
        self._engine = engine
        self._cache = cache
        self._length = length
        self._columns = 0
        # 1 where a sequence has a token; None as long as it is 1 everywhere.
        self._mask: torch.Tensor | None = None
        self._step: DecodeStep | None = None
        self._token = torch.zeros(rows, 1, dtype=torch.int64, device=engine.device)
        self._position = torch.zeros_like(self._token)

    def is_of(self, engine: TorchEngine) -> bool:
        return self._engine is engine

    def check_room(self, width: int) -> None:
        if self._columns + width > self._length:
            raise GenerationError(
                f"The cache has {self._length} positions, and {self._columns + width} are needed",
                hint="Open the sequences with more positions.",
            )

    def forward(
        self, tokens: dict[_Row, Sequence[int]], *, all_logits: bool
    ) -> dict[_Row, torch.Tensor]:
        width = max(map(len, tokens.values()))
        given = [tokens.get(row, ()) for row in self.states]
        lengths = [row.length for row in self.states]
        ids = [[0] * (width - len(each)) + list(each) for each in given]
        # Nobody looks at what follows a sequence that is closed, so it needs no mask.
        mask = [
            [1] * width if row.closed else [0] * (width - len(each)) + [1] * len(each)
            for row, each in zip(self.states, given, strict=True)
        ]
        places = [
            [max(length + column - (width - len(each)), 0) for column in range(width)]
            for each, length in zip(given, lengths, strict=True)
        ]
        if self._mask is not None or not all(map(all, mask)):
            added = torch.tensor(mask, device=self._engine.device)
            self._mask = torch.cat([self._known_mask(), added], dim=1)
        with self._masked():
            logits = self._logits(ids, places, all_logits=all_logits or width == 1)
        self._columns += width
        for row, each in zip(self.states, given, strict=True):
            row.length += width if row.closed else len(each)
        found = {}
        for row, each in tokens.items():
            of = logits[row.index]
            found[row] = of[width - len(each) :] if all_logits else of[-1:]
        return found

    def crop(self, row: _Row, length: int) -> None:
        removed = row.length - length
        row.length = length
        if len(self.states) == 1 and self._mask is None and self._shortened(length):
            self._columns = length
            return
        # The columns stay, and are masked.
        mask = self._known_mask()
        mask[row.index, mask[row.index].nonzero()[-removed:, 0]] = 0
        self._mask = mask

    def _known_mask(self) -> torch.Tensor:
        if self._mask is not None:
            return self._mask
        shape = (len(self.states), self._columns)
        return torch.ones(shape, dtype=torch.int64, device=self._engine.device)

    def _shortened(self, length: int) -> bool:
        """Take columns off the cache itself, where every layer can do so."""
        layers = self._cache.layers
        if all(type(layer) is StaticLayer for layer in layers):
            for layer in layers:
                layer.cumulative_length.fill_(length)
            return True
        if all(type(layer) is DynamicLayer for layer in layers):
            for layer in layers:
                layer.crop(length - self._columns)
            return True
        return False

    def _logits(
        self, ids: list[list[int]], places: list[list[int]], *, all_logits: bool
    ) -> torch.Tensor:
        """Return logits of shape (rows, columns or 1, vocabulary)."""
        engine = self._engine
        if self._step is not None and len(ids[0]) == 1:
            self._token.copy_(torch.tensor(ids))
            self._position.copy_(torch.tensor(places))
            return self._step(self._token, self._position).unsqueeze(1)
        logits: torch.Tensor = engine.model(
            input_ids=torch.tensor(ids, device=engine.device),
            position_ids=torch.tensor(places, device=engine.device),
            past_key_values=self._cache,
            use_cache=True,
            **({} if all_logits else engine._last_only),
        ).logits
        if self._step is None:
            self._step = engine._hooks.make_decode_step(model=engine.model, cache=self._cache)
        return logits

    @contextmanager
    def _masked(self) -> Iterator[None]:
        """Mask columns without a token in every call of the model with this cache.

        Plugins do so too: a step of theirs need not know that there is padding.
        """
        if self._mask is None:
            # Then nothing need be added to what one sequence alone computes.
            yield
            return
        mask = self._mask
        if getattr(self._cache, "is_compileable", False):
            mask = torch.nn.functional.pad(mask, (0, self._length - mask.shape[1]), value=1)

        def add_mask(module: Any, arguments: Any, keywords: Any) -> Any:
            if keywords.get("past_key_values") is self._cache:
                keywords = {**keywords, "attention_mask": mask}
            return arguments, keywords

        handle = self._engine.model.register_forward_pre_hook(add_mask, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _row(state: SequenceState) -> _Row:
    if not isinstance(state, _Row):
        raise GenerationError("The sequence was opened by another engine")
    return state


def _kernel(model: Any, device: torch.device) -> str:
    """Return what PyTorch's choice of kernels depends on, and those of layers that have their own.

    How sums are split among threads changes how they are rounded.
    """
    parts = [f"torch {torch.__version__}"]
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        parts.append(torch.backends.cpu.get_cpu_capability())
        parts += [each for each in _CHOSEN_BY if capabilities.get(each)]
        parts.append(f"{torch.get_num_threads()} threads")
    elif device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    else:
        parts.append(device.type)
    layers = {
        getattr(each, "kernel", "") for each in model.modules() if isinstance(each, StoresMatrix)
    }
    parts += [f"layers {each}" for each in sorted(filter(None, map(str, layers)))]
    return ", ".join(parts)


def _can_crop(model: Any) -> bool:
    """Whether all that a model keeps of a sequence are keys and values of every token."""
    if getattr(model, "_is_stateful", False):
        return False
    layers = transformers_cache(model, 1).layers
    return all(type(layer) in (StaticLayer, DynamicLayer) for layer in layers)


def cache_length(positions: int, limit: int | None) -> int:
    """Return the length of the cache for a sequence: a power of two that holds it, up to the limit.

    Raises:
        GenerationError: the model cannot hold that many positions.
    """
    refuse_too_long(positions, limit)
    length = SMALLEST_CACHE
    while length < positions:
        length *= 2
    return length if limit is None else max(positions, min(length, limit))


def transformers_cache(model: Any, positions: int) -> KVCache:
    """Return a cache of transformers: static where the model can be compiled with one.

    Args:
        model: a causal language model of transformers.
        positions: in a static one.
    """
    if getattr(model, "_can_compile_fullgraph", False):
        static: KVCache = StaticCache(config=model.config, max_cache_len=positions)
        return static
    dynamic: KVCache = DynamicCache(config=model.config)
    return dynamic
