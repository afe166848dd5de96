"""Constraints: text that a JSON schema, a regular expression or a grammar allows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from truthgpt_core.decoding import (
    LONGEST_CONSTRAINT,
    GenerationError,
    RefusedError,
    SamplingParams,
)
from truthgpt_core.errors import in_one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

_Made = TypeVar("_Made")

_END = "<|truthgpt end of constrained text|>"

MOST_SUBSCHEMAS = 2000
"""Properties, items and alternatives of a JSON schema at most: compiling takes their square."""

_DEEPEST = 50
"""Subschemas within each other at most; each is one or two levels of JSON, which has 128."""

_LEXER_STATES = 50_000
"""States of a regular expression at most, of one or two kilobytes each."""

_GRAMMAR_SIZE = 100_000
"""Symbols of a grammar at most."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value has subschemas by name."""

_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose value is no schema."""

_WHITESPACE = r"\n[ \t]{0,40}|[ \t]{1,4}"
"""What may stand between two tokens of JSON. Without a limit, some models write nothing else."""

_UNKNOWN_KEYWORD = re.compile(r'^Unimplemented keys: \["([^"]+)"')


class Constraint:
    """Rules out, for one sequence, the tokens that its text cannot go on with.

    Args:
        matcher: of llguidance, at the beginning of the text.
        end: tokens that end a text.
        size: how many ids the tokenizer has.
        name: the option that asks for the constraint, for errors.

    Attributes:
        finished: whether the text is whole and nothing can follow it.
    """

    def __init__(self, matcher: LLMatcher, end: frozenset[int], size: int, name: str) -> None:
        self._matcher = matcher
        self._end = end
        self._size = size
        self._name = name
        self._ruled_out: NDArray[np.bool_]
        self.finished = False
        self._look()

    def rule_out(self, scores: NDArray[np.float32]) -> None:
        """Set the scores of tokens that cannot come next to -inf, in place.

        Args:
            scores: of shape (vocabulary,). What is beyond the tokenizer's ids is ruled out.
        """
        end = [token for token in self._end if token < len(scores)]
        # A token that is text for the tokenizer may be an end for the model.
        of_end = scores[end] if self._matcher.is_accepting() else -np.inf
        size = min(self._size, len(scores))
        np.copyto(scores[:size], -np.inf, where=self._ruled_out[:size])
        scores[size:] = -np.inf
        scores[end] = of_end

    def accept(self, token: int) -> None:
        """Go on with the token that comes next.

        Args:
            token: its id; one of those that end a text ends this.

        Raises:
            GenerationError: the text cannot go on with it.
            RefusedError: the constraint takes too much time or memory.
        """
        if token in self._end and self._matcher.is_accepting():
            self.finished = True
            return
        may_come = token < self._size and not self._ruled_out[token]
        if not _guarded(lambda: self._matcher.consume_token(token), self._name):
            # A decoder that chooses what cannot come is none of the request's fault.
            self._refuse_errors(RefusedError if may_come else GenerationError)
        self._look()

    def _look(self) -> None:
        """Find what can come next."""
        bits = np.frombuffer(_guarded(self._matcher.compute_bitmask, self._name), dtype=np.uint8)
        self._refuse_errors(RefusedError)
        self._ruled_out = np.unpackbits(~bits, count=self._size, bitorder="little").view(bool)
        self.finished = self._matcher.is_accepting() and bool(self._ruled_out.all())

    def _refuse_errors(self, kind: type[GenerationError]) -> None:
        if self._matcher.is_error():
            raise kind(
                f"The text cannot go on as {self._name} asks: {_error_of(self._matcher)}",
                hint="Where the constraint is too large, make it simpler.",
            )


def make_constraint(
    params: SamplingParams, tokenizer: Any, end: frozenset[int] = frozenset()
) -> Callable[[], Constraint] | None:
    """Compile the constraint of a request.

    It is followed by llguidance (Moskal et al., "LLGuidance: Making Structured Outputs Go Brrr",
    2025), which is imported here. What was compiled last for the same tokenizer is used again.

    Args:
        params: with `json_schema`, `regex` or `grammar`.
        tokenizer: a fast one of transformers.
        end: tokens that end a text. Without any, a text ends where nothing can follow it.

    Returns:
        A function that begins the constraint of one sequence; None if the text is free.

    Raises:
        RefusedError: the schema, expression or grammar has something that cannot be followed,
            admits no text or is too large.
        GenerationError: it is not JSON, or the tokenizer cannot be read.
    """
    if not params.is_constrained:
        return None
    if params.regex is not None:
        name, text = "regex", params.regex
    elif params.grammar is not None:
        name, text = "grammar", params.grammar
    else:
        name, text = "json_schema", _schema_text(params.json_schema)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise GenerationError(
            f"{name} needs a fast tokenizer, and that of the model is a {type(tokenizer).__name__}",
            hint="A model with a tokenizer.json has one.",
        )
    size = len(tokenizer)
    matcher = _compiled(tokenizer, size, name, text)
    return lambda: Constraint(matcher.deep_copy(), end, size, name)


def schema_in_grammar(schema: object) -> str:
    """Return the part of a grammar (`SamplingParams.grammar`) that a JSON schema stands for.

    Args:
        schema: a JSON schema; True allows any JSON.

    Raises:
        GenerationError: it is not JSON, or has something that cannot be followed in a grammar. What
            else it may have is refused when the grammar is compiled.
    """
    text = _schema_text(schema)
    how = {"lenient": False, "whitespace_pattern": _WHITESPACE}
    return f"%json {json.dumps(json.loads(text) | {'x-guidance': how})}"


def fits(
    params: SamplingParams, tokenizer: Any, end: frozenset[int], tokens: Sequence[int]
) -> bool:
    """Return whether an answer can have these tokens, by a tokenizer that may be another one."""
    begin = make_constraint(params, tokenizer, end)
    if begin is None:
        return True
    constraint = begin()
    try:
        for token in tokens:
            constraint.accept(token)
    except GenerationError:
        return False
    return True


@lru_cache(maxsize=64)
def _compiled(tokenizer: Any, size: int, name: str, text: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits, regex_to_lark

    read = _read_tokenizer(tokenizer, size)

    def compile_it() -> LLMatcher:
        if name == "regex":
            grammar = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'dws')}/")
        elif name == "grammar":
            grammar = LLMatcher.grammar_from_lark(text)
        else:
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"lenient": False, "whitespace_pattern": _WHITESPACE}
            )
        limits = LLParserLimits(
            max_lexer_states=_LEXER_STATES, max_grammar_size=_GRAMMAR_SIZE, verbose_errors=False
        )
        matcher = LLMatcher(read, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            # Some of what is impossible or too large shows only with the first token.
            first = matcher.deep_copy()
            first.compute_bitmask()
            return first if first.is_error() else matcher
        return matcher

    matcher = _guarded(compile_it, name)
    if matcher.is_error():
        raise _refusal(name, _error_of(matcher))
    return matcher


@lru_cache(maxsize=4)
def _read_tokenizer(tokenizer: Any, size: int) -> LLTokenizer:
    """Read a tokenizer; `size` is its number of tokens, which changes as some are added."""
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer

    def read() -> LLTokenizer:
        copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        # llguidance knows one list of end tokens for all texts, and takes one of the tokenizer's
        # if it gets none: it gets one that no model has.
        copy.add_special_tokens([_END])
        return LLTokenizer(copy.to_str(), eos_token=copy.token_to_id(_END))

    return _guarded(read, "The tokenizer")


def _guarded(make: Callable[[], _Made], name: str) -> _Made:
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - what is written in Rust panics past Exception
        raise _refusal(name, in_one_line(error)) from None


def _refusal(name: str, why: str) -> GenerationError:
    if name == "The tokenizer":
        return GenerationError(f"The tokenizer cannot be read for a constraint: {why}")
    keyword = _UNKNOWN_KEYWORD.match(why)
    if keyword is not None or why.startswith("oneOf constraints"):
        unknown = "oneOf" if keyword is None else keyword[1]
        return RefusedError(
            f'json_schema has the keyword "{unknown}", which cannot be followed here',
            hint="anyOf can." if unknown == "oneOf" else "Leave it out, and check the answer.",
        )
    if why.startswith("NoExtension"):
        why = "no text fulfills it"
    return RefusedError(f"{name} cannot be followed: {why:.300}")


def _schema_text(schema: object) -> str:
    if schema is True:
        schema = {}
    assert isinstance(schema, dict)
    if (size := count_subschemas(schema)) > MOST_SUBSCHEMAS:
        raise RefusedError(
            f"json_schema has {size} subschemas (properties, items, alternatives), and "
            f"{MOST_SUBSCHEMAS} are the most"
        )
    try:
        text = json.dumps(
            # With this key, a schema could change how it is read.
            {key: value for key, value in schema.items() if key != "x-guidance"},
            allow_nan=False,
        )
        _refuse_duplicates(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"json_schema is not JSON: {in_one_line(error)}") from None
    if len(text) > LONGEST_CONSTRAINT:
        raise RefusedError(
            f"json_schema has {len(text)} characters, and {LONGEST_CONSTRAINT} are the most"
        )
    return text


def count_subschemas(schema: object) -> int:
    """Return how many schemas there are in a JSON schema, itself among them.

    Raises:
        RefusedError: they are within each other too deeply.
    """
    count, level, depth = 0, [schema], 0
    while level:
        if (depth := depth + 1) > _DEEPEST:
            raise RefusedError(f"json_schema has more than {_DEEPEST} levels, which are the most")
        count += len(level)
        level = [inner for each in level for inner in _subschemas(each)]
    return count


def _subschemas(schema: object) -> Iterator[object]:
    """Yield the schemas right within a schema."""
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if isinstance(value, dict):
            inner: Iterable[object] = value.values() if key in _NAMED else (value,)
        else:
            inner = value if isinstance(value, list) else ()
        if key not in _VALUES:
            yield from (each for each in inner if isinstance(each, dict | bool))


def _refuse_duplicates(schema: object) -> None:
    """Refuse what an object could fulfill by naming a property twice, which then counts once."""
    if isinstance(schema, list):
        for each in schema:
            _refuse_duplicates(each)
    if not isinstance(schema, dict):
        return
    least, required = schema.get("minProperties"), schema.get("required")
    implied = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, implied):
        raise _refusal("json_schema", 'Unimplemented keys: ["minProperties"]')
    for key, value in schema.items():
        # These hold values and not schemas.
        if key not in _VALUES:
            _refuse_duplicates(value)


def _error_of(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
