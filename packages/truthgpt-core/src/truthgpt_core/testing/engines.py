"""The contract of engines, as tests: what every subclass of `Engine` has to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from truthgpt_core.decoding import (
    SAMPLING_OPTIONS,
    Engine,
    GenerationError,
    SamplingParams,
    SequenceState,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.testing.engine_logits import LogitsTests
from truthgpt_core.testing.engine_needs import POSITIONS
from truthgpt_core.testing.engine_text import TextTests

_METHODS: Mapping[str, Sequence[Callable[[Engine, SequenceState], object]]] = {
    "logits": (
        lambda engine, state: engine.open(8),
        lambda engine, state: engine.forward([state], [[1]]),
        lambda engine, state: engine.prompt_logits([1]),
    ),
    "crop": (lambda engine, state: engine.crop(state, 0),),
    "fork": (lambda engine, state: engine.fork(state, 0, 8),),
}


class EngineContract(LogitsTests, TextTests):
    """The tests that every engine passes. Subclass it in the tests of the plugin.

    The author writes the fixture `engine`, in whatever scope, and, for an engine that gives logits,
    `other_engine`, one more of the same class. A test of something that the engine does not declare
    is skipped with "not supported: NAME"; `pytest -rs` lists these. Tests of the plugin's own may
    be methods of the subclass. A subclass that overrides a test of the contract is an error.

        from truthgpt_core.testing import EngineContract

        class TestParrot(EngineContract):
            prompt = "Once upon a time"

            @pytest.fixture
            def engine(self):
                return Parrot(...)

    Attributes:
        prompt: a text that the model continues with at least 12 tokens.
        tolerance: by how much two logits of the same token may differ. 0, the default, asks for
            the same bits, whatever sequences are computed together.
        tokens: ids to compute logits of, at least 48; by default random ones of the vocabulary.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        overridden = [
            name
            for name, test in inspect.getmembers_static(EngineContract)
            if name.startswith("test_") and inspect.getattr_static(cls, name) is not test
        ]
        if overridden:
            raise TruthGPTError(
                f"{cls.__name__} overrides tests of EngineContract: {', '.join(overridden)}",
                hint="Give your own tests other names.",
            )

    def test_what_it_declares_is_consistent(self, engine: Engine) -> None:
        """Its name, sizes, end tokens, options and defaults are valid and fit together."""
        assert engine.name
        assert engine.context_length is None or engine.context_length > 0
        if engine.vocabulary_size is not None:
            assert all(0 <= token < engine.vocabulary_size for token in engine.end_tokens)
        assert set(engine.options) <= set(SAMPLING_OPTIONS)
        assert "max_new_tokens" in engine.options
        SamplingParams(**engine.defaults)
        can = engine.capabilities
        assert can.rows is None or can.rows > 0
        if not can.logits:
            # `generate` yields nothing but text.
            assert not can.prompt_logprobs | can.crop | can.fork | can.masks
            assert not {"logprobs", "prompt_logprobs"} & set(engine.options)

    def test_its_fingerprint_stays(self, engine: Engine) -> None:
        """`fingerprint` returns None, or the same text each time, whatever was computed between."""
        assert engine.fingerprint() == engine.fingerprint()

    def test_its_description_has_known_keys(self, engine: Engine) -> None:
        """`describe` returns what reports know, of the types that they expect."""
        counts = ("parameters", "weights_bytes", "cache_bytes_per_token")
        texts = ("dtype", "kernel")
        kinds: Mapping[str, type] = {**dict.fromkeys(texts, str), **dict.fromkeys(counts, int)}
        found = engine.describe()
        assert {name: type(value) for name, value in found.items()}.items() <= kinds.items()

    @pytest.mark.parametrize("name", _METHODS)
    def test_it_refuses_what_it_does_not_support(self, engine: Engine, name: str) -> None:
        """A method that needs a capability which it lacks raises a `GenerationError`."""
        if getattr(engine.capabilities, name):
            pytest.skip("supported")
        state = engine.open(POSITIONS)[0] if engine.capabilities.logits else SequenceState()
        for call in _METHODS[name]:
            with pytest.raises(GenerationError):
                call(engine, state)
