"""The sections of a training configuration: those of the core and those of plugins."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    ValidationError,
    create_model,
)

from truthgpt_core.config.components import ComponentName
from truthgpt_core.config.values import Dtype, Fraction
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.transaction import record_undo


class Section(BaseModel):
    """A base for sections: keys that are not fields are errors, and values do not change."""

    # Plugins name their sections and keys: `model_zoo` is as good a name as any.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
        description="What follows a loss or gradient that is no finite number: stop, leave out the "
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


class CoreConfig(Section):
    """What every training configuration holds."""

    model: ModelSection
    data: DataSection
    training: TrainingSection = Field(default_factory=TrainingSection)
    output_dir: str = Field(
        default="runs", min_length=1, description="The directory for checkpoints and metrics."
    )
    seed: int = Field(
        default=42, ge=0, lt=2**32, description="What all random number generators start from."
    )


# What ConfigManager has besides its sections.
_RESERVED: Final = frozenset({"load_config", "origin"})
# Two underscores in a row divide keys in the names of environment variables.
_SECTION_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


# Compared by identity: the same section may be registered several times.
@dataclass(frozen=True, eq=False, slots=True)
class _Registration:
    model: type[BaseModel]
    has_defaults: bool


class ConfigSections:
    """The sections that a training configuration may have, besides what the core itself reads."""

    def __init__(self) -> None:
        self._registered: dict[str, list[_Registration]] = {}
        self._lock = threading.Lock()

    def register(self, name: str, model: type[BaseModel]) -> None:
        """Add a top-level section to the files that `ConfigManager.load_config` reads.

        A file need not have the section: its value is then the model's defaults, or None if the
        model cannot be made of defaults alone. The same model may be registered under the same
        name again. Undone with the transaction that is under way (see
        `truthgpt_core.transaction`); what was registered before is in force again then.

        Args:
            name: the key: lower-case letters, digits and single underscores between them.
            model: what the section has to be. Keys it does not name are errors unless its
                `model_config` says `extra="allow"`; `Section` is a base to derive it from.

        Raises:
            TruthGPTError: the name is taken, reserved or not a name, or `model` is not a
                pydantic model or an unfinished one.
        """
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TruthGPTError(
                f'the model of the configuration section "{name}" is not a pydantic model'
            )
        if not _SECTION_NAME.fullmatch(name):
            raise TruthGPTError(
                f'"{name}" cannot name a configuration section',
                hint="Use lower-case letters, digits and single underscores.",
            )
        # An attribute of a model would hide the section, or the section it.
        if name in _RESERVED or hasattr(BaseModel, name):
            raise TruthGPTError(f'the name "{name}" is reserved and cannot name a section')
        made = _Registration(model, _has_defaults(name, model))
        with self._lock:
            before = self._registered.get(name, [])
            taken = "the core" if name in CoreConfig.model_fields else None
            if before and before[-1].model is not model:
                taken = f"{before[-1].model.__module__}.{before[-1].model.__qualname__}"
            if taken is not None:
                raise TruthGPTError(f'the configuration section "{name}" is taken by {taken}')
            self._registered[name] = [*before, made]
        record_undo(lambda: self._withdraw(name, made))

    def _withdraw(self, name: str, made: _Registration) -> None:
        with self._lock:
            left = [each for each in self._registered[name] if each is not made]
            if left:
                self._registered[name] = left
            else:
                del self._registered[name]

    def _fields(self) -> dict[str, Any]:
        """Return the fields of the sections, as pydantic takes them."""
        with self._lock:
            newest = {name: each[-1] for name, each in self._registered.items()}
        fields: dict[str, Any] = {}
        for name, section in newest.items():
            if section.has_defaults:
                fields[name] = (section.model, Field(default_factory=section.model))
            else:
                fields[name] = (section.model | None, None)
        return fields


_default = ConfigSections()


def get_config_sections() -> ConfigSections:
    """Return the default sections, which are used where no others are given."""
    return _default


def config_model(sections: ConfigSections) -> type[CoreConfig]:
    """Return the model of a whole file.

    Args:
        sections: those that are registered at this moment become its fields.
    """
    return create_model(
        "TruthGPTConfig",
        __base__=CoreConfig,
        __doc__="A TruthGPT training configuration.",
        **sections._fields(),
    )


def _has_defaults(name: str, model: type[BaseModel]) -> bool:
    try:
        # Only making it tells: a validator may ask for one of two keys.
        model()
    except ValidationError:
        return False
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise TruthGPTError(
            f'the model of the configuration section "{name}" cannot be used: {error.message}'
        ) from error
    return True
