"""The sections of a training configuration that this package adds."""

from __future__ import annotations

from pydantic import Field

from truthgpt_core.config.sections import Section


class LoraSection(Section):
    """Train small matrices beside the model's own, which stay as they are, through peft."""

    rank: int = Field(ge=1, description="The inner dimension of the matrices.")
    alpha: float = Field(
        default=16.0, gt=0, allow_inf_nan=False, description="Their products count alpha/rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of what goes into them.")
    targets: list[str] = Field(
        default_factory=list,
        description="Names of the modules that get them; without, all linear ones but the head.",
    )


class ArchitectureSection(Section):
    """Train a new Llama of random weights; model.name_or_path gives it the tokenizer alone."""

    hidden_size: int = Field(ge=1, description="The width of the residual stream.")
    layers: int = Field(ge=1, description="How many decoder layers.")
    heads: int = Field(ge=1, description="How many attention heads; they divide hidden_size.")
    kv_heads: int | None = Field(
        default=None, ge=1, description="Heads of keys and values; without, as many as heads."
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="The width inside an MLP; without, 8/3 of hidden_size."
    )
    context: int = Field(default=2048, ge=1, description="How many tokens it takes.")
    tied: bool = Field(default=True, description="Use one matrix to read and to write tokens.")
