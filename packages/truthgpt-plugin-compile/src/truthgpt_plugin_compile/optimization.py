"""The optimization `torch_compile`: what it needs, and what it does to a model."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

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

CXX = "CXX"
COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""The one compiler that inductor looks for if CXX is not set; elsewhere it is g++."""
KERNEL_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class TorchCompileOptions(Options):
    """Options of `torch_compile`.

    Attributes:
        mode: as for `torch.compile`; `reduce-overhead` uses CUDA graphs on a GPU.
    """

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"


class TorchCompile(Optimization[TorchCompileOptions]):
    """Compile the decode step: one token, against a static key-value cache.

    Everything else (reading the prompt, training, a cache that grows) runs as
    before. Compiling happens when the first token is decoded, once for each length
    of the cache, and what it makes is kept on disk for the next process.
    """

    name: ClassVar[str] = "torch_compile"
    stage: ClassVar[Stage] = Stage.EXECUTION
    options_type: ClassVar[type[Options]] = TorchCompileOptions

    def check(self, device: str) -> Verdict:
        """On a CPU inductor needs a C++ compiler; on a GPU, triton."""
        if device.partition(":")[0] == "cpu":
            wanted = os.environ.get(CXX)
            compiler = COMPILERS.get(sys.platform, "g++") if wanted is None else wanted
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
        from truthgpt_plugin_compile.decode import DecodeForward, linear_layers

        if isinstance(model.forward, DecodeForward) or _is_compiled(model):
            raise OptimizationError("The model is compiled already")
        if not getattr(model, "_can_compile_fullgraph", False):
            raise OptimizationError(
                f"{type(model).__name__} has no static key-value cache, which compiling needs"
            )
        _keep_compiled_code_in(context.cache_dir)
        model.forward = DecodeForward(model.forward, self.options.mode)
        return Applied(
            model,
            Coverage("linear layers", tuple(linear_layers(model))),
            self.options.model_dump(),
        )


def _keep_compiled_code_in(directory: Path) -> None:
    """Set where inductor keeps what it compiles, for the whole process, as it reads it each time.

    A place that a person chose stays chosen; torch's own default, which it writes
    into the environment when it is imported, was not.
    """
    chosen = os.environ.get(KERNEL_CACHE)
    default = Path(tempfile.gettempdir(), "torchinductor_")
    if chosen is None or chosen.startswith(str(default)):
        directory.mkdir(parents=True, exist_ok=True)
        os.environ[KERNEL_CACHE] = str(directory)


def _is_compiled(model: Model) -> bool:
    # torch.compile(model) wraps it, model.compile() marks it.
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
