"""The options of speculative decoding, what a model says of it, and loading draft models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from truthgpt_core.application import get_application
from truthgpt_core.decoding import Decoder, Engine, GenerationError, require
from truthgpt_services.inference.prompt_lookup import MOST, choice_of
from truthgpt_services.inference.speculation import DraftModel, PromptLookup

PROMPT_LOOKUP = "prompt_lookup_num_tokens"
DRAFT_MODEL = "assistant_model"
DRAFT_TOKENS = "num_assistant_tokens"
_OPTIONS = {PROMPT_LOOKUP, DRAFT_MODEL, DRAFT_TOKENS}


def speculative(engine: Engine, options: dict[str, Any]) -> Decoder | None:
    """Return a speculative decoder if some options are for one, and take these out.

    The names are those of transformers. Without any, it is what the optimization `prompt_lookup`
    has chosen for the model, if the engine can do that.

    Args:
        engine: runs the model.
        options: `prompt_lookup_num_tokens`, how many tokens are looked up in the text so far, 0 for
            none; or `assistant_model`, a smaller model of the same tokens, which guesses
            `num_assistant_tokens` (default 8).

    Raises:
        GenerationError: an option is wrong, or the draft model has other tokens.
    """
    lookup = options.pop(PROMPT_LOOKUP, None)
    model = options.pop(DRAFT_MODEL, None)
    count = options.pop(DRAFT_TOKENS, None)
    if lookup is not None and model is not None:
        raise GenerationError(f"{PROMPT_LOOKUP} and {DRAFT_MODEL} are both given: take one")
    if lookup is not None:
        return PromptLookup(_number(PROMPT_LOOKUP, lookup)) if lookup != 0 else None
    if model is None:
        if count is not None:
            raise GenerationError(f"{DRAFT_TOKENS} is given, and no {DRAFT_MODEL}")
        return _chosen(engine)
    if not isinstance(model, str) or not model:
        raise GenerationError(f"{DRAFT_MODEL} is {model!r:.80}: it must name a model")
    draft = _draft(model, str(getattr(engine, "device", "cpu")))
    for capability in ("logits", "crop"):
        require(draft, capability, "A draft model")
    ours, theirs = engine.vocabulary_size, draft.vocabulary_size
    if ours != theirs:
        raise GenerationError(
            f"The draft model {model} has {theirs} tokens, and the model has {ours}",
            hint="Take a draft model of the same family.",
        )
    return DraftModel(draft, _number(DRAFT_TOKENS, 8 if count is None else count))


def beside_others(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a text that is generated at the same time as others.

    A decoder of its own would keep it out of their passes. So what the optimization `prompt_lookup`
    has chosen for the model does not count here, unless the options are for speculative decoding.

    Args:
        engine: runs the model.
        options: of generating, by name.
    """
    given = dict(options)
    if _chosen(engine) is not None and given.keys().isdisjoint(_OPTIONS):
        given[PROMPT_LOOKUP] = 0
    return given


def _chosen(engine: Engine) -> Decoder | None:
    choice = choice_of(getattr(engine, "model", None))
    if choice is None:
        return None
    able = all(getattr(engine.capabilities, each) for each in PromptLookup.requires)
    return PromptLookup(choice.tokens, choice.count) if able else None


def _number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise GenerationError(f"{name} is {value!r:.80}: it must be an integer, 1 to {MOST}")
    return value


@lru_cache(maxsize=1)
def _draft(spec: str, device: str) -> Engine:
    """Load a draft model; the last one stays, since each text of a request asks for it."""
    models: Any = get_application().get_service("model_service")
    made: Engine = models.make_engine(models.resolve(spec), {"device": device})
    return made
