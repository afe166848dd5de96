"""Requested steps, and the variants of a model that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_core.optimization import Optimization, Verdict
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

    def runs_with(self, optimization: Optimization[Any]) -> Verdict:
        """Say whether the engine that runs this variant is one that an optimization changes."""
        engine = self.contestant.opened.engine
        if optimization.engine in (None, engine):
            return Verdict.yes()
        return Verdict.no(
            f"the engine {engine} runs {self.name}, and {optimization.name} changes only how the "
            f"engine {optimization.engine} runs a model",
            f"Say --engine {optimization.engine} to measure it with that one",
        )
