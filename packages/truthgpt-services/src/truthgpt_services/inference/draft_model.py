"""The optimization `draft_model`: tokens are guessed by a smaller model, checked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from truthgpt_core.decoding import GenerationError
from truthgpt_core.optimization import Options, SourceModel, Verdict
from truthgpt_core.paths import UnusableFileError, expanded
from truthgpt_services.errors import ModelError
from truthgpt_services.inference.speculation_choice import (
    ChosenSpeculation,
    SpeculationChoice,
    Tokens,
)
from truthgpt_services.models.sources import local_model, vocabulary_in, vocabulary_size

_WHERE = "A draft model is a directory or a .gguf file on this machine."


def _absolute(path: Path) -> Path:
    """Return a path that names the same from any directory; what is there is not looked at."""
    try:
        return expanded(path).absolute()
    except UnusableFileError as error:
        raise ValueError(error.message) from None


class DraftModelOptions(Options):
    """Options of `draft_model`.

    Attributes:
        model: a model of the same tokens, a directory or a `.gguf` file on this machine. A saved
            model keeps its absolute path.
        tokens: in one guess at most, 1 to 64.
    """

    model: Annotated[Path, AfterValidator(_absolute)] = Field(
        description="A smaller model with the same tokens: a directory or a .gguf file on this "
        "machine. A saved model keeps its path."
    )
    tokens: Tokens = 8


class DraftModelDecoding(ChosenSpeculation[DraftModelOptions]):
    """Guess tokens as a smaller model of the same tokens has them, and check several in one pass.

    It pays where the smaller model is much faster and mostly right; see `ChosenSpeculation`. The
    smaller model is loaded beside the model, when the first text is decoded so.

    Options are those of `DraftModelOptions`: `model`, `tokens`.
    """

    name: ClassVar[str] = "draft_model"
    options_type: ClassVar[type[Options]] = DraftModelOptions

    def choice(self) -> SpeculationChoice:
        """Return which model guesses."""
        return SpeculationChoice(self.name, self.options.tokens, self.options.model)

    def notes(self) -> tuple[str, ...]:
        """Say where the smaller model counts, too."""
        more = (
            f"The draft model {self.options.model} is loaded beside the model, and not saved with "
            "it. It is part of the peak memory and of the time to load, and not of the weights."
        )
        return (*super().notes(), more)

    def check_source(self, source: SourceModel) -> Verdict:
        """Refuse a draft model that is not there, or has another number of tokens."""
        verdict = super().check_source(source)
        if not verdict.ok:
            return verdict
        draft = self.options.model
        try:
            theirs, ours = vocabulary_size(local_model(draft)), vocabulary_in(source.config)
            # What the files do not say is seen when both are loaded.
            if ours is not None and theirs is not None:
                refuse_other_tokens(draft, theirs, ours)
        except (GenerationError, ModelError) as error:
            reason = f"its draft model cannot be used: {error.message}"
            return Verdict.no(reason, error.hint or _WHERE)
        return Verdict.yes()


def refuse_other_tokens(draft: object, theirs: int | None, ours: int | None) -> None:
    """See that a draft model has as many tokens as the model.

    Args:
        draft: its name; for the message.
        theirs: how many the draft model has.
        ours: how many the model has.

    Raises:
        GenerationError: it has more or fewer.
    """
    if theirs != ours:
        raise GenerationError(
            f"The draft model {draft} has {theirs} tokens, and the model has {ours}",
            hint="Take a draft model of the same family.",
        )
