"""A text that has to have a form has it, or was ended by its length."""

from __future__ import annotations

import json
import re
import sys
import time
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from truthgpt_core.decoding import GenerationError, RefusedError, SamplingParams
from truthgpt_services import InferenceService
from truthgpt_services.inference.constraints import (
    count_subschemas,
    fits,
    make_constraint,
    schema_in_grammar,
)
from truthgpt_services.inference.sampling import Sampler

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHORT = {"max_new_tokens": 120, "temperature": 1.0}


@pytest.fixture
def speak(bare_plugins, model, tokenizer):
    """Return the text that the tiny model writes under a constraint, and why it ended."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)

    def run(**options):
        stream = service.stream("The ", SHORT | options)
        return "".join(stream), stream.finish_reason

    return run


names = st.sampled_from(["a", "name", "é", 'q"', "x y"])
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-1000, 1000),
        st.integers(0, 50),
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.just({"type": "string", "pattern": "^[a-c]{1,4}$"}),
    st.just({"type": "number", "exclusiveMinimum": -1, "maximum": 2.5}),
    st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(-99, 99), names), min_size=1, max_size=4
    ).map(lambda values: {"enum": values}),
    st.one_of(names, st.integers(-9, 9)).map(lambda value: {"const": value}),
)


def _objects(inner):
    return st.builds(
        lambda properties, required, more: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            "additionalProperties": more,
        },
        st.dictionaries(names, inner, max_size=3),
        st.sets(names),
        st.one_of(st.just(False), inner),
    )


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(
            lambda items, low, size: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + size,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
    ),
    max_leaves=5,
)


@pytest.mark.slow
@FEW
@given(schemas, st.integers(0, 99))
def test_every_text_is_json_that_the_schema_allows(speak, schema, seed):
    """Whatever the schema, the model and the random numbers are."""
    text, reason = speak(json_schema=schema, seed=seed)
    if reason != "length":
        Draft202012Validator(schema).validate(json.loads(text))


pieces = st.sampled_from(
    ["a", "[a-f]", r"\d", r"\w", "é", "(x|yz)", ".", r"\.", "[^a-z]", " ", "/", r"\s", "ü|ö"]
)
regexes = st.recursive(
    pieces,
    lambda inner: st.one_of(
        st.builds(
            "(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])
        ),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: f"(?:{'|'.join(each)})"),
    ),
    max_leaves=6,
)


@pytest.mark.slow
@FEW
@given(regexes, st.integers(0, 99))
def test_every_text_matches_the_expression(speak, regex, seed):
    """From beginning to end, by Python's own reading of it."""
    text, reason = speak(regex=regex, seed=seed, max_new_tokens=40)
    assert reason == "length" or re.fullmatch(regex, text, re.ASCII)


def test_every_text_is_a_sentence_of_the_grammar(speak):
    """Its words in their order, and JSON where a schema stands."""
    schema = schema_in_grammar({"type": "array", "items": {"enum": [1, 22]}, "maxItems": 2})
    for seed in range(5):
        text, reason = speak(grammar=f'start: ("<" {schema} ">")+ "end"', seed=seed)
        if reason != "length":
            found = re.fullmatch("(<([^>]*)>)+end", text)
            assert set(json.loads(found[2])) <= {1, 22}


def test_any_json_is_allowed_by_true(speak):
    """True is the schema that allows everything, and nothing else is."""
    for seed in range(5):
        text, reason = speak(json_schema=True, seed=seed, max_new_tokens=60)
        if reason != "length":
            json.loads(text)


def test_a_text_ends_where_nothing_can_follow(speak):
    """No end token is waited for, and none has to be likely."""
    assert speak(regex="ab{3}c") == ("abbbc", "eos_token")
    text, reason = speak(json_schema={"const": [1, "é"]}, temperature=0.0)
    assert (json.loads(text), reason) == ([1, "é"], "eos_token")


def test_a_model_cannot_write_whitespace_for_ever(tokenizer):
    """JSON may be indented, and goes on after that."""
    begin = make_constraint(SamplingParams(json_schema={"type": "array"}), tokenizer)

    def can_begin(text):
        constraint = begin()
        try:
            for token in tokenizer(text).input_ids:
                constraint.accept(token)
        except GenerationError:
            return False
        return True

    assert can_begin('[\n    {\n        "a": [1 , 2]')
    assert not can_begin("[\n\n")
    assert not can_begin("[" + " " * 5)


