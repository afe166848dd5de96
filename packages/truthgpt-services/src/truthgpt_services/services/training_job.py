"""From a configuration to a trained model: `TrainingJob`."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoConfig, AutoModelForCausalLM

from truthgpt_core.config import ConfigManager, plain_config
from truthgpt_core.config.yaml_nodes import format_path
from truthgpt_core.errors import TruthGPTError, did_you_mean
from truthgpt_core.event_system import ModelSaved
from truthgpt_core.optimization import Progress, no_progress
from truthgpt_core.paths import expanded
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.sources import Described, Fingerprinted, TextSource
from truthgpt_core.training import TrainingBackend
from truthgpt_services.data import DataError, DataLoaderFactory, DatasetManager
from truthgpt_services.models.loading import pick_device, quiet
from truthgpt_services.services.model_service import ModelService
from truthgpt_services.services.training_service import TrainingService
from truthgpt_services.storage.atomic import MARKER, StagedDirectory, explained_writing
from truthgpt_services.training.config_sections import (
    ArchitectureSection,
    DataSection,
    LoraSection,
    ModelSection,
    TrainingSection,
)
from truthgpt_services.training.distributed import choose_backend
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.optimizers import fast_options, parameter_groups
from truthgpt_services.training.rng import seed_all
from truthgpt_services.training.run import count_steps
from truthgpt_services.training.state import whole_weights


@dataclass(frozen=True, slots=True)
class Assembled:
    """What a configuration asks for.

    Attributes:
        service: configured.
        model: what is trained; one of peft, if the configuration says `lora`.
        tokenizer: its tokenizer.
        train_loader: batches to train on.
        val_loader: batches to evaluate on, if some texts are kept for that.
        total_steps: how many steps there will be at most.
        backend: in how many processes it is trained.
        data_note: what the source of texts has recognized, in a sentence; None for nothing.
    """

    service: TrainingService
    model: Any
    tokenizer: Any
    train_loader: Any
    val_loader: Any
    total_steps: int | None
    backend: TrainingBackend
    data_note: str | None = None


class TrainingJob:
    """Trains what a configuration says: finds the parts, puts them together, saves the result.

    Args:
        plugins: where sources of data, optimizers and schedules come from; the plugin manager of
            the default application if None.
        model_service: loads the model; a new `ModelService` if None.
        training_service: trains it; a new `TrainingService` if None.

    Attributes:
        training: the service that trains.
        models: the service that loads.
    """

    def __init__(
        self,
        plugins: PluginManager | None = None,
        model_service: ModelService | None = None,
        training_service: TrainingService | None = None,
    ) -> None:
        self._plugins = plugins or get_plugin_manager()
        self.models = model_service or ModelService(self._plugins)
        self.training = training_service or TrainingService(self._plugins)

    def assemble(
        self,
        config: ConfigManager,
        *,
        device: str = "auto",
        progress: Progress = no_progress,
        backend: TrainingBackend | None = None,
    ) -> Assembled:
        """Make all that a training configuration names, and configure the service with it.

        Args:
            config: read after the plugins were activated, which add sections to it.
            device: where to train.
            progress: told about work that takes seconds; it may raise, to stop.
            backend: in how many processes to train; as the configuration says if None.

        Raises:
            TruthGPTError: something is not there or does not fit.
        """
        plugins, models = self._plugins, self.models
        training: TrainingSection = config.training
        backend = backend or choose_backend(training, plugins)
        device = backend.device(device)
        # What is wrong with these is known in a moment; loading a model takes a while.
        pick_device(device)
        for kind in ("optimizer", "scheduler"):
            _refuse_unknown_options(config, plugins, kind)
        texts, validation_texts = _texts(config, plugins)
        note = _recognized(texts, validation_texts)
        seed_all(config.seed)
        progress("Loading the model", 0, 0)
        models.progress = progress
        # What is made first is in the cache for the other processes.
        with backend.main_first():
            tokenizer = models.load_tokenizer(config.model.name_or_path)
            model = _model(config, models, tokenizer, device)
            refuse_unknown_tokens(model, tokenizer)
            progress("Preparing the texts", 0, 0)
            train_loader, val_loader = _loaders(
                config, texts, validation_texts, model, tokenizer, progress
            )
        optimizers = plugins.factories["optimizer_factory"]
        groups = parameter_groups(model, training.weight_decay)
        chosen = optimizers.get_class(training.optimizer)
        optimizer = optimizers.create_from_config(
            {
                "name": training.optimizer,
                "parameters": fast_options(chosen, training.optimizer_options, groups),
            },
            groups,
            lr=training.learning_rate,
        )
        total = count_steps(train_loader, training)
        self.training.configure(
            config=training.__dict__,
            model=model,
            train_loader=train_loader,
            val_loader=val_loader,
            optimizer=optimizer,
            scheduler=make_scheduler(config, plugins, optimizer, total),
            device=device,
            output_dir=expanded(config.output_dir),
            backend=backend,
            whole_config=plain_config(config),
        )
        if backend.rank > 0:
            # The weights begin the same; what is dropped out does not.
            seed_all((config.seed + backend.rank) % 2**32)
        return Assembled(
            self.training, model, tokenizer, train_loader, val_loader, total, backend, note
        )

    def save(self, assembled: Assembled, directory: Path, *, source: str) -> None:
        """Save what was trained as an ordinary transformers directory; all processes call this.

        Args:
            assembled: what `assemble` returned; a model of peft is merged into the one that it
                was made of.
            directory: one that TruthGPT wrote is replaced.
            source: what the model was before.

        Raises:
            OutputError: it cannot be written, or something else is there.
        """
        model, tokenizer = assembled.model, assembled.tokenizer
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        weights = whole_weights(model, assembled.backend)
        if not assembled.backend.is_main:
            return
        marker = {"format": 1, "kind": "trained", "source": source, "steps": []}
        with StagedDirectory(directory, overwrite=True) as staged:
            with explained_writing(directory), quiet():
                model.save_pretrained(staged.path, state_dict=weights)
                tokenizer.save_pretrained(staged.path)
                (staged.path / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            staged.commit()
        self._plugins.events.emit(ModelSaved(name=source, path=str(directory)))


def make_scheduler(
    config: ConfigManager, plugins: PluginManager, optimizer: Any, total: int | None
) -> LRScheduler:
    """Make the learning-rate schedule of a configuration.

    Args:
        config: with its name, options and warmup.
        plugins: where it comes from.
        optimizer: whose rate it sets.
        total: steps of the run, if that is known.

    Raises:
        TrainingError: it needs the number of steps, which is not known.
        FactoryError: there is none of that name, or its options are wrong.
    """
    training: TrainingSection = config.training
    factory = plugins.factories["scheduler_factory"]
    takes = inspect.signature(factory.get_class(training.scheduler)).parameters
    known: dict[str, Any] = {}
    if total is not None:
        warmup = math.ceil(training.warmup_ratio * total)
        known = {"num_training_steps": total, "num_warmup_steps": warmup}
    elif "num_training_steps" in takes or training.warmup_ratio:
        raise TrainingError(
            "Nobody knows how many steps a stream of texts comes to, and the schedule "
            f'"{training.scheduler}" has to know',
            hint="Set training.max_steps, or training.scheduler to constant.",
        )
    else:
        known = {"num_warmup_steps": 0}
    given = {k: v for k, v in known.items() if k in takes and k not in training.scheduler_options}
    made: LRScheduler = factory.create_from_config(
        {"name": training.scheduler, "parameters": training.scheduler_options}, optimizer, **given
    )
    return made


def _model(config: ConfigManager, models: ModelService, tokenizer: Any, device: str) -> Any:
    section: ModelSection = config.model
    architecture: ArchitectureSection | None = config.architecture
    if architecture is not None:
        model = new_model(architecture, len(tokenizer)).to(pick_device(device))
        for kind in ("bos_token_id", "eos_token_id", "pad_token_id"):
            # Else it would stop at tokens of Llama's own tokenizer.
            for settings in (model.config, model.generation_config):
                setattr(settings, kind, getattr(tokenizer, kind))
        if section.gradient_checkpointing:
            with quiet():
                model.gradient_checkpointing_enable()
    else:
        # As they are stored is no way to train weights: a step is smaller than what bfloat16
        # can add to a number.
        dtype = "float32" if section.torch_dtype == "auto" else section.torch_dtype
        options = {**section.__dict__, "torch_dtype": dtype, "device": device}
        model = models.load_model(section.name_or_path, options)
    lora: LoraSection | None = config.lora
    if lora is not None:
        model = _with_lora(model, lora, section.gradient_checkpointing)
    if any(each.requires_grad and each.dtype == torch.float16 for each in model.parameters()):
        raise TrainingError(
            "Weights in float16 cannot be trained: most steps are smaller than what can be added "
            "to such a number",
            hint="Set model.torch_dtype to float32, and training.precision to float16 to compute "
            "in it.",
        )
    return model


def refuse_unknown_tokens(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that has more tokens than the model has embeddings.

    Raises:
        TrainingError: it has.
    """
    known = getattr(model.config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if isinstance(known, int) and largest >= known:
        raise TrainingError(
            f"The tokenizer has the token {largest:,}, and the model knows {known:,} tokens",
            hint="Use the tokenizer that belongs to the model.",
        )


def new_model(architecture: ArchitectureSection, vocabulary: int) -> Any:
    """Return a Llama of random weights.

    Args:
        architecture: its shape.
        vocabulary: how many tokens there are.

    Raises:
        TrainingError: there is no such Llama.
    """
    heads = architecture.heads
    kv_heads = architecture.kv_heads or heads
    if architecture.hidden_size % heads or heads % kv_heads:
        raise TrainingError(
            f"architecture.heads is {heads}, which does not divide hidden_size "
            f"{architecture.hidden_size}, or is not a multiple of kv_heads {kv_heads}",
            hint="Choose heads that divide hidden_size, and kv_heads that divide heads.",
        )
    inner = architecture.intermediate_size or -(-architecture.hidden_size * 8 // 3 // 32) * 32
    with quiet():
        made = AutoConfig.for_model(
            "llama",
            vocab_size=vocabulary,
            hidden_size=architecture.hidden_size,
            intermediate_size=inner,
            num_hidden_layers=architecture.layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=architecture.context,
            tie_word_embeddings=architecture.tied,
        )
        return AutoModelForCausalLM.from_config(made)


def _with_lora(model: Any, lora: LoraSection, checkpointing: bool) -> nn.Module:
    try:
        # By its name: its types are not there where it is not installed.
        peft: Any = import_module("peft")
    except ImportError as error:
        raise TrainingError(
            f"The section lora needs peft, which cannot be imported: {error}",
            hint="pip install 'truthgpt-services[lora]'.",
        ) from error
    if checkpointing:
        # Else no gradient passes the first checkpoint: what goes into it needs none.
        model.enable_input_require_grads()
    try:
        with quiet():
            made: nn.Module = peft.get_peft_model(
                model,
                peft.LoraConfig(
                    task_type="CAUSAL_LM",
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=lora.targets or "all-linear",
                ),
            )
    except ValueError as error:
        raise TrainingError(f"The section lora does not fit this model: {error}") from error
    return made


def _refuse_unknown_options(config: ConfigManager, plugins: PluginManager, kind: str) -> None:
    """Refuse options that the optimizer or the schedule has no parameter for, with their place."""
    name = getattr(config.training, kind)
    options = getattr(config.training, f"{kind}_options")
    component = plugins.factories[f"{kind}_factory"].get_class(name)
    known = inspect.signature(component).parameters
    if any(each.kind is each.VAR_KEYWORD for each in known.values()):
        return
    for option in options:
        if option not in known:
            path = format_path(["training", f"{kind}_options", option])
            raise TrainingError(
                f'{config.origin(path)}: {path}: the {kind} "{name}" has no option of this name',
                hint=did_you_mean(option[:100], known) or f"It has: {', '.join(known)}.",
            )


def _texts(config: ConfigManager, plugins: PluginManager) -> tuple[TextSource, TextSource | None]:
    """Return the texts to train on and those to validate with."""
    data: DataSection = config.data
    own = data.validation_dataset
    texts, validation_texts = DatasetManager.stream_dataset(
        data.source,
        data.dataset,
        validation_fraction=data.validation_fraction if own is None else 0.0,
        seed=config.seed,
        plugins=plugins,
        **data.options,
    )
    if own is not None:
        validation_texts, _ = DatasetManager.stream_dataset(
            data.source,
            own,
            validation_fraction=0.0,
            seed=config.seed,
            plugins=plugins,
            **data.options,
        )
    return texts, validation_texts


def _recognized(*sources: TextSource | None) -> str | None:
    """Look for the files of the sources, and return what the first of them has recognized."""
    for source in sources:
        if isinstance(source, Fingerprinted):
            source.fingerprint()
    return sources[0].describe() if isinstance(sources[0], Described) else None


def _loaders(
    config: ConfigManager,
    texts: TextSource,
    validation_texts: TextSource | None,
    model: Any,
    tokenizer: Any,
    progress: Progress,
) -> tuple[Any, Any]:
    data: DataSection = config.data
    training: TrainingSection = config.training
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": data.max_seq_len,
        "packing": data.packing,
        "length_bucketing": data.length_bucketing,
        "end_of_text": data.end_of_text,
        "num_workers": data.num_workers,
        "prefetch": data.prefetch,
        "tokenizing_processes": data.tokenizing_processes,
        "context_length": getattr(model.config, "max_position_embeddings", None),
        "progress": progress,
    }
    train_loader = DataLoaderFactory.create_train_loader(
        texts=texts,
        batch_size=training.train_batch_size,
        seed=config.seed,
        drop_last=data.drop_last,
        **common,
    )
    if validation_texts is None:
        return train_loader, None
    try:
        val_loader = DataLoaderFactory.create_val_loader(
            texts=validation_texts, batch_size=training.eval_batch_size, **common
        )
    except TruthGPTError as error:
        raise DataError(
            f"In the texts to validate with: {error.message}", hint=error.hint
        ) from error
    return train_loader, val_loader
