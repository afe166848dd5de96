"""The options of `quantize`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from truthgpt_core.optimization import Options
from truthgpt_plugin_quantize.schemes import Rule, check_group, parse_rule, rules_as_list


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _readable(text: str) -> str:
    parse_rule(text)
    return text


Patterns = Annotated[list[str], BeforeValidator(_as_list)]
Rules = Annotated[list[Annotated[str, AfterValidator(_readable)]], BeforeValidator(rules_as_list)]


class QuantizeOptions(Options):
    """Options of `quantize`.

    Attributes:
        scheme: what weights are made of. `int8`: 8-bit integers, symmetric, with one scale
            for each group of neighbors in a row. `int8-dynamic`: the same by whole
            channels, and activations are rounded to 8 bits as they come. `int4`: 4-bit
            integers, with a scale and a minimum for each group; the output embedding is
            int8, unless `layers` says otherwise. `fp8`: 8-bit floating point, on GPUs that
            multiply it. `auto`: for each layer int4, int8 or as it was, whichever is
            the smallest or fastest mix within `max_kl`.
        group_size: how many neighbors share a scale; 0 for a whole output channel; int4
            has groups of 32, 64 or 128. `auto` takes 32, for int8 only where a plugin
            multiplies integers, else 0. Rows that cannot be cut so take smaller groups or whole
            channels, which the report says.
        layers: `PATTERN=SCHEME` for layers that are to be made of something else, or of
            nothing else (`none`); the first pattern that matches holds. A scheme may name
            its groups: `int4/64`.
        modules: patterns (`*` matches anything) of the layers to quantize; a
            pattern also matches what is inside the module that it names.
        skip: patterns of the layers to leave alone; `=NAME` is the layer of exactly
            that name.
        kernel: how layers are computed on a CPU where PyTorch runs the model. `native`
            multiplies the integers as they are, with the code of a plugin that has some
            (truthgpt-plugin-native, with activations rounded to 8 bits in eights).
            `packed` multiplies a few rows with activations in the model's dtype;
            `packed-bfloat16` the same with activations rounded to bfloat16; both want
            int8 by whole channels. `dequantize` makes floating-point weights each time.
            `auto` takes `native` where a plugin has it, else `packed` where the CPU has
            AVX-512, else `packed-bfloat16`.
        embedding: what becomes of the input embedding: `shared`, it reads the weights of the
            quantized output embedding and has none of its own; `keep`, it stays as it is.
            `auto` is `shared` if the two shared their weights before, else `keep`.
        max_kl: for `auto`: mean KL divergence from the model as it was, in nats per token,
            on the text that the report names; None for the bound that it is judged by.
        goal: for `auto`: what the mix is to be, the smallest (`size`) or the fastest to
            decode on this machine (`speed`).
    """

    scheme: Literal["int8", "int8-dynamic", "int4", "fp8", "auto"] = Field(
        "int8",
        description="What weights are made of: 8-bit or 4-bit integers, or 8-bit floating point "
        "(on GPUs that multiply it). int8-dynamic rounds activations too. auto chooses int4, "
        "int8 or none for each layer, within max_kl.",
    )
    group_size: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="How many neighbors in a row share a scale; 0 for a whole output channel. "
        "int4 has groups of 32, 64 or 128.",
    )
    layers: Rules = Field(
        [],
        description="PATTERN=SCHEME for layers that get another scheme, or none; the first "
        "pattern that matches holds. A scheme may name its groups: int4/64.",
    )
    modules: Patterns = Field(["*"], description="Patterns of the layers to quantize.")
    skip: Patterns = Field(
        [],
        description="Patterns of the layers to leave alone, such as lm_head; =NAME is the layer "
        "of exactly that name.",
    )
    kernel: Literal["auto", "native", "packed", "packed-bfloat16", "dequantize"] = Field(
        "auto",
        description="How layers are computed on a CPU where PyTorch runs the model. native is "
        "the code of a plugin such as truthgpt-plugin-native; the packed ones are kernels of "
        "torch for int8 by whole channels; dequantize makes floating-point weights each time.",
    )
    embedding: Literal["auto", "shared", "keep"] = Field(
        "auto",
        description="shared: the input embedding reads the weights of the quantized output "
        "embedding. auto does so if the two shared their weights before.",
    )
    max_kl: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="For scheme=auto: the mean KL divergence, in nats per token, that the mix "
        "may cost; none for the bound that the result is judged by.",
    )
    goal: Literal["size", "speed"] = Field(
        "size",
        description="For scheme=auto: whether the mix is to be the smallest, or the fastest to "
        "decode on this machine.",
    )

    @model_validator(mode="after")
    def _groups_that_there_are(self) -> QuantizeOptions:
        if self.group_size != "auto":
            check_group(self.scheme, self.group_size)
        return self

    @property
    def rules(self) -> list[Rule]:
        """`layers`, read."""
        return [parse_rule(text) for text in self.layers]
