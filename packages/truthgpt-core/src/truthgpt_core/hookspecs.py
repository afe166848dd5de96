"""The contract between TruthGPT and its plugins: every hook, its arguments and its result.

A plugin implements any of these by writing a function or method of the same name,
marked with `hookimpl`, that takes the arguments it needs:

    from truthgpt_core import hookimpl

    @hookimpl
    def register_services(registry):
        registry.register("my_service", MyService)

A hook asks; an event (`truthgpt_core.event_system`) tells. If no caller would
use the answer, it is an event.

There are three kinds. Of a `firstresult` hook, the first answer other than None is
the result. Of a plain one, the list of all answers other than None is. A `historic`
one has no result: each plugin is asked once, when it is activated.

To wrap a hook rather than implement it, mark a generator with
`hookimpl(wrapper=True)`: what stands before its `yield` runs before all
implementations, and it returns the result, changed or not. A historic hook cannot
be wrapped.

`docs/hooks.md`, in the repository, has examples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:
    from truthgpt_core.config import ConfigSections
    from truthgpt_core.decoding import Decoder, Engine, EngineOptions, KVCache
    from truthgpt_core.diagnosis import Diagnosis
    from truthgpt_core.dynamic_factory import DynamicFactory
    from truthgpt_core.evaluation import Measured, ReportSection
    from truthgpt_core.event_system import EventEmitter
    from truthgpt_core.optimization import (
        Applied,
        Model,
        Optimization,
        OptimizationContext,
        StoredMatmul,
    )
    from truthgpt_core.service_registry import ServiceRegistry
    from truthgpt_core.sources import ResolvedModel
    from truthgpt_core.training import TrainingProgress

PROJECT = "truthgpt"

hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)
_F = TypeVar("_F", bound=Callable[..., Any])


def _hookspec(*, firstresult: bool = False, historic: bool = False) -> Callable[[_F], _F]:
    marker = pluggy.HookspecMarker(PROJECT)
    return marker(firstresult=firstresult, historic=historic)


@_hookspec(historic=True)
def register_services(registry: ServiceRegistry) -> None:
    """Register services, by name, in the container that the application uses.

    Called once for each plugin, when it is activated. What is registered is
    withdrawn when the plugin is deactivated, or when its activation fails.

    Args:
        registry: what that container builds from.
    """


@_hookspec(historic=True)
def register_components(factories: Mapping[str, DynamicFactory[Any]]) -> None:
    """Register components in the named factories.

    Called once for each plugin, when it is activated. What is registered is
    withdrawn with the plugin.

    Args:
        factories: `optimizer_factory`, `scheduler_factory`, `dataset_factory`,
            `model_source_factory`, `exporter_factory`, `metric_factory`,
            `logits_processor_factory`, `training_backend_factory`, `cluster_factory` and
            `optimization_factory`. Optimizations are registered from the entry points of
            the distribution that has them; a plugin that is a bare file, with no
            distribution, registers its own.
    """


@_hookspec(historic=True)
def register_config_sections(sections: ConfigSections) -> None:
    """Add sections to the training configurations that `ConfigManager.load_config` reads.

    Called once for each plugin, when it is activated. What is registered is
    withdrawn with the plugin.

    Args:
        sections: `sections.register("my_section", MySection)` adds a section, which is
            a pydantic model; with `required=True`, every file has to have it.
    """


@_hookspec(historic=True)
def register_event_handlers(events: EventEmitter) -> None:
    """Listen to events of the application.

    Called once for each plugin, when it is activated. What listens is removed with the plugin.

    Args:
        events: `events.on(EventType.TRAINING_STEP, handler)` adds a handler.
    """


@_hookspec()
def diagnose() -> Iterable[Diagnosis] | None:
    """Look at what this plugin needs of the machine, for `truthgpt doctor`.

    Called in a process of its own, so it may import torch; it should take seconds at
    most, and change nothing. What it raises is shown as a failure of the plugin.

    Returns:
        One item for each thing that was looked at; None if there is none.
    """


@_hookspec(firstresult=True)
def apply_optimization(
    optimization: Optimization[Any], model: Model, context: OptimizationContext
) -> Applied | None:
    """Apply `optimization` to `model`.

    The core's own implementation, called last, is `optimization.apply(model, context)`.
    Implement this to apply some optimization in another way; wrap it to see or change
    what goes in and comes out of every one.

    Args:
        optimization: with its options.
        model: the model, which may be changed in place.
        context: what may be used besides.

    Returns:
        The changed model and what was changed of it, or None to leave it to others.
    """


@_hookspec()
def judge_step(
    candidate: Measured, before: Measured, baseline: Measured, gate: Mapping[str, Any]
) -> str | None:
    """Object to a step that was measured, or return None to have nothing against it.

    Called once for each step of `truthgpt optimize`, in the process that the user started, after
    the candidate was measured. One objection rejects the step. The implementation of
    truthgpt-services, which is asked first, sees that quality stays within the bounds.

    Args:
        candidate: the model with the step.
        before: the model without it.
        baseline: the model that everything started from.
        gate: the bounds that the user asked for, as `settings.gate` of a report.

    Returns:
        The objection, as a sentence for the report.
    """


@_hookspec()
def report_sections(report: Mapping[str, Any]) -> Iterable[ReportSection] | None:
    """Return sections for the report of `truthgpt optimize` or `truthgpt eval`.

    Called once, when all was measured. They are in the page, in report.json, and in what
    `--full` prints.

    Args:
        report: all that was found, as report.json has it.

    Returns:
        The sections, in the order shown; None if there is none.
    """


@_hookspec(firstresult=True)
def make_engine(source: ResolvedModel, options: EngineOptions) -> Engine | None:
    """Return an engine that runs a model, or None to leave it to others.

    Called once per model, with nothing loaded yet, by the commands, the inference service and the
    processes that measure. The implementation of truthgpt-services, called last, runs the
    model with PyTorch.

    Args:
        source: where the model is.
        options: how to make it, and what the user asked for.

    Returns:
        The engine, ready to be used.
    """


@_hookspec(firstresult=True)
def make_decoder(engine: Engine, options: dict[str, Any]) -> Decoder | None:
    """Return how tokens are decoded, or None to leave it to others.

    Called once per request, and without options for texts that are timed. The implementation of
    truthgpt-services, called last, decodes token by token, unless an option or an optimization of
    the model says otherwise.

    Args:
        engine: runs the model.
        options: generation options that are no `SamplingParams`, by name; the implementation takes
            those that it knows out of it, and answers only if there are some.

    Returns:
        The decoder.
    """


@_hookspec(firstresult=True)
def make_cache(model: Model, rows: int, positions: int) -> KVCache | None:
    """Return a key-value cache for the engine of PyTorch, or None to leave it to others.

    Called once for sequences that are decoded together. The implementation of truthgpt-services,
    called last, returns a cache of transformers, static where the model has one.

    Args:
        model: a causal language model of transformers.
        rows: how many sequences it holds.
        positions: how many tokens each has at most.

    Returns:
        The cache, empty.
    """


@_hookspec(firstresult=True)
def make_decode_step(model: Model, cache: Any) -> Callable[[Any, Any], Any] | None:
    """Return the function that computes one position of a sequence, or None to leave it to others.

    Called once per sequence, before the loop: what it returns is called once per token.

    Args:
        model: the model that generates, a causal language model of transformers.
        cache: its key-value cache, already holding the prompt.

    Returns:
        `step(token, position)` with `token` an int64 tensor of shape (batch, 1) and
        `position` an int64 tensor of shape (batch, 1), returning logits of shape
        (batch, vocabulary) in the model's dtype. It writes into `cache`.
    """


@_hookspec(firstresult=True)
def make_stored_matmul(device: str) -> StoredMatmul | None:
    """Return how rows are multiplied by integers as they are stored, or None to leave it to others.

    Called when an optimization that stores integers is applied or restored: its layers call what
    this returns where PyTorch runs the model.

    Args:
        device: where the model is, in torch's notation ("cpu", "cuda:0").

    Returns:
        A function that takes every `StoredMatrix` whose groups are multiples of 32 columns.
    """


@_hookspec(firstresult=True)
def make_training_step(model: Model) -> Callable[[Mapping[str, Any]], Any] | None:
    """Return the function that computes the loss of a batch, or None to leave it to others.

    Called once per run, before the loop: what it returns is called once per batch, under
    autocast. Wrap it to add to the loss, or to see every batch.

    Args:
        model: the model that is trained, in training mode, a causal language model of
            transformers.

    Returns:
        `step(batch)` with `batch` tensors by name, on the model's device: `input_ids`,
        `labels`, `position_ids` and, of padded batches, `attention_mask`. It returns the
        sum of the losses of all tokens that have a label, a float32 scalar that the loop
        divides by their number and differentiates.
    """


@_hookspec(firstresult=True)
def should_stop_training(progress: TrainingProgress) -> str | None:
    """Say why training shall end now, or None to go on.

    Called after each step, before it is evaluated and saved; a run that ends so ends as
    one that has done all its steps.

    Args:
        progress: how far training has come.

    Returns:
        The reason, as part of a sentence; None to go on.
    """


@_hookspec(firstresult=True)
def should_evaluate(progress: TrainingProgress) -> bool | None:
    """Say whether to evaluate now, or None to leave it to others and to the configuration.

    Called after each step.

    Args:
        progress: how far training has come.

    Returns:
        Whether to; None if that is for others to say.
    """


@_hookspec(firstresult=True)
def should_save(progress: TrainingProgress) -> bool | None:
    """Say whether to save a checkpoint now, or None to leave it to others and the configuration.

    Called after each step, and after its evaluation if there was one. At the end of a run,
    and when it is interrupted, one is saved in any case.

    Args:
        progress: how far training has come.

    Returns:
        Whether to; None if that is for others to say.
    """


class Hooks(Protocol):
    """The hooks as they are called: keyword arguments only, with the type of each result."""

    def diagnose(self) -> list[Iterable[Diagnosis]]:
        """See the hook of this name; one item for each plugin that did not return None."""

    def apply_optimization(
        self, *, optimization: Optimization[Any], model: Model, context: OptimizationContext
    ) -> Applied | None:
        """See the hook of this name."""

    def judge_step(
        self, *, candidate: Measured, before: Measured, baseline: Measured, gate: Mapping[str, Any]
    ) -> list[str]:
        """See the hook of this name; one item for each plugin that did not return None."""

    def report_sections(self, *, report: Mapping[str, Any]) -> list[Iterable[ReportSection]]:
        """See the hook of this name; one item for each plugin that did not return None."""

    def make_engine(self, *, source: ResolvedModel, options: EngineOptions) -> Engine | None:
        """See the hook of this name."""

    def make_decoder(self, *, engine: Engine, options: dict[str, Any]) -> Decoder | None:
        """See the hook of this name."""

    def make_cache(self, *, model: Model, rows: int, positions: int) -> KVCache | None:
        """See the hook of this name."""

    def make_decode_step(self, *, model: Model, cache: Any) -> Callable[[Any, Any], Any] | None:
        """See the hook of this name."""

    def make_stored_matmul(self, *, device: str) -> StoredMatmul | None:
        """See the hook of this name."""

    def make_training_step(self, *, model: Model) -> Callable[[Mapping[str, Any]], Any] | None:
        """See the hook of this name."""

    def should_stop_training(self, *, progress: TrainingProgress) -> str | None:
        """See the hook of this name."""

    def should_evaluate(self, *, progress: TrainingProgress) -> bool | None:
        """See the hook of this name."""

    def should_save(self, *, progress: TrainingProgress) -> bool | None:
        """See the hook of this name."""
