"""ModelService: load, optimize and save models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from truthgpt_core.decoding import Engine, EngineOptions
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.event_system import EventEmitter, ModelLoaded, ModelSaved, OptimizationNoted
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.optimization import (
    Applied,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Progress,
    SourceModel,
    in_order,
    no_progress,
    refuse_impossible,
)
from truthgpt_core.paths import cache_dir
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.errors import ModelError
from truthgpt_services.models import applying, exporters, lazy_weights, saved_model, sources
from truthgpt_services.models.gguf import as_directory
from truthgpt_services.models.loading import (
    LoadOptions,
    load_model,
    load_tokenizer,
    read_load_options,
)
from truthgpt_services.models.plain_model import open_plain
from truthgpt_services.models.recipe import Recipe, SavedStep, is_saved
from truthgpt_services.models.rollback import undone_if_it_fails
from truthgpt_services.storage.atomic import StagedDirectory

if TYPE_CHECKING:
    from truthgpt_services.results.schema import Report

logger = logging.getLogger(__name__)


class ModelService:
    """Loads, optimizes and saves causal language models.

    Args:
        plugins: where optimizations and kinds of model sources come from; that of the
            default application if None.
        events: where it emits events; the emitter of `plugins` if None.
        progress: told about work that takes seconds.

    Attributes:
        progress: as given; a command that draws progress sets its own.
    """

    def __init__(
        self,
        plugins: PluginManager | None = None,
        events: EventEmitter | None = None,
        *,
        progress: Progress = no_progress,
    ) -> None:
        self._plugins = plugins or get_plugin_manager()
        self._events = events or self._plugins.events
        self.progress = progress
        self._last_report: Report | None = None

    @property
    def last_report(self) -> Report | None:
        """What the last `optimize_model` that measured has found; None before the first."""
        return self._last_report

    @property
    def hooks(self) -> Hooks:
        """The hooks of the active plugins."""
        return self._plugins.hooks

    def initialize(self) -> None:
        """Activate the installed plugins now; otherwise that happens at first use."""
        self._plugins.activate_all()

    def resolve(self, spec: str) -> ResolvedModel:
        """Find a model on disk, fetching it if it is on a hub.

        Raises:
            ModelError: it cannot be found, or may not be loaded.
        """
        self._plugins.activate_all()
        return sources.resolve(spec, self._plugins.factories["model_source_factory"])

    def load_model(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Load a model.

        Args:
            name: a directory, one that TruthGPT saved included; a `.gguf` file;
                `package:PACKAGE/FILE`; or a hub id.
            options: `dtype` (or `torch_dtype`; a `torch.dtype` or its name, default:
                as stored), `device` (default: the first GPU or the CPU),
                `gradient_checkpointing` (default: False). `name_or_path` is allowed
                and ignored, so that a section of a configuration can be passed.

        Returns:
            A transformers model, in evaluation mode.

        Raises:
            ModelError: it cannot be found or loaded, or an option is wrong.
        """
        return self._load(name, read_load_options(options))

    def load_and_optimize(
        self,
        name: str,
        optimizations: Sequence[str | Optimization[Any]],
        options: Mapping[str, Any] | None = None,
        *,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> Any:
        """Load a model and apply optimizations to it, in the order that they declare.

        If the first one is `layerwise` and the model is in safetensors, weights are read
        when they are needed, and the model as it was is never in memory as a whole.

        Args:
            name: as for `load_model`. What TruthGPT has optimized keeps its optimizations.
            optimizations: as for `optimize_model`.
            options: as for `load_model`.
            tokens: as for `apply`.
            max_kl: as for `apply`.

        Returns:
            The optimized model, in evaluation mode.

        Raises:
            ModelError: it cannot be found or loaded, or an option is wrong.
            OptimizationError: an optimization is unknown, given twice, cannot be done, or
                the model has it already.
        """
        made = self._made(optimizations)
        directory = self._directory(name)
        refuse_impossible(made, sources.describe(directory, name))
        if is_saved(directory):
            device = read_load_options(options).device
            made += saved_model.runnable(directory, device, self._plugins.make_optimization)
        model = None
        for optimization in in_order(made):
            if model is None:
                model = self.load_and_apply(
                    name, optimization, options, tokens=tokens, max_kl=max_kl
                ).model
            else:
                # Nobody else has this model, so nothing has to be undone.
                model = self.apply(
                    optimization, model, tokens=tokens, max_kl=max_kl, undo=False
                ).model
        return self.load_model(name, options) if model is None else model

    def load_unfinished(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Load a model that more optimizations are to be applied to.

        That is `load_model`, except that what TruthGPT has optimized lacks the steps that
        only change how it is run: they come after all that change its weights.

        Args:
            name: as for `load_model`.
            options: as for `load_model`.

        Raises:
            ModelError: it cannot be found or loaded, or an option is wrong.
        """
        return self._load(name, read_load_options(options), run=False)

    def load_and_apply(
        self,
        name: str,
        optimization: Optimization[Any],
        options: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> Applied:
        """Load a model and apply one optimization, layer by layer if the two allow it.

        Args:
            name: as for `load_unfinished`.
            optimization: with its options.
            options: as for `load_model`.
            seed: for whatever it does that is random.
            tokens: as for `apply`.
            max_kl: as for `apply`.

        Raises:
            ModelError: the model cannot be found or loaded, or an option is wrong.
            OptimizationError: it cannot be done to this model.
        """
        how = read_load_options(options)
        directory = self._directory(name)
        context = self._context(optimization.name, str(how.device), seed, tokens, max_kl)
        opened = None
        if optimization.layerwise and not is_saved(directory):
            opened = lazy_weights.open_model(directory, dtype=how.dtype, device=how.device)
        if opened is None:
            return self._apply(optimization, self._load(name, how, run=False), context)
        model = self._loaded(opened.model, name, directory, how)
        applied = self._apply(optimization, model, replace(context, fill=opened.fill))
        opened.fill_rest(applied.model)
        return applied

    def make_engine(
        self,
        source: ResolvedModel,
        options: Mapping[str, Any] | None = None,
        *,
        engine: str | None = None,
        given: dict[str, Any] | None = None,
        before_loading: Callable[[Path], None] = lambda directory: None,
    ) -> Engine:
        """Make the engine that runs a model: that of a plugin, or else that of PyTorch.

        Args:
            source: what `resolve` returned.
            options: as for `load_model`.
            engine: the name of the one that is wanted; None for whichever runs the model.
            given: further options, by name; an engine takes those that it knows out of it.
            before_loading: called with the directory of the model before PyTorch loads it.

        Raises:
            ModelError: it cannot be loaded, an option is wrong, or the engine that is wanted does
                not run it.
        """
        options = options or {}
        how = read_load_options(options)
        loaded: list[Path] = []

        @cache  # for the next plugin, if one that has looked at the model leaves it
        def load() -> Any:
            directory = as_directory(source, self.progress)
            with saved_model.checking(directory):
                before_loading(directory)
                loaded.append(directory)
                return self.load_model(str(directory), options)

        dtype = options.get("dtype") or options.get("torch_dtype")
        named = None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        made = self._engine(source, str(how.device), load, dtype=named, engine=engine, given=given)
        for directory in loaded:
            for each in saved_model.unused_steps(directory, made.name, self.make_optimization):
                logger.warning(
                    "%s runs without %s, which changes only how the engine %s runs a model: "
                    "the engine %s runs it",
                    *(source.spec, each.name, each.engine, made.name),
                )
        return made

    def engine_of(self, model: Any) -> Engine:
        """Make the engine that runs a model that is in memory, as it is now.

        Args:
            model: a causal language model of transformers, in evaluation mode.

        Raises:
            ModelError: no engine runs it.
        """
        source = ResolvedModel(type(model).__name__, "memory")
        return self._engine(source, str(next(model.parameters()).device), lambda: model)

    def _engine(
        self,
        source: ResolvedModel,
        device: str,
        load: Callable[[], Any],
        *,
        dtype: str | None = None,
        engine: str | None = None,
        given: dict[str, Any] | None = None,
    ) -> Engine:
        made = self.hooks.make_engine(
            source=source,
            options=EngineOptions(
                device=device,
                dtype=dtype,
                engine=engine,
                given={} if given is None else given,
                load=load,
                hooks=self.hooks,
            ),
        )
        # An engine that does not know of the option may have come in between.
        if made is None or engine not in (None, made.name):
            wanted = "" if engine is None else f' named "{engine}"'
            raise ModelError(
                f"No engine{wanted} runs {source.spec}",
                hint=None
                if engine is None
                else "PyTorch's is named torch. `truthgpt plugins` "
                "lists what is installed, and an engine leaves models that it does not know.",
            )
        return made

    def load_tokenizer(self, name: str) -> Any:
        """Load the tokenizer of a model, named as for `load_model`.

        Raises:
            ModelError: it has none.
        """
        return load_tokenizer(self._directory(name))

    def optimize_model(
        self,
        model: Any,
        optimizations: Sequence[str | Optimization[Any]],
        *,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
        measure: bool = False,
        tokenizer: Any = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        options: Mapping[str, Any] | None = None,
        undo: bool = True,
    ) -> Any:
        """Apply optimizations to a model, in the order that they declare.

        If one of them fails, the model is as it was before the first, as for `apply`.

        Nothing is measured, unless `measure` asks for it. Then the model is saved aside, with
        the weights that it has now, and worker processes do with it what `truthgpt optimize`
        does: each step is measured, and one that does not pay is rejected. `last_report`
        says what was found. That takes minutes, and memory for up to three more models on the
        same device.

        Args:
            model: changed in place where the optimization can; not if it is measured.
            optimizations: names, or optimizations with their options.
            tokens: as for `apply`; not with `measure`, where steps try the model on the text.
            max_kl: as for `apply`; with `measure` also what a step may cost (default 0.05).
            measure: keep only what pays.
            tokenizer: of the model, to measure it with; None for the one that is where the model
                was loaded from.
            output: a directory for what was measured: the result, `report.json` and
                `report.html`; None to keep the result in memory alone.
            overwrite: replace `output`, if TruthGPT wrote it.
            options: how to measure and what to keep, by the keys of a file for `--config`:
                `text`, `seed`, `rounds`, `max_kl`, `max_perplexity_ratio`, `min_gain`, `gain`,
                `max_flips`, `keep_all`.
            undo: put the model back as it was if an optimization fails; see `apply` for the
                memory that it takes. With `measure` the model is never changed.

        Returns:
            The optimized model. If it was measured, the result as it was saved, in evaluation
            mode, or `model` itself, if no step was kept.

        Raises:
            OptimizationError: one is unknown, given twice, or cannot be done.
            ModelError: it cannot be measured: there is no tokenizer, or another process would
                load something else, as of a model that was optimized already.
            OutputError: the output cannot be written, or the disk is full.
            WorkerError: the model as it was could not be measured.
            TruthGPTError: an option is wrong, or means nothing here.
        """
        made = in_order(self._made(optimizations))
        if measure:
            if tokens:
                raise TruthGPTError(
                    "tokens are not used when a model is measured",
                    hint='Name a text file instead: options={"text": FILE}.',
                )
            from truthgpt_services.optimizing import in_memory
            from truthgpt_services.optimizing.request import request_from_python

            request = request_from_python(made, options, output=output, max_kl=max_kl)
            in_memory.refuse_unknown_to_workers(made, self._plugins)
            optimized, self._last_report = in_memory.optimize_in_memory(
                model,
                tokenizer,
                request,
                self._plugins,
                overwrite=overwrite,
                load=self.load_model,
                progress=self.progress,
            )
            return optimized
        if output is not None or overwrite or options:
            raise TruthGPTError(
                "output, overwrite and options are for a model that is measured",
                hint="Add measure=True; save_model saves what was not measured.",
            )
        name = type(model).__name__
        refuse_impossible(made, SourceModel(name, name, model.config.to_dict()))
        with undone_if_it_fails(model, undo):
            for optimization in made:
                model = self.apply(
                    optimization, model, tokens=tokens, max_kl=max_kl, undo=False
                ).model
        return model

    def make_optimization(self, name: str, options: Mapping[str, Any]) -> Optimization[Any]:
        """Create an optimization by its name or an alias.

        Raises:
            OptimizationError: there is none, or its options are wrong.
        """
        return self._plugins.make_optimization(name, options)

    def apply(
        self,
        optimization: Optimization[Any],
        model: Any,
        *,
        seed: int = 0,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
        undo: bool = True,
    ) -> Applied:
        """Apply one optimization through the hook, so that plugins can take part.

        A model that an optimization failed on is as it was before, bit for bit, unless `undo`
        is False. That takes the memory of its weights once more while the optimization runs,
        and weights that it replaces are not freed until it ends.

        Args:
            optimization: with its options.
            model: changed in place where the optimization can.
            seed: for whatever it does that is random.
            tokens: of a text that it may try the model on.
            max_kl: the mean KL divergence, in nats per token, that it may cost.
            undo: put the model back as it was if this fails.

        Raises:
            OptimizationError: it cannot be done to this model; the error names the plugin whose
                mistake it is.
            ModelError: there is too little memory to keep what the model was.
        """
        device = str(next(model.parameters()).device)
        context = self._context(optimization.name, device, seed, tokens, max_kl)
        with undone_if_it_fails(model, undo):
            return self._apply(optimization, model, context)

    def save_model(
        self,
        model: Any,
        tokenizer: Any,
        directory: str | Path,
        *,
        source: str,
        steps: Sequence[SavedStep],
    ) -> None:
        """Save an optimized model into a directory that exists.

        Raises:
            OutputError: it cannot be written.
        """
        dtype = str(model.dtype).removeprefix("torch.")
        recipe = Recipe(source, dtype, tuple(map(self._with_result, steps)))
        saved_model.save(model, tokenizer, Path(directory), recipe)
        self._events.emit(ModelSaved(name=source, path=str(directory)))

    def load_saved(self, directory: str | Path, device: torch.device, *, run: bool = True) -> Any:
        """Load a model that `save_model` saved.

        Args:
            directory: where it is.
            device: where to put it.
            run: apply the steps that only change how it is run.

        Raises:
            ModelError: it is damaged.
            OptimizationError: it needs an optimization that is not installed.
        """
        return saved_model.load(
            Path(directory),
            device=device,
            make_optimization=self._plugins.make_optimization,
            make_context=lambda name: self.context(name, str(device)),
            run=run,
        )

    def context(self, name: str, device: str) -> OptimizationContext:
        """Return what an optimization may use besides the model.

        Args:
            name: of the optimization.
            device: where the model is, in torch's notation.
        """
        return self._context(name, device)

    def export(
        self,
        name: str,
        directory: str | Path,
        to: str = exporters.SAFETENSORS,
        options: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write a model from any source in a format that other programs read, dequantized.

        Args:
            name: as for `load_model`.
            directory: whole or not there afterwards.
            to: the exporter.
            options: of the exporter.
            overwrite: as for `optimize_model`.

        Raises:
            UsageError: there is no such exporter, or an option is wrong.
            ModelError: the model cannot be found or exported.
            OptimizationError: an optimization is not installed that the model was made with, or
                does not say what ordinary weights its modules have.
            OutputError: the directory cannot be written.
        """
        self._plugins.activate_all()
        factory = self._plugins.factories["exporter_factory"]
        exporter, chosen = exporters.make_exporter(to, options or {}, factory)
        with StagedDirectory(Path(directory), overwrite=overwrite) as staged:
            with open_plain(
                self._directory(name),
                name,
                self._plugins.make_optimization,
                lambda step: self.context(step, "cpu"),
                self.progress,
            ) as model:
                exporters.export(exporter, chosen, model, staged)
            staged.commit()

    def _with_result(self, step: SavedStep) -> SavedStep:
        """Return a step that says whether its result is an ordinary model."""
        with suppress(OptimizationError):  # of one that is not registered
            return replace(step, ordinary=self._plugins.optimization_class(step.name).ordinary)
        return step

    def _directory(self, name: str) -> Path:
        """Return the directory of a model, which may be one that TruthGPT saved."""
        return as_directory(self.resolve(name), self.progress)

    def _load(self, name: str, how: LoadOptions, *, run: bool = True) -> Any:
        directory = self._directory(name)
        if not is_saved(directory):
            model = load_model(directory, dtype=how.dtype, device=how.device)
        elif how.dtype is None:
            model = self.load_saved(directory, how.device, run=run)
        else:
            raise ModelError(f"{name} is an optimized model: its dtypes are part of it")
        return self._loaded(model, name, directory, how)

    def _loaded(self, model: Any, name: str, directory: Path, how: LoadOptions) -> Any:
        if how.gradient_checkpointing:
            # The name in newer releases of transformers, which warn of the older one.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        self._events.emit(ModelLoaded(name=name, path=str(directory), device=str(how.device)))
        return model

    def _apply(
        self, optimization: Optimization[Any], model: Any, context: OptimizationContext
    ) -> Applied:
        return applying.apply(self._plugins.hooks, self._events, optimization, model, context)

    def _made(self, optimizations: Sequence[str | Optimization[Any]]) -> list[Optimization[Any]]:
        made = [
            self._plugins.make_optimization(each, {}) if isinstance(each, str) else each
            for each in optimizations
        ]
        self._plugins.activate_all()
        return made

    def _context(
        self,
        name: str,
        device: str,
        seed: int = 0,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> OptimizationContext:
        return OptimizationContext(
            device=device,
            cache_dir=cache_dir("optimizations", name),
            progress=self.progress,
            seed=seed,
            tokens=tokens,
            max_kl=max_kl,
            note=partial(self._note, name),
            make_stored_matmul=partial(self._plugins.hooks.make_stored_matmul, device=device),
        )

    def _note(self, optimization: str, about: str, note: str) -> None:
        self._events.emit(OptimizationNoted(optimization=optimization, about=about, note=note))
