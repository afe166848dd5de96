"""Compiling for one model: how often, why again, and what happens when it fails."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import get_compilation_metrics
from torch._inductor import list_mode_options
from torch._inductor.compile_fx import compile_fx

from truthgpt_core.optimization import Note, no_note
from truthgpt_plugin_compile.compile_cache import CodeCache

logger = logging.getLogger(__name__)

ABOUT = "compiling"


class Compilation:
    """Compiles functions for one model, counts, and gives up where compiling fails.

    Args:
        mode: as for `torch.compile`.
        max_recompilations: after the first graph; further shapes then run uncompiled.
        code_cache: where compiled code is kept.
        note: tells the user of what happened; a copy of the model tells nothing.
    """

    def __init__(
        self, mode: str, max_recompilations: int, code_cache: CodeCache, note: Note = no_note
    ) -> None:
        self._note = note
        self._mode = mode
        self._limit = max_recompilations
        self._code_cache = code_cache
        self._graphs = 0
        self._calls = 0
        self._seconds = 0.0
        self._reason = ""
        self._full = False
        self._failed = False
        self._reported_graphs = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy counts anew."""
        return Compilation, (self._mode, self._limit, self._code_cache)

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether a result is overwritten by that of the next step."""
        return self._mode == "reduce-overhead" and torch.cuda.is_available()

    @property
    def calls(self) -> int:
        """How often compiled code has run to its end."""
        return self._calls

    def compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` as a function that compiles itself when it first runs.

        Args:
            call: what is compiled belongs to the result alone, not to its code.
        """
        # Not dynamic: a decode step always has the same shapes, and code for any shape
        # is slower.
        compiled: Callable[..., Any] = torch.compile(
            _with_own_code(call), dynamic=False, fullgraph=True, backend=self._compile
        )
        return compiled

    def attempt(self, compiled: Callable[[], Any], eager: Callable[[], Any]) -> Any:
        """Run compiled, or as before where compiling fails or there are too many shapes.

        Both are known before anything is computed, so nothing is computed twice.

        Args:
            compiled: runs what `compiled` returned.
            eager: does the same uncompiled.
        """
        if self._failed:
            return eager()
        try:
            if not self._full:
                return compiled()
            with torch.compiler.set_stance("eager_on_recompile"):
                return compiled()
        except FailOnRecompileLimitHit:
            self._stop_recompiling("torch compiles no more in one process")
            failure = None
        except TorchDynamoException as error:
            failure = _one_line(error)
        # Not in the handlers: what the model itself raises is then the only error seen.
        result = eager()
        if failure is not None:
            self._give_up(failure)
        return result

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step of the model: tells afterwards of what was compiled in it."""
        began = time.perf_counter()
        yield
        if self._graphs == self._reported_graphs:
            return
        self._reported_graphs = self._graphs
        self._seconds += time.perf_counter() - began
        if self._graphs > 1:
            self._reason = _last_reason()
        if not self._failed:
            self._tell(self._account())
        if self._graphs > 1 + self._limit:
            self._stop_recompiling(
                f"recompiled {self._graphs - 1} times, max_recompilations is {self._limit}"
            )

    def _compile(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        self._graphs += 1
        with self._code_cache.in_use():
            code: Any = compile_fx(graph, inputs, config_patches=list_mode_options(self._mode))

        def counted(*args: Any) -> Any:
            answer = code(*args)
            self._calls += 1
            return answer

        return counted

    def _account(self) -> str:
        text = f"Compiled {_graphs(self._graphs)} in {self._seconds:.1f} s, with no graph breaks"
        if self._graphs > 1:
            text += f"; the last because of {self._reason}"
        return text + "."

    def _stop_recompiling(self, why: str) -> None:
        if self._full:
            return
        self._full = True
        reason = self._reason or _last_reason()
        logger.warning("New shapes run uncompiled from here on: %s; the last: %s", why, reason)
        self._tell(f"New shapes run uncompiled: {why}; the last: {reason}.", f"{ABOUT} again")

    def _give_up(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        message = f"The model runs uncompiled, because compiling failed: {reason}"
        logger.warning("%s", message)
        self._tell(message)

    def _tell(self, note: str, about: str = ABOUT) -> None:
        self._note(about, note)


def _with_own_code(call: Callable[..., Any]) -> Callable[..., Any]:
    def own(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    own.__code__ = own.__code__.replace()
    return own


def _graphs(number: int) -> str:
    return "1 graph" if number == 1 else f"{number} graphs"


def _last_reason() -> str:
    """Why torch compiled again: the input and what changed of it, in torch's words."""
    for metrics in reversed(get_compilation_metrics()):
        reason = getattr(metrics, "recompile_reason", None)
        if reason:
            first = str(reason).strip().splitlines()[0]
            return re.sub(r"^\d+/\d+: ", "", first).partition("  # ")[0].strip()
    return "a value that torch does not name"


def _one_line(error: BaseException) -> str:
    """The innermost reason of a failure, its first line."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0]}"[:300] if lines else type(inner).__name__
