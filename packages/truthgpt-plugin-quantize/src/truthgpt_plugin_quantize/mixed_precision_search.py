"""`scheme=auto`: which layers can be made of fewer bits before the model's answers change.

Layers are tried one by one, each made of the fewest bits, on real text. What a mix of
schemes costs is estimated as the sum of what its layers cost alone, as in HAWQ (Dong et
al. 2019, arXiv:1905.03696) with the divergence itself in the place of a second derivative;
the mix that comes out is measured, and the estimate put right, until it keeps the bound.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from truthgpt_core.optimization import LayerChoice, OptimizationContext, OptimizationError
from truthgpt_plugin_quantize import int4
from truthgpt_plugin_quantize.kernels import Kernel
from truthgpt_plugin_quantize.layer_classes import layer_class
from truthgpt_plugin_quantize.layers import is_transposed, matrix, why_not_values
from truthgpt_plugin_quantize.plan import GROUP_SIZE, Plan
from truthgpt_plugin_quantize.schemes import NONE, Scheme, matches

if TYPE_CHECKING:
    from truthgpt_plugin_quantize.options import QuantizeOptions

TOKENS = 160
"""Of text that every layer is tried on: the mean of their divergences tells layers apart."""

LEAST_TOKENS = 8
ROUNDS = 8
"""How often a mix is put together and measured."""

DEFAULT_MAX_KL = 0.01

TIMED_BYTES = 2**25
"""Weights that are read for timing a layer: more than a cache holds."""


@dataclass(frozen=True, slots=True)
class Found:
    """The mix that was found.

    Attributes:
        schemes: by layer; None is a layer left as it is.
        tried: what each layer costs made of the fewest bits, alone; 0 if a rule is about it.
        head: the name of the output embedding.
        notes: sentences for the report.
    """

    schemes: Mapping[str, Scheme | None]
    tried: Mapping[str, float]
    head: str
    notes: list[str]

    def as_rules(self) -> tuple[str, list[str]]:
        """Return the most common scheme, and `PATTERN=SCHEME` for the layers of another."""
        common = Counter(each.name for each in self.schemes.values() if each).most_common(1)
        scheme = common[0][0] if common else "int8"

        def is_other(name: str, each: Scheme | None) -> bool:
            # Without a rule of its own the head would be int8 where the others are int4.
            at_head = name == self.head and scheme == "int4"
            return at_head or each != Scheme(scheme, GROUP_SIZE)

        others = [
            f"={name}={each or NONE}" for name, each in self.schemes.items() if is_other(name, each)
        ]
        return scheme, others

    def choices(self) -> tuple[LayerChoice, ...]:
        """Return what was chosen for each layer, for the report to draw."""
        return tuple(
            LayerChoice(name, str(scheme or NONE), self.tried[name])
            for name, scheme in self.schemes.items()
        )


def search(
    model: Any,
    plan: Plan,
    options: QuantizeOptions,
    context: OptimizationContext,
    kernel: Kernel,
) -> Found:
    """Find the smallest or the fastest mix of int4, int8 and unquantized layers within a bound.

    The model is as it was afterwards. While this runs, it is whole in memory, and the
    layers that are being tried are there twice.

    Args:
        model: a causal language model of transformers.
        plan: which of its layers may be quantized.
        options: the bound, the goal, and rules that hold whatever is found.
        context: with the text.
        kernel: what decodes, for `goal=speed`.

    Raises:
        OptimizationError: there is no text, or the model does not answer to it.
    """
    if len(context.tokens) < LEAST_TOKENS:
        raise OptimizationError(
            "scheme=auto tries layers on a text, and was given none",
            hint="Use truthgpt optimize, or give optimize_model the tokens of a text.",
        )
    for name, _ in model.named_modules():
        context.fill(name)
    bound = options.max_kl or context.max_kl or DEFAULT_MAX_KL
    fixed = {name for name in plan.schemes if _has_rule(name, options)}
    trial = _Trial(model, torch.tensor([context.tokens[:TOKENS]], device=context.device))
    layers: dict[str, _Layer] = {}
    for name in fixed:
        shared = plan.is_shared and name == plan.head
        # Not to be chosen, and no reason to choose another: but measured with the rest.
        layers[name] = _Layer(name, [_Cost(plan.schemes[name], 0.0, 0.0)], shared)
    names = [name for name in plan.schemes if name not in fixed]
    for done, name in enumerate(names):
        context.progress("Trying layers", done, len(names))
        module = model.get_submodule(name)
        if not why_not_values(module):
            shared = plan.is_shared and name == plan.head
            layers[name] = _Layer.tried(name, module, trial, options.goal, kernel, shared=shared)
    context.progress("Trying layers", len(names), len(names))
    schemes, reached, estimated = _mix(layers, bound, trial, model, context)
    kept = {name: plan.schemes[name] for name in fixed}
    sensitive = max(layers.values(), key=lambda each: each.costs[0].divergence, default=None)
    notes = [
        f"the mix found for a KL divergence of {bound:g} measures {reached:.4f} on "
        f"{trial.count} tokens (the sum over layers says {estimated:.4f})"
    ]
    if sensitive is not None:
        least = sensitive.costs[0]
        notes.append(
            f"the most sensitive layer is {sensitive.name}: {least.divergence:.4f} "
            f"if it alone is {least.scheme}"
        )
    tried = {name: each.costs[0].divergence for name, each in layers.items()}
    return Found(schemes | kept, tried, plan.head, notes)


@dataclass(frozen=True, slots=True)
class _Cost:
    scheme: Scheme | None
    divergence: float
    price: float
    """Bytes or seconds, what the mix is to have least of."""


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    costs: list[_Cost]
    """From the fewest bits up; the last is the layer as it is."""
    shared: bool
    """Whether another module has the same weights, and is to have the same of these."""

    @classmethod
    def tried(
        cls, name: str, module: Any, trial: _Trial, goal: str, kernel: Kernel, *, shared: bool
    ) -> _Layer:
        weight = matrix(module)
        schemes: list[Scheme] = []
        group_size = int4.fitting_group(weight.shape[1], GROUP_SIZE)
        if group_size and not int4.why_not_values(weight):
            schemes.append(Scheme("int4", group_size))
        whole = weight.shape[1] % GROUP_SIZE or kernel.name != "native"
        schemes.append(Scheme("int8", 0 if whole else GROUP_SIZE))
        costs: list[_Cost] = []
        measured = first_error = 0.0
        for scheme in schemes:
            layer = layer_class(scheme).from_linear(module, kernel, scheme.group_size or 0)
            rounded = layer.dequantize()
            error = float((rounded - weight.float()).square().sum())
            if not costs:
                with _made_of(module, rounded, shared=shared):
                    # With both embeddings changed, every block answers something else.
                    changed = "" if shared else name
                    measured, first_error = trial.divergence(changed), error
            # Of finer schemes it is too little to be measured well, and grows with the
            # square of the error.
            divergence = measured * (error / first_error) if first_error else 0.0
            price = _seconds(layer) if goal == "speed" else _bytes(layer)
            costs.append(_Cost(scheme, divergence, price))
        price = _seconds(module) if goal == "speed" else float(weight.nbytes)
        costs.append(_Cost(None, 0.0, price))
        return cls(name, costs, shared)


class _Trial:
    """A text, and how a model answered to it before anything was changed."""

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self._model = model
        self._tokens = tokens
        self._blocks = _blocks(model)
        self._outputs: list[Any] = []
        self.count = tokens.shape[1]
        handles = [
            block.register_forward_hook(
                lambda _module, _inputs, output: self._outputs.append(output)
            )
            for block in self._blocks.values()
        ]
        try:
            self._before = self._predict()
        finally:
            for handle in handles:
                handle.remove()
        if not bool(torch.isfinite(self._before).all()):
            raise OptimizationError("The model's own predictions are not finite numbers")

    def divergence(self, changed: str = "") -> float:
        """Mean KL from the model as it was, in nats per token.

        Args:
            changed: the one layer that is not what it was, if it is one.
        """
        with self._skipping(changed):
            now = self._predict()
        terms = self._before.exp() * (self._before - now)
        found = float(terms.sum(-1, dtype=torch.float64).mean())
        return max(found, 0.0) if found == found else float("inf")

    def _predict(self) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._model(input_ids=self._tokens, use_cache=False).logits[0]
            return logits.float().log_softmax(-1)

    @contextmanager
    def _skipping(self, changed: str) -> Iterator[None]:
        """Let the blocks before the changed layer answer what they answered before."""
        names = list(self._blocks)
        before: Sequence[str] = []
        if len(self._outputs) == len(names):
            inside = [at for at, name in enumerate(names) if changed.startswith(f"{name}.")]
            after = changed and not inside and self._is_last(changed)
            before = names[: inside[0]] if inside else names if after else []
        blocks = [self._blocks[name] for name in before]
        for block, output in zip(blocks, self._outputs, strict=False):
            block.forward = lambda *_args, _output=output, **_kwargs: _output
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _is_last(self, name: str) -> bool:
        found = getattr(self._model, "get_output_embeddings", lambda: None)()
        return found is not None and self._model.get_submodule(name) is found


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the decoder blocks that a model runs one after the other; none if it is unclear."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(each) for each in module}) == 1
    ]
    if not lists:
        return {}
    name, longest = max(lists, key=lambda each: sum(p.numel() for p in each[1].parameters()))
    return {f"{name}.{at}": block for at, block in enumerate(longest)}


def _mix(
    layers: Mapping[str, _Layer],
    bound: float,
    trial: _Trial,
    model: nn.Module,
    context: OptimizationContext,
) -> tuple[dict[str, Scheme | None], float, float]:
    """Return the cheapest mix that was measured to keep the bound, with what it measures."""
    best: tuple[float, dict[str, _Cost], float] | None = None
    budget, low, high = bound, 0.0, float("inf")
    for turn in range(ROUNDS):
        context.progress("Measuring mixes", turn, ROUNDS)
        picked = _pick(layers, budget)
        measured = _measure(picked, layers, trial, model)
        price = sum(each.price for each in picked.values())
        if measured <= bound:
            low = budget
            if best is None or price < best[0]:
                best = price, picked, measured
        else:
            high = budget
        if (
            all(cost is layers[name].costs[0] for name, cost in picked.items())
            and measured <= bound
        ):
            break
        ratio = bound / measured if measured > 0 else 2.0
        guess = budget * min(max(ratio, 0.25), 4.0)
        # Between what kept the bound and what did not, once there is both.
        budget = guess if low < guess < high else (low + min(high, 4 * low + bound)) / 2
    context.progress("Measuring mixes", ROUNDS, ROUNDS)
    if best is None:
        return dict.fromkeys(layers), 0.0, 0.0
    _, picked, measured = best
    estimated = sum(each.divergence for each in picked.values())
    return {name: each.scheme for name, each in picked.items()}, measured, estimated


def _pick(layers: Mapping[str, _Layer], budget: float) -> dict[str, _Cost]:
    """Begin with the cheapest of each layer; pay where it buys most, until the sum fits."""
    at = {name: min(layer.costs, key=lambda each: each.price) for name, layer in layers.items()}
    total = sum(each.divergence for each in at.values())
    while total > budget:
        steps = [
            (
                (at[name].divergence - cost.divergence) / max(cost.price - at[name].price, 1e-12),
                name,
                cost,
            )
            for name, layer in layers.items()
            for cost in layer.costs
            if cost.divergence < at[name].divergence
        ]
        if not steps:
            break
        _, name, cost = max(steps, key=lambda step: step[0])
        total -= at[name].divergence - cost.divergence
        at[name] = cost
    return at


def _measure(
    picked: Mapping[str, _Cost], layers: Mapping[str, _Layer], trial: _Trial, model: nn.Module
) -> float:
    """Measure a mix, with floating-point weights that are what the integers stand for."""
    with ExitStack() as stack:
        for name, cost in picked.items():
            if cost.scheme is not None:
                module = model.get_submodule(name)
                kind = layer_class(cost.scheme)
                exact = Kernel("dequantize")
                layer = kind.from_linear(module, exact, cost.scheme.group_size or 0)
                shared = layers[name].shared
                stack.enter_context(_made_of(module, layer.dequantize(), shared=shared))
        return trial.divergence()


@contextmanager
def _made_of(module: Any, weight: Tensor, *, shared: bool) -> Iterator[None]:
    """Put weights, of shape (out, in), into a layer for a while, or in all that share its own."""
    parameter = module.weight
    values = (weight.t() if is_transposed(module) else weight).to(parameter.dtype)
    original = parameter.data
    if shared:
        parameter.data = values
    else:
        module.weight = nn.Parameter(values, requires_grad=False)
    try:
        yield
    finally:
        parameter.data = original
        module.weight = parameter


def _bytes(layer: nn.Module) -> float:
    return float(sum(each.nbytes for each in layer.buffers(recurse=False)))


def _seconds(layer: Any) -> float:
    """Time one token through a layer, the best of some runs over copies that fill the caches."""
    weight = next(iter([*layer.buffers(recurse=False), *layer.parameters(recurse=False)]))
    in_features = getattr(layer, "in_features", None) or matrix(layer).shape[1]
    dtype = layer.weight.dtype if hasattr(layer, "weight") else torch.float32
    x = torch.randn(1, in_features, dtype=dtype, device=weight.device)
    copies = [deepcopy(layer) for _ in range(max(2, min(16, TIMED_BYTES // weight.nbytes)))]
    best = float("inf")
    with torch.inference_mode():
        for _ in range(3):
            began = time.perf_counter()
            for each in copies:
                each(x)
            best = min(best, (time.perf_counter() - began) / len(copies))
    return best


def _has_rule(name: str, options: QuantizeOptions) -> bool:
    return any(matches(name, rule.pattern) for rule in options.rules)
