"""The optimization `prompt_lookup`: tokens are guessed from the text so far, checked at once."""

from __future__ import annotations

from typing import ClassVar

from truthgpt_core.optimization import Options
from truthgpt_services.inference.speculation_choice import (
    ChosenSpeculation,
    SpeculationChoice,
    Tokens,
)


class PromptLookupOptions(Options):
    """Options of `prompt_lookup`.

    Attributes:
        tokens: in one guess at most, 1 to 64.
    """

    tokens: Tokens = 16


class PromptLookupDecoding(ChosenSpeculation[PromptLookupOptions]):
    """Guess tokens as they followed the last three before, and check several in one pass.

    It pays where answers repeat the prompt or themselves; see `ChosenSpeculation`.

    Options are those of `PromptLookupOptions`: `tokens`.
    """

    name: ClassVar[str] = "prompt_lookup"
    options_type: ClassVar[type[Options]] = PromptLookupOptions

    def choice(self) -> SpeculationChoice:
        """Return that tokens are looked up in the text so far."""
        return SpeculationChoice(self.name, self.options.tokens)
