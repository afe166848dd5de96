"""A plugin with sections as one that trains has them: required ones, components, units."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from truthgpt_core import hookimpl
from truthgpt_core.config import ComponentName, ConfigSections, Dtype, Fraction, Section


class Model(Section):
    """Which model."""

    name: str = Field(min_length=1, description="Its name.")
    dtype: Dtype = Field(default="auto", description="The type of its weights.")


class Data(Section):
    """Which texts."""

    source: Annotated[str, ComponentName("dataset_factory")] = Field(description="Their kind.")
    dataset: str = Field(description="Where they are.")
    held_out: Fraction = Field(default=0.05, ge=0, lt=1, description="How much is kept.")


class Training(Section):
    """How to train."""

    epochs: int = Field(default=1, ge=1, description="Passes over the texts.")
    eval_interval: int = Field(default=1, ge=1, description="Epochs between evaluations.")
    learning_rate: float = Field(default=5e-5, gt=0, description="The optimizer's step size.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="What gradients are clipped to.")
    optimizer: Annotated[str, ComponentName("optimizer_factory")] = "adamw"
    scheduler: Annotated[str, ComponentName("scheduler_factory")] = "linear"
    backend: Annotated[str, ComponentName("training_backend_factory", also=("auto",))] = "auto"


@hookimpl
def register_config_sections(sections: ConfigSections) -> None:
    """Register the sections."""
    sections.register("model", Model, required=True)
    sections.register("data", Data, required=True)
    sections.register("training", Training)
