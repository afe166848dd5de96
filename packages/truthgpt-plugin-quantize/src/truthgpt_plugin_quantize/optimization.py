"""The optimization `quantize`: its options, applying and restoring."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from truthgpt_core.optimization import (
    Applied,
    Coverage,
    LayerChoice,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    SourceModel,
    Stage,
    StoredMatmul,
    Verdict,
)
from truthgpt_plugin_quantize.options import QuantizeOptions
from truthgpt_plugin_quantize.plan import (
    Plan,
    Wanted,
    as_int8,
    make_plan,
    why_left_alone,
)
from truthgpt_plugin_quantize.schemes import Rule, Scheme

if TYPE_CHECKING:
    from truthgpt_plugin_quantize.kernels import Kernel
    from truthgpt_plugin_quantize.mixed_precision_search import Found

logger = logging.getLogger(__name__)

INSTALL = "pip install truthgpt-plugin-native makes them fast"
"""What to do where no plugin multiplies integers as they are stored."""


class Quantize(Optimization[QuantizeOptions]):
    """Keep the weights of linear layers as integers, in an eighth to a quarter of float32.

    The output embedding is quantized too, unless `skip=lm_head`; if it shares its weights with
    the input embedding, they share the quantized ones.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    options_type: ClassVar[type[Options]] = QuantizeOptions
    layerwise: ClassVar[bool] = True

    def check(self, device: str) -> Verdict:
        """float8 wants a GPU that multiplies it."""
        schemes = [self.options.scheme, *(str(rule.scheme) for rule in self.options.rules)]
        if "fp8" not in schemes:
            return Verdict.yes()
        fix = "Use scheme=int8."
        if not device.startswith("cuda"):
            return Verdict.no(f"{device} has no arithmetic for 8-bit floating point", fix)
        import torch

        from truthgpt_plugin_quantize.fp8 import CAPABILITY, has_arithmetic

        if has_arithmetic(torch.device(device)):
            return Verdict.yes()
        least = ".".join(map(str, CAPABILITY))
        return Verdict.no(f"float8 needs a GPU of compute capability {least} or later", fix)

    def check_source(self, source: SourceModel) -> Verdict:
        """Refuse a model whose weights another library has quantized."""
        found = source.config.get("quantization_config")
        if not found:
            return Verdict.yes()
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        return Verdict.no(
            f"it is quantized already, by {method or 'another library'}",
            "Start from the model in floating point that it was made from.",
        )

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Replace linear layers, one by one, so that only one exists twice at any time.

        Raises:
            OptimizationError: the model is quantized already, no layer of it can be, or
                `auto` was given no text to try it on.
        """
        from truthgpt_plugin_quantize import int4
        from truthgpt_plugin_quantize.layer_classes import layer_class
        from truthgpt_plugin_quantize.layers import matrix, replace, why_not_values

        _refuse_quantized(model)
        kernel = self._kernel(context)
        options, notes = self.options, list[str]()
        choices: tuple[LayerChoice, ...] = ()
        wanted = self._wanted(options, kernel.name)
        plan = make_plan(model, wanted)
        if not plan.schemes:
            raise _covers_none(plan)
        if options.scheme == "auto":
            from truthgpt_plugin_quantize.mixed_precision_search import search

            found = search(model, plan, self.options, context, kernel)
            if not any(found.schemes.values()):
                raise _keeps_none(options, context)
            options, notes = self._mixed(found), found.notes
            choices = found.choices()
            wanted = self._wanted(options, kernel.name)
            plan = make_plan(model, wanted)
        chosen = list(plan.schemes)
        exceptions: list[str] = []
        for done, name in enumerate(chosen):
            context.progress("Quantizing", done, len(chosen))
            context.fill(name)
            linear = model.get_submodule(name)
            reason = why_not_values(linear)
            if reason:
                plan.leave(name, reason)
                continue
            scheme = plan.schemes[name]
            if scheme.name == "int4" and (reason := int4.why_not_values(matrix(linear))):
                scheme = plan.schemes[name] = as_int8(wanted, matrix(linear).shape[1])
                plan.instead[name] = f"int8, because {reason}"
                exceptions.append(f"={name}={scheme}")
            kind = layer_class(scheme)
            replace(model, name, kind.from_linear(linear, kernel, scheme.group_size or 0))
            # Else it would stay in memory while the next one is read.
            del linear
        context.progress("Quantizing", len(chosen), len(chosen))
        if not plan.schemes:
            raise _covers_none(plan)
        _share(model, plan)
        # What cannot be seen from the names again when the model is restored. By their whole
        # names: as a pattern, `proj` would match all that end in it.
        refused = [f"={name}" for name in plan.left if not why_left_alone(name, wanted)]
        settings = options.model_copy(
            update={
                "kernel": kernel.name,
                "group_size": wanted.group_size(wanted.scheme),
                "layers": [*exceptions, *options.layers],
                "skip": [*options.skip, *refused],
                "embedding": "shared" if plan.is_shared else "keep",
            }
        )
        if context.device == "cpu":
            notes = [f"kernel {kernel.name}", *notes]
        return Applied(
            model,
            Coverage("linear layers", tuple(plan.schemes), tuple(plan.left.items())),
            settings.model_dump(),
            (*notes, *plan.notes()),
            choices,
        )

    def restore(self, model: Model, context: OptimizationContext) -> Model:
        """Put quantized layers, still empty, in the place of the ones that `apply` covered."""
        from truthgpt_plugin_quantize.kernels import Kernel
        from truthgpt_plugin_quantize.layer_classes import layer_class
        from truthgpt_plugin_quantize.layers import replace

        if self.options.kernel == "native":
            # It was made where there was what it needs.
            kernel = Kernel("native", _stored_matmul(context))
            if kernel.matmul is None and context.device == "cpu":
                logger.warning("Quantized layers run slowly here: %s", INSTALL)
        else:
            kernel = self._kernel(context)
        plan = make_plan(model, self._wanted(self.options, kernel.name))
        for name, scheme in plan.schemes.items():
            linear = model.get_submodule(name)
            kind = layer_class(scheme)
            replace(model, name, kind.empty_like(linear, kernel, scheme.group_size or 0))
        _share(model, plan)
        return model

    def plain_weights(self, name: str, module: Model) -> Mapping[str, Any] | None:
        """Dequantize a layer; an input embedding that reads the output embedding has no weights."""
        from truthgpt_plugin_quantize.quantized import QuantizedEmbedding, QuantizedLinear

        if isinstance(module, QuantizedEmbedding):
            return {}
        return module.plain_weights() if isinstance(module, QuantizedLinear) else None

    def _kernel(self, context: OptimizationContext) -> Kernel:
        """Return the kernel that is meant on this machine."""
        from truthgpt_plugin_quantize.kernels import Kernel, choose_packed

        requested, group_size = self.options.kernel, self.options.group_size
        grouped = group_size not in ("auto", 0) and self.options.scheme == "int8"
        if grouped and requested.startswith("packed"):
            raise OptimizationError(
                f"The kernel {requested} wants whole channels, and group_size is {group_size}",
                hint="Say group_size=0, or kernel=native.",
            )
        on_cpu = context.device == "cpu"
        matmul = _stored_matmul(context) if requested in ("auto", "native") and on_cpu else None
        if matmul is not None:
            return Kernel("native", matmul)
        if requested == "native" and on_cpu:
            raise OptimizationError(
                "The kernel native multiplies with a plugin's code, and none here can",
                hint=f"{INSTALL}; truthgpt doctor says why it does not work. Or say kernel=auto.",
            )
        if requested != "auto":
            return Kernel(requested)
        if on_cpu:
            logger.warning("Quantized layers run on PyTorch's kernels: %s", INSTALL)
        return Kernel("dequantize" if grouped or not on_cpu else choose_packed())

    def _mixed(self, found: Found) -> QuantizeOptions:
        """Return options that say what `auto` found."""
        scheme, exceptions = found.as_rules()
        # What the user said about layers still holds for those that were not looked at.
        layers = [*exceptions, *self.options.layers]
        overrides = {"scheme": scheme, "group_size": "auto", "layers": layers}
        return self.options.model_copy(update=overrides)

    def _wanted(self, options: QuantizeOptions, kernel: str) -> Wanted:
        group_size = None if options.group_size == "auto" else options.group_size
        # While `auto` looks for the mix, what can be made of a layer is what int8 can be.
        name = "int8" if options.scheme == "auto" else options.scheme
        return Wanted(
            Scheme(name).with_group(group_size),
            [_with_group(rule, group_size) for rule in options.rules],
            options.modules,
            options.skip,
            kernel,
            options.embedding,
        )


def _with_group(rule: Rule, group_size: int | None) -> Rule:
    return rule if rule.scheme is None else Rule(rule.pattern, rule.scheme.with_group(group_size))


def _stored_matmul(context: OptimizationContext) -> StoredMatmul | None:
    return context.make_stored_matmul() if context.device == "cpu" else None


def _refuse_quantized(model: Model) -> None:
    from truthgpt_plugin_quantize.quantized import QuantizedLinear

    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise OptimizationError("The model is quantized already")
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if method is not None:
        how = getattr(method, "quant_method", "another library")
        how = getattr(how, "value", how)
        raise OptimizationError(
            f"The model was loaded quantized by {how}", hint="Load it without, then quantize it."
        )


def _share(model: Model, plan: Plan) -> None:
    """Let the input embedding read the quantized output embedding, if they are to be shared.

    For transformers they are not tied then, since there is only one of them.
    """
    from truthgpt_plugin_quantize.layers import replace
    from truthgpt_plugin_quantize.quantized import QuantizedEmbedding

    if plan.is_shared:
        tokens = model.get_submodule(plan.embedding)
        head = model.get_submodule(plan.head)
        replace(model, plan.embedding, QuantizedEmbedding(head, tokens.weight.dtype))
    config: Any = getattr(model, "config", None)
    if plan.head in plan.schemes and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _keeps_none(options: QuantizeOptions, context: OptimizationContext) -> OptimizationError:
    bound = options.max_kl or context.max_kl
    within = "the bound" if bound is None else f"a KL divergence of {bound:g}"
    return OptimizationError(
        f"scheme=auto found no layer that can be quantized within {within}",
        hint="Allow more, with max_kl.",
    )


def _covers_none(plan: Plan) -> OptimizationError:
    reasons = list(plan.left.values())
    most_common = max(set(reasons), key=reasons.count) if reasons else "it has none"
    return OptimizationError(
        f"quantize would cover none of the model's linear layers: {most_common}"
    )
