"""The sections of a training configuration that this package has.

Importing this module registers them in the default sections. It imports pydantic, and neither
torch nor transformers. It may be imported while `truthgpt_core.config` is, of which only
submodules can be used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from truthgpt_core.config.components import ComponentName
from truthgpt_core.config.sections import (
    ConfigSections,
    Dtype,
    Fraction,
    Section,
    get_config_sections,
)
from truthgpt_core.errors import did_you_mean
from truthgpt_services.training.errors import TrainingError


class ModelSection(Section):
    """Which model, and how it is loaded."""

    name_or_path: str = Field(
        min_length=1, description="A model's name on the Hugging Face hub, or its directory."
    )
    torch_dtype: Dtype = Field(
        default="auto", description="The type of the weights; auto is the one they are saved in."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass, to save memory."
    )


class DataSection(Section):
    """Which texts to train and evaluate on."""

    source: Annotated[str, Field(min_length=1), ComponentName("dataset_factory")] = Field(
        description="The kind of source, by the name it is registered under."
    )
    dataset: str = Field(min_length=1, description="The data set's name or path in that source.")
    max_seq_len: int = Field(
        default=1024,
        ge=1,
        description="Where texts are cut, in tokens; at most the model's context.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="What the source takes besides, as `field` of jsonl or `split` of huggingface.",
    )
    validation_dataset: str | None = Field(
        default=None,
        min_length=1,
        description="A data set of its own to validate with; without, a part of the texts is kept.",
    )
    validation_fraction: Fraction = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="How much of the texts is kept for validation, if it has no data set of its "
        "own; 0 for none.",
    )
    packing: bool = Field(
        default=True,
        description="Fill rows of max_seq_len with several texts, which do not see each other; "
        "false pads each text.",
    )
    length_bucketing: bool = Field(
        default=True,
        description="Put texts of similar length into a batch; only without packing.",
    )
    end_of_text: bool = Field(
        default=True,
        description="End each text with the tokenizer's token for that, so that the model learns "
        "to stop.",
    )
    drop_last: bool = Field(
        default=False,
        description="Leave out the last batch of an epoch if it is smaller than the others.",
    )
    num_workers: int = Field(
        default=0,
        ge=0,
        description="Processes that prepare batches ahead; 0 prepares them in the one that trains.",
    )
    prefetch: int = Field(
        default=2, ge=1, description="Batches that each of these processes prepares ahead."
    )
    tokenizing_processes: int | None = Field(
        default=None,
        ge=1,
        description="Processes that turn texts into tokens; without, one for each core, up to 8.",
    )


class TrainingSection(Section):
    """How to train."""

    epochs: int = Field(default=1, ge=1, description="Passes over the training texts.")
    train_batch_size: int = Field(
        default=8, ge=1, description="Texts in one forward and backward pass."
    )
    eval_batch_size: int = Field(default=8, ge=1, description="Texts in one pass of evaluation.")
    gradient_accumulation_steps: int = Field(
        default=1,
        ge=1,
        description="Batches whose gradients are added up before a step of the optimizer.",
    )
    learning_rate: float = Field(
        default=5e-5,
        gt=0,
        allow_inf_nan=False,
        description="The optimizer's step size after warmup.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="The optimizer's decoupled weight decay.",
    )
    warmup_ratio: Fraction = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The part of all steps in which the learning rate rises.",
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="The norm that gradients are clipped to; .inf to leave them."
    )
    eval_interval: int = Field(
        default=1, ge=1, description="Epochs from one evaluation to the next."
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="Steps of the optimizer after which training ends."
    )
    optimizer: Annotated[str, Field(min_length=1), ComponentName("optimizer_factory")] = Field(
        default="adamw", description="The optimizer, by the name it is registered as."
    )
    optimizer_options: dict[str, Any] = Field(
        default_factory=dict, description="What the optimizer takes besides, such as betas."
    )
    scheduler: Annotated[str, Field(min_length=1), ComponentName("scheduler_factory")] = Field(
        default="linear",
        description="The learning-rate schedule, by the name it is registered as.",
    )
    scheduler_options: dict[str, Any] = Field(
        default_factory=dict, description="What the schedule takes besides warmup and all steps."
    )
    backend: Annotated[
        str, Field(min_length=1), ComponentName("training_backend_factory", also=("auto",))
    ] = Field(
        default="auto",
        description="Where training runs, by the name it is registered as; auto is the one whose "
        "launcher started the process, else local.",
    )
    backend_options: dict[str, Any] = Field(
        default_factory=dict, description="What the backend takes, such as sharding."
    )
    precision: Dtype = Field(
        default="auto",
        description="The type that matrix products are computed in; auto is bfloat16 where the "
        "machine has instructions for it, else float32.",
    )
    compile: Literal["auto"] | bool = Field(
        default="auto",
        description="Compile the training step with torch.compile; auto does where the whole run "
        "is long enough for that to repay itself.",
    )
    eval_steps: int | None = Field(
        default=None, ge=1, description="Steps from one evaluation to the next, besides epochs."
    )
    save_interval: int = Field(
        default=1, ge=1, description="Epochs from one checkpoint to the next."
    )
    save_steps: int | None = Field(
        default=None, ge=1, description="Steps from one checkpoint to the next, besides epochs."
    )
    keep_last: int = Field(
        default=2, ge=1, description="How many of the newest checkpoints are kept."
    )
    keep_best: int = Field(
        default=1, ge=0, description="How many of those with the lowest validation loss are kept."
    )
    async_save: bool = Field(
        default=True, description="Write checkpoints in a thread, from a copy in memory."
    )
    non_finite: Literal["stop", "skip", "roll_back"] = Field(
        default="stop",
        description="What follows a non-finite (NaN or Inf) loss or gradient: stop, leave out the "
        "step, or go back to the newest checkpoint.",
    )
    max_non_finite: int = Field(
        default=8,
        ge=1,
        description="How many of them in a row, or goings back in all, end training anyway.",
    )
    spike_factor: float = Field(
        default=2.0,
        gt=1,
        description="A loss of so many times the running median is reported as a spike.",
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations without a lower validation loss that end training.",
    )
    early_stopping_min_delta: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="How much lower counts as lower."
    )
    sample_prompts: list[str] = Field(
        default_factory=list, description="Prompts that the model continues at each evaluation."
    )
    sample_tokens: int = Field(
        default=40, ge=1, description="Tokens of a continuation of such a prompt."
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


def register_sections(sections: ConfigSections) -> None:
    """Register the sections of this package.

    Args:
        sections: where to.
    """
    sections.register("model", ModelSection, required=True)
    sections.register("data", DataSection, required=True)
    sections.register("training", TrainingSection)
    sections.register("architecture", ArchitectureSection)
    sections.register("lora", LoraSection)


def read_settings(config: Mapping[str, Any]) -> TrainingSection:
    """Read the keys of the section `training`.

    Raises:
        TrainingError: a key is unknown, or a value is wrong; all of them.
    """
    try:
        return TrainingSection.model_validate(dict(config))
    except ValidationError as error:
        wrong, hints = [], []
        for each in error.errors():
            name = ".".join(map(str, each["loc"]))
            if each["type"] == "extra_forbidden":
                wrong.append(f'there is no key "{name}"')
                hint = did_you_mean(name, TrainingSection.model_fields)
                hints += [hint] if hint else []
            else:
                wrong.append(f"{name} is {each['input']!r}: {each['msg']}")
        raise TrainingError(
            f"The configuration of training is wrong: {'; '.join(wrong)}",
            hint=" ".join(hints) or None,
        ) from None


# For good, and not only until the plugin that is being activated is deactivated.
Context().run(register_sections, get_config_sections())
