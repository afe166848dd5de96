"""What the optimizations share that choose how a model is decoded speculatively."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
    SourceModel,
    Stage,
    Verdict,
)
from truthgpt_core.optimization.options import OptionsT

MOST = 64
"""Tokens in one guess at most."""

ATTRIBUTE = "_truthgpt_speculation"
"""Where a model keeps its `SpeculationChoice`."""

NAMES = frozenset({"draft_model", "prompt_lookup"})
"""The optimizations that choose. A text has one decoder, so a model has one of them."""

Tokens = Annotated[int, Field(ge=1, le=MOST, description="Tokens in one guess at most.")]

_NOTE = (
    "How fast it decodes depends on the text: what was measured is how the model continues that "
    "of this report, always with the likeliest token, which small models come to repeat."
)
_ONE = "One of them guesses: start from the model without it."


@dataclass
class SpeculationChoice:
    """What was chosen for a model; the model keeps it, and decoders count in it.

    Attributes:
        optimization: the name of what chose it.
        tokens: in one guess at most.
        draft: the model that guesses, a directory or a `.gguf` file; None for guesses from the
            text so far.
        guessed: how many tokens were guessed, and checked by the model.
        right: how many of them the model chose, too.
    """

    optimization: str
    tokens: int
    draft: Path | None = None
    guessed: int = 0
    right: int = 0

    def count(self, guessed: int, right: int) -> None:
        """Add what became of a guess."""
        self.guessed += guessed
        self.right += right


class ChosenSpeculation(Optimization[OptionsT]):
    """Lets requests that do not say how to decode guess tokens, and check several in one pass.

    The text is the one that the model gives token by token. A measurement of it holds for texts
    like the one it was made on. A text that is decoded so takes passes of its own, beside those of
    a batch.
    """

    stage: ClassVar[Stage] = Stage.EXECUTION

    @abstractmethod
    def choice(self) -> SpeculationChoice:
        """Return what a model is to keep."""

    def notes(self) -> tuple[str, ...]:
        """Return sentences for the report."""
        return (_NOTE,)

    def check_source(self, source: SourceModel) -> Verdict:
        """Refuse a model that guesses already."""
        if present := sorted(NAMES.intersection(source.optimizations)):
            return Verdict.no(f'it has "{present[0]}" already, which guesses tokens', _ONE)
        return Verdict.yes()

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Let requests that do not say how to decode guess so many tokens.

        Raises:
            OptimizationError: the model guesses already.
        """
        if (present := choice_of(model)) is not None:
            raise OptimizationError(
                f'The model has "{present.optimization}" already, which guesses tokens', hint=_ONE
            )
        setattr(model, ATTRIBUTE, self.choice())
        covered, settings = Coverage("models", ("",)), self.options.model_dump(mode="json")
        return Applied(model, covered, settings, notes=self.notes())

    def was_used(self, model: Model) -> bool:
        """Whether the model has checked tokens that were guessed."""
        choice = choice_of(model)
        return choice is not None and choice.guessed > 0


def choice_of(model: Any) -> SpeculationChoice | None:
    """Return what was chosen for a model; None if nothing was."""
    choice = getattr(model, ATTRIBUTE, None)
    return choice if isinstance(choice, SpeculationChoice) else None
