"""A model to generate with: its engine, and the tokenizer that belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_services.models.loading import pick_device

if TYPE_CHECKING:
    from truthgpt_core.decoding import Engine
    from truthgpt_core.sources import ResolvedModel
    from truthgpt_services.services.model_service import ModelService


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model to generate with.

    Attributes:
        engine: runs it.
        tokenizer: the one that is stored with the model, or else the engine's; None where the
            engine keeps it to itself.
        directory: where the model is stored; None for an engine that loads it in its own way.
    """

    engine: Engine
    tokenizer: Any
    directory: Path | None


def open_model(
    models: ModelService,
    model: str | ResolvedModel,
    *,
    device: str = "auto",
    engine: str | None = None,
    given: dict[str, Any] | None = None,
    look: Callable[[Path, Any], None] = lambda directory, tokenizer: None,
) -> OpenedModel:
    """Load a model to generate with.

    Args:
        models: loads it.
        model: as the user names it, or as `ModelService.resolve` returns it.
        device: in torch's notation, or "auto".
        engine: the name of the one that is wanted; None for any.
        given: options by name; the engine takes those that it knows out of it.
        look: called with directory and tokenizer before the weights are read, which may take long.

    Raises:
        ModelError: it cannot be loaded, or the engine that is wanted does not run it.
    """
    pick_device(device)
    stored: list[tuple[Path, Any]] = []

    def before_loading(directory: Path) -> None:
        stored.append((directory, models.load_tokenizer(str(directory))))
        look(*stored[0])

    made = models.make_engine(
        models.resolve(model) if isinstance(model, str) else model,
        {"device": device},
        engine=engine,
        given=given,
        before_loading=before_loading,
    )
    directory, tokenizer = stored[0] if stored else (None, made.tokenizer)
    return OpenedModel(made, tokenizer, directory)
