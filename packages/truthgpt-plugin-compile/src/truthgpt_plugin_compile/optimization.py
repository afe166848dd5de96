"""The optimization `torch_compile`: what it needs, and what it does to a model."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
    Verdict,
)
from truthgpt_plugin_compile.compilers import CXX, wanted_compiler


class TorchCompileOptions(Options):
    """Options of `torch_compile`.

    Attributes:
        mode: as for `torch.compile`; `reduce-overhead` uses CUDA graphs. `auto` is
            `reduce-overhead` on a GPU and `default` elsewhere.
        region: what is compiled at once. `model`, and `auto`: the whole step. `blocks`: one of
            the repeated decoder blocks, and the others use its code; compiling takes a
            fraction of the time, but where the model is small decoding gains nothing: see
            `benchmarks/compile.py`.
        max_recompilations: how often a model may be compiled again, for other lengths
            of the cache or batch sizes. With one more, a warning says what changed, and
            further shapes run uncompiled. Torch's own limit is
            `torch._dynamo.config.recompile_limit`.
    """

    mode: Literal["auto", "default", "reduce-overhead", "max-autotune"] = Field(
        "auto",
        description="As for torch.compile; reduce-overhead uses CUDA graphs. auto is "
        "reduce-overhead on a GPU and default elsewhere.",
    )
    region: Literal["auto", "blocks", "model"] = Field(
        "auto",
        description="What is compiled at once. model, and auto: the whole step. blocks: one of "
        "the repeated decoder blocks, which takes a fraction of the time to compile.",
    )
    max_recompilations: int = Field(
        default=6,
        ge=0,
        description="How often a model may be compiled again, for other lengths of the cache or "
        "batch sizes; further shapes run uncompiled.",
    )


class TorchCompile(Optimization[TorchCompileOptions]):
    """Compile the decode step: one token, against a static key-value cache.

    Everything else (reading the prompt, training, a cache that grows) runs as
    before. Compiling happens when the first token is decoded, once for each length
    of the cache and batch size, and what it makes is kept on disk for the next process.
    Where it fails, the model goes on uncompiled, and the report says why.

    Options are those of `TorchCompileOptions`: `mode`, `region`, `max_recompilations`.
    """

    name: ClassVar[str] = "torch_compile"
    stage: ClassVar[Stage] = Stage.EXECUTION
    engine: ClassVar[str | None] = "torch"
    options_type: ClassVar[type[Options]] = TorchCompileOptions

    def check(self, device: str) -> Verdict:
        """On a CPU inductor needs a C++ compiler; on a GPU, triton."""
        if device.partition(":")[0] == "cpu":
            wanted = os.environ.get(CXX)
            compiler = wanted_compiler()
            if shutil.which(compiler):
                return Verdict.yes()
            missing = f"there is no {compiler}" if wanted is None else f"{CXX}={wanted} is not one"
            return Verdict.no(
                f"compiling for the CPU needs a C++ compiler, and {missing}",
                fix=f"Install g++ (Debian, Ubuntu: apt install g++), or set {CXX} to another.",
            )
        if find_spec("triton") is None:
            return Verdict.no(
                "compiling for a GPU needs triton, which is not installed",
                fix="pip install triton.",
            )
        return Verdict.yes()

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Make the model compile its decode step when it first runs.

        Raises:
            OptimizationError: it is compiled already, or its architecture has no
                static key-value cache.
        """
        from truthgpt_plugin_compile.blocks import repeated_blocks
        from truthgpt_plugin_compile.compilation import Compilation
        from truthgpt_plugin_compile.compile_cache import CodeCache
        from truthgpt_plugin_compile.decode import DecodeForward, compile_decoding, linear_layers

        if isinstance(model.forward, DecodeForward) or _is_compiled(model):
            raise OptimizationError("The model is compiled already")
        kind = type(model).__name__
        if not getattr(model, "_can_compile_fullgraph", False):
            raise OptimizationError(f"{kind} has no static key-value cache, which compiling needs")
        if self.options.region == "blocks" and not repeated_blocks(model):
            raise OptimizationError(
                f"{kind} has no repeated blocks that one compiled code could run",
                hint="Set region to model.",
            )
        settings = self._settings(context.device)
        compilation = Compilation(
            settings["mode"],
            settings["max_recompilations"],
            CodeCache(context.cache_dir, settings, context.device),
            context.note,
        )
        compile_decoding(model, compilation, whole=settings["region"] == "model")
        covered = tuple(linear_layers(model))
        return Applied(model, Coverage("linear layers", covered), settings)

    def was_used(self, model: Model) -> bool:
        """Whether a decode step ran through compiled code.

        It did not where compiling failed, or where another optimization's code took the step.
        """
        from truthgpt_plugin_compile.decode import DecodeForward

        return isinstance(model.forward, DecodeForward) and model.forward.compiled_calls > 0

    def _settings(self, device: str) -> dict[str, Any]:
        gpu = device.partition(":")[0] == "cuda"
        settings = self.options.model_dump()
        if settings["mode"] == "auto":
            settings["mode"] = "reduce-overhead" if gpu else "default"
        if settings["region"] == "auto":
            settings["region"] = "model"
        return settings


def _is_compiled(model: Model) -> bool:
    # torch.compile(model) wraps it, model.compile() marks it.
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
