"""The engine: sequences of one model, computed by compiled code."""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from ctypes import byref, c_int64, c_void_p
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from truthgpt_core.compiled_code import NativeError
from truthgpt_core.decoding import (
    Capabilities,
    Engine,
    GenerationError,
    SequenceState,
    end_tokens_of,
    generation_defaults,
    refuse_too_long,
    refuse_unknown_tokens,
)
from truthgpt_core.optimization import StoresMatrix
from truthgpt_plugin_native import library
from truthgpt_plugin_native.kv_cache import CacheChoice, CacheDtype, choice_of
from truthgpt_plugin_native.pages import let_go, move_to_large_pages
from truthgpt_plugin_native.products import torch_in_one_thread
from truthgpt_plugin_native.reading import Weights, why_not

logger = logging.getLogger(__name__)

LARGEST_DIVERGENCE = 0.1
"""Nats from the model's own logits, from which on the compiled code is not used. Rounding
activations to 8 bits takes some 0.001; what is computed wrongly takes whole nats."""

_CHECKED = 8
"""Tokens of the text that the first logits are compared on."""

_SMALL = 2**30
"""Bytes of weights from which on torch's threads take part in that."""


class NativeEngine(Engine):
    """Runs a decoder of the Llama family on a CPU.

    Sequences are independent of each other: a token has the same logits, in every bit, alone, among
    others, and whatever parts its prompt is given in.

    Args:
        model: one that `reading.why_not` has nothing against. Its parameters may be moved in
            memory, and must not be changed while the engine lives. Integers are copied where the
            processor reads them in another order.
        dtype: of keys and values: float32, bfloat16, or int8 with scales.
        choice: where tokens that are computed are counted; None to count none.

    Attributes:
        model: the model.

    Raises:
        NativeError: the code cannot be compiled, its threads cannot be started, or there is too
            little memory.
    """

    name: ClassVar[str] = "native"
    capabilities = Capabilities(fork=True, continuous_batching=True, hidden_cache=True)

    def __init__(self, model: Any, dtype: torch.dtype, choice: CacheChoice | None = None) -> None:
        self.model = model
        self._choice = choice
        self._library = library.load()
        self._process = os.getpid()
        team = library.team(torch.get_num_threads(), self._process)
        move_to_large_pages(model)
        self._weights = Weights(model, cache=dtype)
        config = model.config.get_text_config()
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary_size: int = model.get_input_embeddings().num_embeddings
        self.end_tokens = end_tokens_of(model)
        self.defaults = generation_defaults(model)
        self._about = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights_bytes": self._weights.bytes,
            "kernel": f"{self._library.engine_kernel().decode()}, keys and values in "
            f"{str(dtype).removeprefix('torch.')}",
        }
        self._engine = self._library.engine_new(
            team,
            byref(self._weights.shape),
            self._weights.layers,
            self._weights.norm,
            byref(self._weights.head),
            byref(self._weights.embedding),
        )
        if not self._engine:
            raise NativeError("There is no memory to compute in")
        weakref.finalize(self, self._library.engine_free, self._engine)
        self._about["cache_bytes_per_token"] = self._library.engine_cache_bytes(self._engine)
        self._angles: tuple[Tensor, Tensor] | None = None
        self._fingerprint = ""

    def open(self, positions: int, count: int = 1) -> list[SequenceState]:
        """Begin sequences; memory is taken as they are filled."""
        self._refuse_fork()
        refuse_too_long(positions, self.context_length)
        self._reach(positions)
        return [_State(self, positions, self._new(positions)) for _ in range(count)]

    def fork(self, state: SequenceState, length: int, positions: int) -> SequenceState:
        """Begin a sequence with a copy of the first tokens of another."""
        self._refuse_fork()
        row = self._own(state)
        if not 0 <= length <= row.length:
            raise GenerationError(f"A sequence of {row.length} tokens cannot give {length}")
        if length > positions:
            raise GenerationError(f"{length} tokens do not fit into {positions} positions")
        refuse_too_long(positions, self.context_length)
        self._reach(positions)
        copy = self._library.sequence_fork(self._engine, row.address, length, positions)
        forked = _State(self, positions, copy)
        forked.length = length
        return forked

    def forward(
        self,
        states: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        *,
        all_logits: bool = False,
    ) -> list[Tensor]:
        """Append tokens to sequences, all of them in one pass."""
        self._refuse_fork()
        rows = [self._own(state) for state in states]
        if len({id(row) for row in rows}) < len(rows):
            raise GenerationError("A sequence is given twice")
        for row, each in zip(rows, tokens, strict=True):
            if not each:
                raise GenerationError("The prompt is empty")
            refuse_unknown_tokens(each, self.vocabulary_size)
            if row.length + len(each) > row.positions:
                raise GenerationError(
                    f"The sequence has {row.positions} positions, and "
                    f"{row.length + len(each)} are needed",
                    hint="Open the sequences with more positions.",
                )
        counts = [len(each) for each in tokens]
        outs = counts if all_logits else [1] * len(counts)
        vocabulary = self._weights.shape.vocabulary
        logits = torch.empty(sum(outs), vocabulary, dtype=torch.float32)
        ids = [token for each in tokens for token in each]
        done = self._library.engine_forward(
            self._engine,
            len(rows),
            (c_void_p * len(rows))(*(row.address for row in rows)),
            (c_int64 * len(rows))(*counts),
            (c_int64 * len(ids))(*ids),
            int(all_logits),
            vocabulary,
            logits.data_ptr(),
        )
        if not done:
            raise GenerationError("There is no memory to compute in")
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        if self._choice is not None:
            self._choice.tokens += len(ids)
        return list(logits.split(outs))

    def crop(self, state: SequenceState, length: int) -> None:
        """Take back the last tokens of a sequence."""
        row = self._own(state)
        if not 0 <= length <= row.length:
            raise GenerationError(f"A sequence of {row.length} tokens cannot keep {length}")
        row.length = length
        self._library.sequence_crop(row.address, length)

    def close(self, states: Sequence[SequenceState]) -> None:
        """Free keys and values."""
        for state in states:
            row = self._own(state)
            row.address = None
            row.free()

    def let_go(self) -> None:
        """Take out of memory what the model has and compiled code no longer reads.

        It comes back from its file if the model is asked.
        """
        if self._library.engine_packs():
            let_go(self._weights.integers())

    def fingerprint(self) -> str:
        """Return a hash of the weights, the configuration, the code and the processor."""
        if not self._fingerprint:
            digest = hashlib.sha256(
                f"{self._about['kernel']} {version('truthgpt-plugin-native')} "
                f"{self.model.config.to_json_string()}".encode()
            )
            for name, tensor in self.model.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def describe(self) -> Mapping[str, Any]:
        """Return the size of the model, the dtype of most of it, and the instructions used."""
        return self._about

    def _refuse_fork(self) -> None:
        if os.getpid() != self._process:
            raise GenerationError(
                "The process was forked, and the engine's threads are not in it",
                hint="Make the engine anew in the fork.",
            )

    def _own(self, state: SequenceState) -> _State:
        if not isinstance(state, _State) or state.engine is not self:
            raise GenerationError("The sequence was opened by another engine")
        if state.address is None:
            raise GenerationError("The sequence is closed")
        return state

    def _new(self, positions: int) -> int | None:
        address: int | None = self._library.sequence_new(self._engine, positions)
        return address

    def _reach(self, positions: int) -> None:
        """Have the angles of so many positions."""
        have = 0 if self._angles is None else len(self._angles[0])
        if positions > have:
            longest = max(positions, 2 * have, 512)
            angles = self._weights.angles(longest)
            self._library.engine_angles(self._engine, *(each.data_ptr() for each in angles))
            # Only now may those before be freed: another thread may have computed with them.
            self._angles = angles


