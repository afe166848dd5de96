"""The options of speculative decoding, what a model says of it, and loading draft models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from truthgpt_core.application import get_application
from truthgpt_core.decoding import Decoder, Engine, GenerationError, require
from truthgpt_core.errors import TruthGPTError
from truthgpt_services.inference.draft_model import refuse_other_tokens
from truthgpt_services.inference.speculation import DraftModel, PromptLookup, Speculative
from truthgpt_services.inference.speculation_choice import MOST, SpeculationChoice, choice_of
from truthgpt_services.models.sources import local_model

PROMPT_LOOKUP = "prompt_lookup_num_tokens"
DRAFT_MODEL = "assistant_model"
DRAFT_TOKENS = "num_assistant_tokens"
_OPTIONS = {PROMPT_LOOKUP, DRAFT_MODEL, DRAFT_TOKENS}
_OFF = f"{PROMPT_LOOKUP}=0"


def speculative(engine: Engine, options: dict[str, Any]) -> Decoder | None:
    """Return a speculative decoder if some options are for one, and take these out.

    The names are those of transformers. Without any, it is what an optimization has chosen for the
    model, `prompt_lookup` or `draft_model`, if the engine can do that.

    Args:
        engine: runs the model.
        options: `prompt_lookup_num_tokens`, how many tokens are looked up in the text so far, 0 for
            none; or `assistant_model`, a smaller model of the same tokens, which guesses
            `num_assistant_tokens` (default 8). The latter alone is for the draft model that was
            chosen for the model.

    Raises:
        GenerationError: an option is wrong, or the draft model has other tokens or, where it was
            chosen for the model, cannot be loaded.
        ModelError: the draft model that the options name cannot be loaded.
    """
    lookup = options.pop(PROMPT_LOOKUP, None)
    model = options.pop(DRAFT_MODEL, None)
    count = options.pop(DRAFT_TOKENS, None)
    if lookup is not None and model is not None:
        raise GenerationError(f"{PROMPT_LOOKUP} and {DRAFT_MODEL} are both given: take one")
    if lookup is not None:
        return PromptLookup(_number(PROMPT_LOOKUP, lookup)) if lookup != 0 else None
    chosen = _chosen(engine)
    if count is not None:
        count = _number(DRAFT_TOKENS, count)
    if model is not None:
        if not isinstance(model, str) or not model:
            raise GenerationError(f"{DRAFT_MODEL} is {model!r:.80}: it must name a model")
        return DraftModel(_draft_for(engine, model), 8 if count is None else count)
    if count is not None and (chosen is None or chosen.draft is None):
        raise GenerationError(f"{DRAFT_TOKENS} is given, and no {DRAFT_MODEL}")
    if chosen is None:
        return None
    most = chosen.tokens if count is None else count
    if chosen.draft is None:
        return PromptLookup(most, chosen.count)
    return DraftModel(_chosen_draft(engine, chosen.draft), most, chosen.count)


def beside_others(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a text that is generated at the same time as others.

    A decoder of its own would keep it out of their passes. So what an optimization has chosen for
    the model does not count here, unless the options are for speculative decoding.

    Args:
        engine: runs the model.
        options: of generating, by name.
    """
    given = dict(options)
    if _chosen(engine) is not None and given.keys().isdisjoint(_OPTIONS):
        given[PROMPT_LOOKUP] = 0
    return given


def _chosen(engine: Engine) -> SpeculationChoice | None:
    """Return what was chosen for the model, if the engine can do it."""
    able = all(getattr(engine.capabilities, each) for each in Speculative.requires)
    return choice_of(getattr(engine, "model", None)) if able else None


def _number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise GenerationError(f"{name} is {value!r:.80}: it must be an integer, 1 to {MOST}")
    return value


def _chosen_draft(engine: Engine, draft: Path) -> Engine:
    """Return the engine of the draft model that was chosen for a model.

    Raises:
        GenerationError: it cannot be had. How to go on is said, since no request named it.
    """
    try:
        return _draft_for(engine, draft)
    except TruthGPTError as error:
        raise GenerationError(
            f"The model guesses with the draft model {draft}, which cannot be used: "
            f"{error.message}",
            hint=f"{error.hint or ''} To go on without it, add --option {_OFF}.".strip(),
        ) from error


def _draft_for(engine: Engine, draft: str | Path) -> Engine:
    """Return the engine of a draft model that fits the model.

    Raises:
        GenerationError: it has other tokens, or its engine cannot draft.
        ModelError: it cannot be loaded.
    """
    made = _draft(draft, str(getattr(engine, "device", "cpu")))
    for capability in Speculative.requires:
        require(made, capability, "A draft model")
    refuse_other_tokens(draft, made.vocabulary_size, engine.vocabulary_size)
    return made


@lru_cache(maxsize=1)
def _draft(draft: str | Path, device: str) -> Engine:
    """Load a draft model; the last one stays, since each text of a request asks for it.

    Args:
        draft: a model as the user names it; or a path, which may come from outside, with a saved
            model, and so is taken for nothing else.
        device: where to put it.
    """
    models: Any = get_application().get_service("model_service")
    source = local_model(draft) if isinstance(draft, Path) else models.resolve(draft)
    made: Engine = models.make_engine(source, {"device": device})
    return made
