"""What each layer of a model is to be made of, decided before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_plugin_quantize.schemes import NONE, Rule, Scheme, matches

GROUP_SIZE = 32
"""What `group_size=auto` takes; whole channels diverge more, see `benchmarks/decode.py`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants layers to be made of.

    Attributes:
        scheme: of the layers that no rule is about.
        rules: the first one whose pattern matches a layer holds for it.
        modules: patterns of the layers to quantize at all.
        skip: patterns of those to leave alone; they win over everything else.
        kernel: how they are computed, which decides what groups are best.
        embedding: what becomes of the input embedding, as in `QuantizeOptions`.
    """

    scheme: Scheme
    rules: Sequence[Rule]
    modules: Sequence[str]
    skip: Sequence[str]
    kernel: str
    embedding: str

    def group_size(self, scheme: Scheme) -> int:
        """Return the size of the groups of a scheme."""
        if scheme.group_size is not None:
            return scheme.group_size
        grouped = scheme.name == "int4" or (scheme.name == "int8" and self.kernel == "native")
        return GROUP_SIZE if grouped else 0


@dataclass(slots=True)
class Plan:
    """What is to become of each layer, by name.

    Attributes:
        schemes: what layers are to be made of, with the sizes of their groups.
        left: why others are left alone.
        instead: why a layer is not made of what was asked for.
        head: the name of the output embedding; empty if there is none.
        embedding: the name of the input embedding, if it is to read the weights of the
            output embedding; else empty.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    head: str = ""
    embedding: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether the input embedding is to read the weights of the output embedding."""
        return bool(self.embedding) and self.head in self.schemes

    def leave(self, name: str, reason: str) -> None:
        """Leave a layer alone after all."""
        del self.schemes[name]
        self.instead.pop(name, None)
        self.left[name] = reason

    def notes(self) -> list[str]:
        """Return sentences for the report."""
        counts = Counter(self.instead.values())
        return [f"{_layers(count)}: {reason}" for reason, count in counts.items()]


def make_plan(model: Any, wanted: Wanted) -> Plan:
    """Decide about every linear layer by its name, its kind and its shape."""
    from truthgpt_plugin_quantize.layers import linear_layers, matrix, why_not

    head, tokens = _embedding(model, "output"), _embedding(model, "input")
    plan = Plan(head=_name(model, head))
    if _reads_the_head(head, tokens, wanted, name := _name(model, tokens)):
        plan.embedding = name
    for name, module in linear_layers(model):
        rule = next((each for each in wanted.rules if matches(name, each.pattern)), None)
        reason = why_left_alone(name, wanted) or why_not(module)
        if reason:
            plan.left[name] = reason
            continue
        scheme = wanted.scheme if rule is None or rule.scheme is None else rule.scheme
        if rule is None and scheme.name == "int4" and module is head:
            # It costs more quality than any other layer: see `benchmarks/decode.py`.
            scheme = Scheme("int8")
            plan.instead[name] = "the output embedding is int8, unless layers says otherwise"
        fitting, why = _fit(scheme, matrix(module).shape[1], wanted)
        if why:
            plan.instead[name] = why
        plan.schemes[name] = fitting
    return plan


def why_left_alone(name: str, wanted: Wanted) -> str:
    """Say why the user wants a layer to be left alone; empty if not."""
    for pattern in wanted.skip:
        if matches(name, pattern):
            return f"skip={pattern}"
    if not any(matches(name, pattern) for pattern in wanted.modules):
        return "not among modules"
    rule = next((each for each in wanted.rules if matches(name, each.pattern)), None)
    return f"layers={rule.pattern}={NONE}" if rule is not None and rule.scheme is None else ""


def as_int8(wanted: Wanted, in_features: int) -> Scheme:
    """Return what a layer that cannot be int4 is made of."""
    return _fit(Scheme("int8"), in_features, wanted)[0]


def _fit(scheme: Scheme, in_features: int, wanted: Wanted) -> tuple[Scheme, str]:
    """Return a scheme with groups that rows can be cut into, and why it is another than asked."""
    from truthgpt_plugin_quantize import int4

    group_size = wanted.group_size(scheme)
    if scheme.name == "int4":
        fitting = int4.fitting_group(in_features, group_size)
        if not fitting:
            return as_int8(wanted, in_features), (
                f"int8, because rows of {in_features} weights are no multiple of {int4.COLUMNS}"
            )
        why = f"groups of {fitting}, because {group_size} does not divide {in_features} weights"
        return Scheme("int4", fitting), "" if fitting == group_size else why
    if group_size and in_features % group_size:
        why = f"whole channels, because {group_size} does not divide {in_features} weights"
        return Scheme(scheme.name, 0), why
    return Scheme(scheme.name, group_size), ""


def _reads_the_head(head: Any, tokens: Any, wanted: Wanted, name: str) -> bool:
    from torch import nn

    # Exactly that kind: others scale what they read.
    if (
        type(tokens) is not nn.Embedding
        or type(head) is not nn.Linear
        or wanted.embedding == "keep"
    ):
        return False
    if any(matches(name, pattern) for pattern in wanted.skip):
        return False
    return wanted.embedding == "shared" or tokens.weight is head.weight


def _embedding(model: Any, which: str) -> Any:
    found = getattr(model, f"get_{which}_embeddings", None)
    return found() if callable(found) else None


def _name(model: Any, module: Any) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