class _State(SequenceState):
    """One sequence."""

    def __init__(self, engine: NativeEngine, positions: int, address: int | None) -> None:
        self.engine = engine
        self.positions = positions
        self.length = 0
        if not address:
            raise GenerationError(f"There is no memory for a sequence of {positions} tokens")
        self.address: int | None = address
        self.free = weakref.finalize(self, engine._library.sequence_free, address)
        self.free.atexit = False


def make_engine(model: Any, kv_cache: CacheDtype | None = None) -> NativeEngine | None:
    """Return an engine for a model; None if the compiled code cannot run it as it runs itself.

    Args:
        model: a causal language model of transformers.
        kv_cache: the dtype of keys and values; None for what `KVCacheDtype` has chosen for the
            model, or else bfloat16 where weights are in bfloat16 or quantized, and float32
            elsewhere.
    """
    if reason := why_not(model):
        logger.info("The model runs on PyTorch: %s", reason)
        return None
    exact = model.dtype == torch.float32 and not _is_quantized(model)
    choice = choice_of(model) if kv_cache is None else None
    chosen = kv_cache if choice is None else choice.dtype
    dtype = getattr(torch, chosen or ("float32" if exact else "bfloat16"))
    try:
        engine = NativeEngine(model, dtype, choice)
        divergence = _divergence(engine, model)
    except NativeError as error:
        logger.warning("The model runs on PyTorch: %s", error)
        return None
    if divergence > LARGEST_DIVERGENCE:
        logger.warning(
            "The model runs on PyTorch: the first logits of compiled code differ by %.3g nats",
            divergence,
        )
        return None
    if choice is not None:
        choice.tokens = 0
    engine.let_go()
    return engine


def _is_quantized(model: Any) -> bool:
    return any(isinstance(module, StoresMatrix) for module in model.modules())


def _divergence(engine: NativeEngine, model: Any) -> float:
    """Return how far logits of a few tokens are from the model's own, in nats.

    Infinite if the model's own are not finite: what is broken is left to PyTorch, too.
    """
    step = max(1, engine.vocabulary_size // _CHECKED)
    count = min(_CHECKED, engine.context_length or _CHECKED)
    tokens = [number * step % engine.vocabulary_size for number in range(count)]
    # Most of a quantized model is computed by `multiply`, and reading a small one takes one thread
    # less time than it may take to wait for others, where other programs run.
    alone = _is_quantized(model) or engine.describe()["weights_bytes"] < _SMALL
    threads = torch_in_one_thread() if alone else nullcontext()
    with torch.inference_mode(), threads:
        own = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    own, given = own.log_softmax(-1), engine.prompt_logits(tokens).log_softmax(-1)
    if not bool(torch.isfinite(own).all() and torch.isfinite(given).all()):
        return float("inf")
    return float((own.exp() * (own - given)).sum(-1).mean())
