"""Training backends: which one a run has, and what each process has of a batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from truthgpt_core.errors import meant_or_known
from truthgpt_core.plugin_system import PluginManager, catalogue
from truthgpt_core.training import TrainingBackend
from truthgpt_services.training.batches import IGNORED, Batch
from truthgpt_services.training.config_sections import TrainingSection
from truthgpt_services.training.errors import TrainingError


def choose_backend(
    settings: TrainingSection, plugins: PluginManager, environment: Mapping[str, str] = os.environ
) -> TrainingBackend:
    """Make the backend of a run.

    Args:
        settings: with its name and options.
        plugins: where it comes from.
        environment: where launchers leave how many processes they started.

    Raises:
        FactoryError: its options are wrong.
        TrainingError: there is none of that name, or this is one of several processes, and the
            backend is for one.
    """
    factory = plugins.factories["training_backend_factory"]
    name, options = settings.backend, settings.backend_options
    if name == "auto":
        launched = [
            each for each in factory.names() if factory.get_class(each).launched(environment)
        ]
        # The options are for those who launch.
        name, options = (launched[0], options) if launched else (TrainingBackend.name, {})
    if name not in factory.names():
        raise _not_there(name, list(factory.names()))
    made: TrainingBackend = factory.create_from_config({"name": name, "parameters": options})
    started = environment.get("WORLD_SIZE", "1")
    if made.processes == 1 and started.isdecimal() and int(started) > 1:
        raise TrainingError(
            f"This is one of {started} processes, and the training backend {name} trains in one: "
            "each would train the same",
            hint="pip install truthgpt-plugin-accelerate, and leave training.backend at auto.",
        )
    return made


def _not_there(name: str, available: Sequence[str]) -> TrainingError:
    have = f"Available: {', '.join(available)}."
    missing = catalogue.distribution_of("training_backends", name)
    if missing is not None:
        return TrainingError(
            f'The training backend "{name}" is not installed',
            hint=f"It comes with {missing}: pip install {missing}. {have}",
        )
    candidates = [*available, *catalogue.known("training_backends")]
    return TrainingError(
        f'There is no training backend named "{name}"', hint=meant_or_known(name, candidates, have)
    )


def share_of(batch: Batch, backend: TrainingBackend) -> Batch:
    """Return the rows of a batch that this process computes.

    Every process computes some, since their passes wait for one another: one for which no row
    is left gets the first one, with nothing to predict in it.

    Args:
        batch: the same in all processes.
        backend: of the run.
    """
    if backend.processes == 1:
        return batch
    if backend.rank < len(batch["input_ids"]):
        return {name: each[backend.rank :: backend.processes] for name, each in batch.items()}
    row = {name: each[:1] for name, each in batch.items()}
    return {**row, "labels": torch.full_like(row["labels"], IGNORED)}
