"""The optimization `kv_cache`: the dtype that the engine keeps keys and values in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import did_you_mean
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

CacheDtype = Literal["int8", "bfloat16", "float32"]
OPTION = "kv_cache"
"""What the dtype is called among the options of generating."""

_ATTRIBUTE = "_truthgpt_native_kv_cache"


@dataclass
class CacheChoice:
    """What was chosen for a model; the model keeps it, and the engine counts in it.

    Attributes:
        dtype: of keys and values.
        tokens: how many tokens an engine has computed with such keys and values.
    """

    dtype: CacheDtype
    tokens: int = 0


class KVCacheOptions(Options):
    """Options of `kv_cache`.

    Attributes:
        dtype: of keys and values. `int8` rounds each key in groups of 32 numbers that share a
            scale, and each value of a head by one scale.
    """

    dtype: CacheDtype = Field(
        "int8",
        description="Of keys and values. int8 takes a little more than half the memory of "
        "bfloat16, and a quarter of that of float32.",
    )


class KVCacheDtype(Optimization[KVCacheOptions]):
    """Keep keys and values in another dtype than the engine `native` would take.

    Without it they are in bfloat16 where weights are bfloat16 or quantized, and in float32 where
    they are float32. It pays after long contexts, where keys and values are most of what is read
    for a token.

    Options are those of `KVCacheOptions`: `dtype`.
    """

    name: ClassVar[str] = "kv_cache"
    stage: ClassVar[Stage] = Stage.EXECUTION
    engine: ClassVar[str | None] = "native"
    options_type: ClassVar[type[Options]] = KVCacheOptions

    def check(self, device: str) -> Verdict:
        """The engine runs models on CPUs alone."""
        if device.partition(":")[0] == "cpu":
            return Verdict.yes()
        return Verdict.no(f"the engine native does not run models on {device}", "Say --device cpu.")

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Let engines that are made for the model keep keys and values so.

        Raises:
            OptimizationError: it was applied to the model already.
        """
        if choice_of(model) is not None:
            raise OptimizationError("The dtype of the model's keys and values is chosen already")
        setattr(model, _ATTRIBUTE, CacheChoice(self.options.dtype))
        covered = tuple(name for name, module in model.named_modules() if hasattr(module, "k_proj"))
        return Applied(model, Coverage("attention layers", covered), self.options.model_dump())

    def was_used(self, model: Model) -> bool:
        """Whether an engine has computed tokens with such keys and values."""
        choice = choice_of(model)
        return choice is not None and choice.tokens > 0


def choice_of(model: Any) -> CacheChoice | None:
    """Return what `KVCacheDtype` has chosen for a model; None if it was not applied."""
    choice = getattr(model, _ATTRIBUTE, None)
    return choice if isinstance(choice, CacheChoice) else None


def read_option(given: object) -> CacheDtype:
    """Read the option `kv_cache` of generating.

    Raises:
        GenerationError: there is no such dtype.
    """
    for known in get_args(CacheDtype):
        if given == known:
            found: CacheDtype = known
            return found
    known = get_args(CacheDtype)
    raise GenerationError(
        f"{OPTION} is {given!r:.80}: it must be one of {', '.join(known)}",
        hint=did_you_mean(given, known) if isinstance(given, str) else None,
    )
