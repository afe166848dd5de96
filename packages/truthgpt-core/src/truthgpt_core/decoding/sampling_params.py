"""How tokens are chosen: the generation options that every engine knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from truthgpt_core.decoding.errors import GenerationError

DEFAULT_NEW_TOKENS = 128

_MOST_LOGPROBS = 1000
"""Likeliest tokens of one position that are returned at most."""

_MOST_TEXTS = 1024
"""Texts of one prompt at most."""

_MOST_TOKENS = 1 << 31
"""Ids of tokens are below this, in every model."""

LONGEST_CONSTRAINT = 1 << 18
"""Characters of a schema or an expression at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What a model thinks of one token.

    Logarithms are natural ones, of the model's own distribution: before penalties, temperature
    and whatever else changes it.

    Attributes:
        token: its id.
        logprob: the logarithm of its probability; None for the first token of a prompt.
        top: the likeliest tokens at its place, each with its logarithm, the likeliest first; as
            many as were asked for.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and how many.

    Logits are changed in this order: `logit_bias`, `repetition_penalty`, `frequency_penalty` and
    `presence_penalty`, `min_new_tokens`, a constraint, logits processors of plugins,
    `temperature`, `top_k`, `top_p`, `min_p`.

    Attributes:
        max_new_tokens: how many tokens are generated at most.
        min_new_tokens: how many are generated before the model may end the text.
        temperature: 0 takes the likeliest token; higher is more random.
        top_k: choose among this many likeliest tokens; 0 for all.
        top_p: choose among the likeliest tokens that together have this probability.
        min_p: choose among the tokens that are at least this times as probable as the likeliest.
        repetition_penalty: logits of tokens of prompt and answer are divided by this where they
            are positive, and multiplied with it where they are negative; 1 for none.
        presence_penalty: subtracted from the logits of tokens that are in the answer; -2 to 2.
        frequency_penalty: subtracted once for each time that a token is in the answer; -2 to 2.
        logit_bias: what is added to the logits of tokens, by id; -100 to 100.
        logprobs: return the log-probability of each token of the answer, and those of this many
            likeliest tokens beside it; None for none.
        prompt_logprobs: the same for the tokens of the prompt.
        n: how many texts are generated for a prompt. Text i is the one that `seed` + i gives alone.
        seed: of the random choice.
        stop: the text ends before the first of these strings.
        json_schema: the text is JSON that this schema allows: a mapping, or a text with one. True
            allows any JSON.
        regex: the text matches this regular expression from beginning to end.
        grammar: the text is a sentence of this grammar, in the Lark syntax of llguidance.

    Raises:
        GenerationError: one of them is out of range or of another type.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | bool | str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, (least, most, what) in _INTEGERS.items():
            self._check(name, Integral, "an integer", least, most, what)
        for name, (low, high, text) in _NUMBERS.items():
            self._check(name, Real, "a number", low, high, text)
        if self.top_p == 0.0:
            raise GenerationError("top_p is 0: it must be above 0 and at most 1")
        if self.min_new_tokens > self.max_new_tokens:
            raise GenerationError(
                f"min_new_tokens is {self.min_new_tokens}: it must be at most max_new_tokens, "
                f"which is {self.max_new_tokens}"
            )
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "json_schema", _schema(self.json_schema))
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise GenerationError(f"{name} is {text!r:.80}: it must be a text")
            if text is not None and len(text) > LONGEST_CONSTRAINT:
                raise GenerationError(
                    f"{name} has {len(text)} characters, and {LONGEST_CONSTRAINT} are the most"
                )
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise GenerationError(
                f"{' and '.join(forms)} are given together: an answer has one form"
            )

    @property
    def is_constrained(self) -> bool:
        """Whether the text has to have a form."""
        return any(getattr(self, name) is not None for name in _FORMS)

    def _check(
        self, name: str, kind: type[Any], what: str, least: float, most: float, text: str
    ) -> None:
        value: Any = getattr(self, name)
        if value is None and name in _OPTIONAL:
            return
        if isinstance(value, bool) or not isinstance(value, kind):
            raise GenerationError(f"{name} is {value!r:.80}: it must be {what}")
        # NaN is neither below nor above anything.
        if not least <= value <= most:
            raise GenerationError(f"{name} is {value}: it must {text}")


_FORMS = ("json_schema", "regex", "grammar")

_OPTIONAL = ("logprobs", "prompt_logprobs")

_INTEGERS: Mapping[str, tuple[int, float, str]] = {
    "max_new_tokens": (1, float("inf"), "be 1 or more"),
    "min_new_tokens": (0, float("inf"), "be 0 or more"),
    "top_k": (0, float("inf"), "be 0 or more"),
    "logprobs": (0, _MOST_LOGPROBS, f"be 0 to {_MOST_LOGPROBS}"),
    "prompt_logprobs": (0, _MOST_LOGPROBS, f"be 0 to {_MOST_LOGPROBS}"),
    "n": (1, _MOST_TEXTS, f"be 1 to {_MOST_TEXTS}"),
    "seed": (-(2**63), 2**64 - 1, "fit into 64 bits"),
}

_LARGEST = 1e30

_NUMBERS: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, _LARGEST, "be 0 or more, and finite"),
    "top_p": (0.0, 1.0, "be above 0 and at most 1"),
    "min_p": (0.0, 1.0, "be 0 to 1"),
    "repetition_penalty": (1e-3, 1e3, "be 0.001 to 1000"),
    "presence_penalty": (-2.0, 2.0, "be -2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "be -2 to 2"),
}


def _stop_strings(given: object) -> tuple[str, ...]:
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise GenerationError(f"stop is {given!r:.80}: it must be a text or a list of texts")
    if "" in listed:
        raise GenerationError("stop has an empty text, which ends everything")
    return tuple(listed)


def _biases(given: object) -> dict[int, float]:
    if not isinstance(given, Mapping):
        raise GenerationError(
            f"logit_bias is {given!r:.80}: it must be a mapping of token ids to numbers"
        )
    found = {}
    for key, value in given.items():
        # In JSON, keys are texts, of any length.
        token = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 20 else key
        if (
            isinstance(token, bool)
            or not isinstance(token, Integral)
            or not 0 <= int(token) < _MOST_TOKENS
        ):
            raise GenerationError(f"logit_bias has {key!r:.80}: it must be the id of a token")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise GenerationError(f"logit_bias of {key} is {value!r:.80}: it must be a number")
        # NaN is in no range.
        if not -100.0 <= float(value) <= 100.0:
            raise GenerationError(f"logit_bias of {key} is {value}: it must be -100 to 100")
        found[int(token)] = float(value)
    return found


def _schema(given: object) -> dict[str, Any] | bool | None:
    if given is None:
        return None
    if isinstance(given, str):
        if len(given) > LONGEST_CONSTRAINT:
            raise GenerationError(
                f"json_schema has {len(given)} characters, and {LONGEST_CONSTRAINT} are the most"
            )
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise GenerationError(f"json_schema is not JSON: {error}") from None
    if given is True:
        return True
    if isinstance(given, Mapping):
        return dict(given)
    raise GenerationError(
        f"json_schema is {given!r:.80}: it must be a JSON schema, as a mapping or as text"
    )


SAMPLING_OPTIONS = tuple(each.name for each in fields(SamplingParams))
"""The names of the generation options that every engine knows."""