def test_several_texts_have_constraints_of_their_own(tokenizer, bare_plugins, model):
    """One matcher for each sequence, and one grammar for all."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    texts = service.generate(["The ", "A ", "On"], SHORT | {"regex": "[a-z]{5}!"})
    assert all(re.fullmatch("[a-z]{5}!", text) for text in texts)


def mask(constraint, vocabulary=330):
    """The tokens that can come next."""
    scores = np.zeros(vocabulary, dtype=np.float32)
    constraint.rule_out(scores)
    return set(np.flatnonzero(scores == 0.0).tolist())


@pytest.mark.parametrize("end", [frozenset(), frozenset({0}), frozenset({0, 300, 325})])
def test_end_tokens_come_only_where_the_text_is_whole(tokenizer, end):
    """The model has none, one or several, among them some that the tokenizer does not know."""
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    constraint = make_constraint(SamplingParams(regex="ab?"), tokenizer, end)()
    assert mask(constraint) == {a}
    constraint.accept(a)
    assert mask(constraint) == {b} | end
    assert not constraint.finished
    constraint.accept(b)
    assert mask(constraint) == end
    assert constraint.finished


def test_an_end_token_that_is_text_for_the_tokenizer_ends_whole_texts_alone(tokenizer):
    """Where it could come as text, it would end the text too early."""
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    constraint = make_constraint(SamplingParams(regex="a(b|c)b?"), tokenizer, frozenset({b}))()
    constraint.accept(a)
    assert mask(constraint) == set(tokenizer.convert_tokens_to_ids(["c"]))


@pytest.mark.parametrize("vocabulary", [310, 320, 400])
def test_the_logits_may_be_more_or_fewer_than_the_tokens(tokenizer, vocabulary):
    """Those beyond the tokenizer's are padding, which is ruled out."""
    constraint = make_constraint(SamplingParams(regex=r"(?s).*"), tokenizer)()
    assert max(mask(constraint, vocabulary)) == min(vocabulary, len(tokenizer)) - 1


def test_min_new_tokens_counts_less_than_the_form(tokenizer):
    """A text that is whole and cannot go on ends."""
    params = SamplingParams(regex="a", min_new_tokens=5)
    begin = make_constraint(params, tokenizer, frozenset({0}))
    sampler = Sampler(params, prompt_length=1, end=frozenset({0}), constraint=begin())
    a = sampler(torch.zeros(320), [9])
    assert sampler.finished
    assert sampler(torch.zeros(320), [9, a]) == 0


def test_tokens_that_were_not_chosen_by_the_sampler_are_followed(tokenizer):
    """A decoder may have chosen some itself; one that breaks the form is an error."""
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    params = SamplingParams(regex="abc")

    def sampler():
        return Sampler(params, prompt_length=1, constraint=make_constraint(params, tokenizer)())

    assert sampler()(torch.zeros(320), [9, a, b]) == c
    with pytest.raises(GenerationError, match="The text cannot go on as regex asks"):
        sampler()(torch.zeros(320), [9, b])


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"properties": {"a": {"not": {}}}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}, "then": {}}, "if"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
    ],
)
def test_a_keyword_that_cannot_be_followed_is_refused_by_name(tokenizer, schema, keyword):
    """Before any token, and not ignored."""
    with pytest.raises(GenerationError, match=f'has the keyword "{keyword}"'):
        make_constraint(SamplingParams(json_schema=schema), tokenizer)


def test_a_schema_cannot_change_how_it_is_read(tokenizer):
    """The key that would let it leave keywords out has no effect."""
    schema = {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    with pytest.raises(GenerationError, match='has the keyword "uniqueItems"'):
        make_constraint(SamplingParams(json_schema=schema), tokenizer)


def nested(depth):
    """A schema as deep as that, which no parser of JSON has limited."""
    schema = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


WRONG = {
    "parenthesis": {"regex": "("},
    "look-around": {"regex": "a(?=b)"},
    "back reference": {"regex": r"(a)\1"},
    "half a character": {"regex": "\ud800"},
    "no text": {"regex": r"[^\s\S]"},
    "no grammar": {"grammar": "start: ("},
    "missing rule": {"grammar": "start: answer"},
    "schema within a grammar": {"grammar": 'start: "<" %json {"contains": {}} ">"'},
    "deep expression": {"regex": "(" * 10_000 + "a" + ")" * 10_000},
    "wrong type": {"json_schema": {"type": "foo"}},
    "wrong minimum": {"json_schema": {"type": "integer", "minimum": "a"}},
    "not JSON": {"json_schema": {"const": {1, 2}}},
    "NaN": {"json_schema": {"const": float("nan")}},
    "deep schema": {"json_schema": nested(400)},
    "deeper schema": {"json_schema": nested(100_000)},
    "loop": {"json_schema": {"$ref": "#"}},
    "loop of two": {
        "json_schema": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        }
    },
    "remote": {"json_schema": {"$ref": "https://example.com/schema.json"}},
    "file": {"json_schema": {"$ref": "file:///etc/passwd"}},
    "missing": {"json_schema": {"$ref": "#/$defs/none"}},
    "impossible": {"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}},
    "wide": {
        "json_schema": {
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {f"p{i}": {"type": "string"}}},
                        {"properties": {f"p{i}": {"type": "null"}}},
                    ]
                }
                for i in range(25)
            ]
        }
    },
}


