"""The optimization `quantize`: what it covers, what it leaves alone and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[list[str], BeforeValidator(_as_list)]


GROUP_SIZE = 32
"""What `group_size=auto` takes; whole channels diverge more, see `benchmarks/decode.py`."""


class QuantizeOptions(Options):
    """Options of `quantize`.

    Attributes:
        scheme: `int8`: weights as 8-bit integers, symmetric, with one scale for each
            group of neighbours in a row.
        group_size: how many neighbours share a scale; 0 for a whole output channel.
            `auto` takes 32 where compiled code can be had, else 0. Layers whose rows are
            no multiple of it take whole channels.
        modules: patterns (`*` matches anything) of the layers to quantize; a
            pattern also matches what is inside the module that it names.
        skip: patterns of the layers to leave alone; `=NAME` is the layer of exactly
            that name.
        kernel: how one token is computed on a CPU. `native` multiplies the integers as
            they are, with activations rounded to 8 bits in blocks of 32; models of the
            Llama family take a whole step in one call of C++ that is compiled for this
            machine. `packed` multiplies with activations in the model's dtype;
            `packed-bfloat16` the same with activations rounded to bfloat16; both want
            whole channels. `dequantize` makes floating-point weights each time. `auto`
            takes `native` where there is a C++ compiler, else `packed` where the CPU has
            AVX-512, else `packed-bfloat16`.
    """

    scheme: Literal["int8"] = "int8"
    modules: Patterns = Field(["*"])
    skip: Patterns = Field([])
    group_size: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    kernel: Literal["auto", "native", "packed", "packed-bfloat16", "dequantize"] = "auto"


class Quantize(Optimization[QuantizeOptions]):
    """Keep the weights of linear layers as 8-bit integers, a quarter of float32.

    The output embedding is quantized too, unless `skip=lm_head`; if it shares its
    weights with the input embedding, that one stays as it is and the two are no
    longer tied.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    options_type: ClassVar[type[Options]] = QuantizeOptions
    layerwise: ClassVar[bool] = True

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Replace linear layers, one by one, so that only one exists twice at any time.

        Raises:
            OptimizationError: the model is quantized already, or no layer of it can be.
        """
        from truthgpt_plugin_quantize.int8 import Int8Linear, why_not, why_not_values

        _refuse_quantized(model)
        reasons: dict[str, str] = {}
        for name, module in _linear_layers(model):
            reasons[name] = self._why_left_alone(name) or why_not(module)
        chosen = [name for name, reason in reasons.items() if not reason]
        if not chosen:
            raise _covers_none(reasons)
        kernel, group_size = self._choose(context.device)
        if kernel == "native" and context.device == "cpu":
            _see_that_it_compiles()
        for done, name in enumerate(chosen):
            context.progress("Quantizing", done, len(chosen))
            context.fill(name)
            linear = model.get_submodule(name)
            reasons[name] = why_not_values(linear)
            if not reasons[name]:
                _replace(model, name, Int8Linear.from_linear(linear, kernel, group_size))
            # Else it would stay in memory while the next one is read.
            del linear
        context.progress("Quantizing", len(chosen), len(chosen))
        covered = tuple(name for name, reason in reasons.items() if not reason)
        if not covered:
            raise _covers_none(reasons)
        _untie(model, covered)
        skipped = tuple((name, reason) for name, reason in reasons.items() if reason)
        # What cannot be seen from the names again when the model is restored.
        # By their whole names: as a pattern, `proj` would match all that end in it.
        refused = [f"={name}" for name, _ in skipped if not self._why_left_alone(name)]
        settings = self.options.model_copy(
            update={
                "kernel": kernel,
                "group_size": group_size,
                "skip": [*self.options.skip, *refused],
            }
        )
        notes = (f"kernel {kernel}",) if context.device == "cpu" else ()
        return Applied(
            model, Coverage("linear layers", covered, skipped), settings.model_dump(), notes
        )

    def restore(self, model: Model, context: OptimizationContext) -> Model:
        """Put quantized layers, still empty, in the place of the ones that `apply` covered."""
        from truthgpt_plugin_quantize.int8 import Int8Linear, choose_kernel

        kernel, group_size = self._choose(context.device)
        if kernel == "native" and choose_kernel() != "native":
            # Made where there was a C++ compiler: here the same weights are computed slowly.
            kernel = "dequantize"
        layers = [pair for pair in _linear_layers(model) if not self._why_left_alone(pair[0])]
        for name, linear in layers:
            _replace(model, name, Int8Linear.empty_like(linear, kernel, group_size))
        _untie(model, [name for name, _ in layers])
        return model

    def _choose(self, device: str) -> tuple[str, int]:
        """Return the kernel and the size of groups that `auto` stands for on this machine."""
        from truthgpt_plugin_quantize.int8 import choose_kernel

        asked, group_size = self.options.kernel, self.options.group_size
        if group_size and group_size != "auto" and asked.startswith("packed"):
            raise OptimizationError(
                f"The kernel {asked} wants whole channels, and group_size is {group_size}",
                hint="Say group_size=0, or kernel=native.",
            )
        kernel: str = asked
        if asked == "auto":
            kernel = choose_kernel() if device == "cpu" else "dequantize"
        if group_size == "auto":
            return kernel, GROUP_SIZE if kernel == "native" else 0
        return "dequantize" if group_size and kernel != "native" else kernel, group_size

    def _why_left_alone(self, name: str) -> str:
        for pattern in self.options.skip:
            if _matches(name, pattern):
                return f"skip={pattern}"
        if not any(_matches(name, pattern) for pattern in self.options.modules):
            return "not among modules"
        return ""


def _see_that_it_compiles() -> None:
    from truthgpt_plugin_quantize.native import library

    try:
        library.load()
    except library.NativeError as error:
        raise OptimizationError(
            f"The kernel native cannot be had: {error.message}",
            hint=f"{error.hint or ''} Or say kernel=auto.".strip(),
        ) from error


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` matches a layer's name, a part of it between dots, or is `=` and it."""
    if pattern.startswith("="):
        return name == pattern[1:]
    parts = name.split(".")
    spans = (
        ".".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )
    return any(fnmatchcase(span, pattern) for span in spans)


def _linear_layers(model: Model) -> list[tuple[str, Any]]:
    import torch

    from truthgpt_plugin_quantize.int8 import holds_several_layers

    # GPT-2's Conv1D is a linear layer in all but its name and the order of its weights.
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        or type(module).__name__ == "Conv1D"
        or holds_several_layers(module)
    ]


def _refuse_quantized(model: Model) -> None:
    from truthgpt_plugin_quantize.int8 import Int8Linear

    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise OptimizationError("The model is quantized already")
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if method is not None:
        how = getattr(method, "quant_method", "another library")
        how = getattr(how, "value", how)
        raise OptimizationError(
            f"The model was loaded quantized by {how}", hint="Load it without, then quantize it."
        )


def _replace(model: Model, name: str, module: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _untie(model: Model, covered: Iterable[str]) -> None:
    """Tell transformers that a quantized output embedding is no longer the input embedding."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "tie_word_embeddings", False):
        return
    head = model.get_output_embeddings()
    if any(model.get_submodule(name) is head for name in covered):
        config.tie_word_embeddings = False


def _covers_none(reasons: Mapping[str, str]) -> OptimizationError:
    found = list(reasons.values())
    most_common = max(set(found), key=found.count) if found else "it has none"
    return OptimizationError(
        f"quantize would cover none of the model's linear layers: {most_common}"
    )
