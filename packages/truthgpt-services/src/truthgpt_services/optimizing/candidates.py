"""Requested steps, and the variants of a model that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_core.optimization import Optimization
from truthgpt_services.measuring.compare import Contestant
from truthgpt_services.measuring.protocol import StepToBuild


@dataclass
class RequestedStep:
    """A requested step."""

    optimization: Optimization[Any]
    distribution: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The canonical name of the optimization."""
        return self.optimization.name

    def for_worker(self) -> StepToBuild:
        """Return it as a worker process is told of it."""
        return StepToBuild(self.name, self.options, self.distribution)


@dataclass
class MadeVariant:
    """A variant: how it was made, where it is saved, and the worker that holds it.

    Attributes:
        cold: the worker has not loaded it, since it was measured in an earlier run.
    """

    contestant: Contestant
    steps: list[RequestedStep] = field(default_factory=list)
    directory: Path | None = None
    build_peak: int = 0
    cold: bool = False

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.contestant.name