TOO_LARGE = {
    "properties": ({"properties": {f"p{i}": True for i in range(3_000)}}, "3001", "2000"),
    "alternatives": ({"anyOf": [{"const": i} for i in range(3_000)]}, "3001", "2000"),
    "levels": (nested(60), "more than 50 levels", "50"),
    "characters": ({"const": "x" * 300_000}, "300013 characters", "262144"),
}


@pytest.mark.parametrize(("schema", "size", "most"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large_a_schema_is_refused_with_both_numbers(
    tokenizer, monkeypatch, schema, size, most
):
    """Before it is compiled, which takes longest for those that are largest."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RefusedError) as refused:
        make_constraint(SamplingParams(json_schema=schema), tokenizer)
    assert size in str(refused.value)
    assert most in str(refused.value)


def test_names_and_values_are_no_subschemas(speak):
    """Properties may be called like keywords, and an enumeration may be long."""
    schema = {"enum": [f"v{i}" for i in range(5_000)]}
    names = {"properties": {"properties": {"enum": [1]}, "enum": True}}
    text, _ = speak(json_schema=schema, max_new_tokens=100)
    assert json.loads(text) in schema["enum"]
    assert (count_subschemas(schema), count_subschemas(names)) == (1, 3)


WIDE = {"properties": {f"p{i}": {"type": "string"} for i in range(900)}, "type": "object"}


def test_a_schema_that_is_too_large_for_some_text_alone_is_refused_there(speak):
    """It is compiled, and begins: nobody could know. It is the request that can be changed."""
    with pytest.raises(RefusedError, match="The text cannot go on as json_schema asks"):
        speak(json_schema=WIDE, max_new_tokens=30)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_cannot_be_followed_is_one_clear_error_before_any_token(tokenizer, wrong):
    """In one line that names the option; nothing is fetched, and nothing crashes."""
    name = next(iter(wrong))
    with pytest.raises(GenerationError, match=f"^{name} ") as refused:
        make_constraint(SamplingParams(**wrong), tokenizer)
    assert "\n" not in str(refused.value)


HOSTILE = {
    "exponential": {"regex": "(a|b)*a(a|b){25}"},
    "repeated": {"regex": "a{1000}{1000}{1000}"},
    "stars": {"regex": "(a*)*" * 500 + "b"},
    "alternatives": {"regex": "|".join(f"x{i}y" for i in range(20_000))},
    "long": {"regex": "ab" * 100_000},
    "ambiguous": {"grammar": 'start: start start | "a" | ""'},
    "rules": {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}*" for i in range(999))},
    "enum": {"json_schema": {"enum": [f"value {i}" for i in range(20_000)]}},
    "endless": {"json_schema": {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    "properties": {"json_schema": {"properties": {f"p{i}": {} for i in range(5_000)}}},
    "length": {"json_schema": {"type": "string", "minLength": 10**6}},
}


@pytest.mark.slow
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_constraint_works_or_ends_in_a_clear_error(speak, hostile):
    """In seconds, whatever was meant by it."""
    began = time.monotonic()
    try:
        _, said = speak(**hostile, max_new_tokens=30)
    except GenerationError as error:
        said = str(error)
    assert said in ("length", "eos_token") or next(iter(hostile)) in said
    assert time.monotonic() - began < 30


def test_a_tokenizer_that_cannot_be_read_is_one_clear_error():
    """Only fast ones of transformers can."""
    with pytest.raises(GenerationError, match="regex needs a fast tokenizer"):
        make_constraint(SamplingParams(regex="a"), object())


def test_a_constraint_is_compiled_once_for_the_same_tokenizer(tokenizer, monkeypatch):
    """Texts that are generated beside each other share it."""
    import llguidance

    params = SamplingParams(regex="compiled (once|twice)")
    make_constraint(params, tokenizer)
    monkeypatch.setattr(llguidance, "LLMatcher", None)
    assert mask(make_constraint(params, tokenizer)())


@pytest.mark.parametrize(("text", "expected"), [("abcd", True), ("abc", True), ("abxd", False)])
def test_an_answer_that_is_kept_is_checked_again(tokenizer, text, expected):
    """Its tokens may be those of another tokenizer, and then have another text."""
    tokens = tokenizer.convert_tokens_to_ids(list(text))
    assert fits(SamplingParams(regex="[a-f]{4}"), tokenizer, frozenset({0}), tokens) is expected


def test_a_free_text_has_no_constraint(tokenizer):
    """And takes nothing from llguidance."""
    assert make_constraint(SamplingParams(), tokenizer) is None


def test_a_schema_may_be_any_mapping(speak):
    """Not only a dictionary: what is read from a configuration may be read-only."""
    text, _ = speak(json_schema=MappingProxyType({"const": "yes"}))
    assert json.loads(text) == "yes"
