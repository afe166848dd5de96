"""Answers that are kept: which requests have one, and whether what is found can be used."""

from __future__ import annotations

import json
import logging
from typing import Any

from truthgpt_core.decoding import AnswerText, Engine, SamplingParams
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.inference.cache_key import Identity
from truthgpt_services.inference.constraints import fits
from truthgpt_services.inference.fingerprint import UnseenError
from truthgpt_services.inference.options import RequestOptions
from truthgpt_services.inference.response_cache import AnswerCache, CacheStatistics
from truthgpt_services.inference.settings import InferenceSettings

logger = logging.getLogger(__name__)

_WHOLE = ("eos_token", "length", "stop_sequence")


class Answers:
    """The response cache of one engine.

    Args:
        settings: where answers are kept, and how much of them.
        engine: gives the answers.
        plugins: whose hooks are called.
    """

    def __init__(self, settings: InferenceSettings, engine: Engine, plugins: PluginManager) -> None:
        self._cache = AnswerCache(settings.cache_dir, settings.max_cache_bytes)
        self._identity = Identity(engine, plugins)
        self._engine = engine
        self._warned = False

    @property
    def statistics(self) -> CacheStatistics:
        """How often it was asked."""
        return self._cache.statistics

    def clear(self) -> None:
        """Forget every answer, and read the weights anew."""
        self._cache.clear()
        self._identity.forget()

    def key(self, prompt: tuple[int, ...], requested: RequestOptions) -> str | None:
        """Return the key of a request; None if its answer is not kept."""
        if requested.params.logprobs is not None or requested.params.prompt_logprobs is not None:
            return None
        try:
            return self._identity.key(
                prompt, requested.params, requested.end, requested.decoder, requested.others
            )
        except (UnseenError, RecursionError) as error:
            if not self._warned:
                self._warned = True
                # Not warnings.warn: where warnings are errors, it would cost the answer.
                logger.warning("Answers are not cached: %s", error)
            return None

    def get(
        self, key: str | None, requested: RequestOptions, tokenizer: Any
    ) -> tuple[AnswerText, str, str] | None:
        """Return an answer that is kept.

        Returns:
            Its tokens, its text and why it ended; None if there is none.
        """
        if key is None:
            return None
        found: list[tuple[AnswerText, str, str]] = []

        def usable(entry: str) -> bool:
            read = _read(entry, requested.params, self._engine.vocabulary_size)
            if read is None:
                return False
            tokens, reason = read
            answer = AnswerText(tokenizer.decode, requested.params.stop)
            text = answer.extend(tokens) + answer.rest()
            found[:] = [(answer, text, reason)]
            # Where the tokenizer is another one, the stop string may not be there.
            stopped = answer.stopped_by is not None
            if not fits(requested.params, tokenizer, requested.end, tokens):
                return False
            return stopped == (reason == "stop_sequence") and len(answer.tokens) == len(tokens)

        return found[0] if self._cache.get(key, usable) is not None else None

    def put(self, key: str | None, tokens: list[int], finish_reason: str | None) -> None:
        """Keep an answer, if it is whole."""
        if key is not None and finish_reason in _WHOLE:
            self._cache.put(key, json.dumps({"tokens": tokens, "finish_reason": finish_reason}))


def _read(
    entry: str, params: SamplingParams, vocabulary: int | None
) -> tuple[list[int], str] | None:
    """Return tokens and reason of an entry; None for anything that is not one."""
    try:
        read = json.loads(entry)
        tokens, reason = read["tokens"], read["finish_reason"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(tokens, list) or reason not in _WHOLE:
        return None
    length = len(tokens)
    if length > params.max_new_tokens or (reason == "length") > (length == params.max_new_tokens):
        return None
    whole = all(
        type(token) is int and token >= 0 and (vocabulary is None or token < vocabulary)
        for token in tokens
    )
    return (tokens, reason) if whole else None
