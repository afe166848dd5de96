"""The optimization `prompt_lookup`: tokens are guessed from the text so far, checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
)

MOST = 64
"""Tokens in one guess at most."""

ATTRIBUTE = "_truthgpt_prompt_lookup"
"""Where a model keeps its `LookupChoice`."""

_NOTE = (
    "How fast it decodes depends on the text: what was measured is how the model continues that "
    "of this report, always with the likeliest token, which small models come to repeat."
)


@dataclass
class LookupChoice:
    """What was chosen for a model; the model keeps it, and decoders count in it.

    Attributes:
        tokens: in one guess at most.
        guessed: how many tokens were guessed, and checked by the model.
        right: how many of them the model chose, too.
    """

    tokens: int
    guessed: int = 0
    right: int = 0

    def count(self, guessed: int, right: int) -> None:
        """Add what became of a guess."""
        self.guessed += guessed
        self.right += right


class PromptLookupOptions(Options):
    """Options of `prompt_lookup`.

    Attributes:
        tokens: in one guess at most, 1 to 64.
    """

    tokens: int = Field(16, ge=1, le=MOST, description="Tokens in one guess at most.")


class PromptLookupDecoding(Optimization[PromptLookupOptions]):
    """Guess tokens as they followed the last three before, and check several in one pass.

    The text is the one that the model gives token by token. It pays where answers repeat the
    prompt or themselves, so a measurement of it holds for texts like the one it was made on. A text
    that is decoded so takes passes of its own, beside those of a batch.

    Options are those of `PromptLookupOptions`: `tokens`.
    """

    name: ClassVar[str] = "prompt_lookup"
    stage: ClassVar[Stage] = Stage.EXECUTION
    options_type: ClassVar[type[Options]] = PromptLookupOptions

    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Let requests that do not say how to decode guess so many tokens.

        Raises:
            OptimizationError: it was applied to the model already.
        """
        if choice_of(model) is not None:
            raise OptimizationError("The model looks tokens up in its text already")
        setattr(model, ATTRIBUTE, LookupChoice(self.options.tokens))
        covered = Coverage("models", ("",))
        return Applied(model, covered, self.options.model_dump(), notes=(_NOTE,))

    def was_used(self, model: Model) -> bool:
        """Whether the model has checked tokens that were guessed."""
        choice = choice_of(model)
        return choice is not None and choice.guessed > 0


def choice_of(model: Any) -> LookupChoice | None:
    """Return what `PromptLookupDecoding` has chosen for a model; None if it was not applied."""
    choice = getattr(model, ATTRIBUTE, None)
    return choice if isinstance(choice, LookupChoice) else None
