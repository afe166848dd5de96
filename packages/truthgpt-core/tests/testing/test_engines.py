"""The contract of engines: right engines pass, and each fault fails the tests of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.testing import EngineContract

pytestmark = pytest.mark.slow

ENGINES = '''
import os
import random

import pytest

from truthgpt_core.decoding import (
    Capabilities, Engine, GenerationError, SequenceState, refuse_too_long, refuse_unknown_tokens
)
from truthgpt_core.testing import EngineContract

FAULT = os.environ["ENGINE_FAULT"]


class Tensor:
    """As much of one as the contract needs."""

    def __init__(self, rows):
        self.rows = rows
        self.shape = (len(rows), len(rows[0]))

    def __getitem__(self, places):
        return Tensor(self.rows[places])

    def __sub__(self, other):
        return Tensor([[a - b for a, b in zip(*row)] for row in zip(self.rows, other.rows)])

    def is_floating_point(self):
        return True

    def float(self):
        return self

    def abs(self):
        return Tensor([[abs(each) for each in row] for row in self.rows])

    def max(self):
        found = [each for row in self.rows for each in row]
        return float("nan") if any(each != each for each in found) else max(found)


class State(SequenceState):
    def __init__(self, engine):
        self.engine, self.text, self.closed = engine, [], False

    @property
    def length(self):
        return len(self.text)


class Books(Engine):
    """The logits after a text depend on all of it."""

    name = "books"
    capabilities = Capabilities(fork=FAULT != "cannot copy", rows=1 if FAULT == "one row" else None)
    context_length = 100
    vocabulary_size = 12 if FAULT != "vocabulary" else 13

    def open(self, positions, count=1):
        if FAULT != "context":
            refuse_too_long(positions, self.context_length)
        return [State(self) for _ in range(count)]

    def forward(self, states, tokens, *, all_logits=False):
        if len(set(states)) < len(states):
            raise GenerationError("twice")
        for state, new in zip(states, tokens):
            self.check(state, new)
        found = []
        for state, new in zip(states, tokens):
            rows = []
            for token in new:
                state.text.append(token)
                rows.append(self.logits(state.text, mixed=states[0].text))
            found.append(Tensor(rows if all_logits else rows[-1:]))
        return found

    def check(self, state, new):
        if FAULT != "foreign" and state.engine is not self:
            raise GenerationError("foreign")
        if state.closed:
            raise GenerationError("closed")
        if not new:
            raise GenerationError("empty")
        refuse_unknown_tokens(new, 12)
        refuse_too_long(state.length + len(new), self.context_length)
        if FAULT == "half" and len(new) == 1:
            state.text.append(new[0])

    def logits(self, text, mixed):
        if FAULT == "mixes":
            text = mixed
        drawn = random.Random(repr(text))
        row = [drawn.random() for _ in range(12)]
        if FAULT == "nan":
            row[3] = float("nan")
        return row

    def crop(self, state, length):
        if not 0 <= length <= state.length:
            raise GenerationError("longer")
        state.text = state.text[: length - (FAULT == "crops too much")]

    def fork(self, state, length, positions):
        if not self.capabilities.fork:
            return super().fork(state, length, positions)
        if not 0 <= length <= state.length:
            raise GenerationError("longer")
        (copy,) = self.open(positions)
        copy.text = state.text if FAULT == "shares" else state.text[:length]
        return copy

    def close(self, states):
        for state in states:
            state.closed = True


class Parrot(Engine):
    """Counts words."""

    name = "parrot"
    capabilities = Capabilities(
        logits=FAULT == "claims", prompt_logprobs=False, crop=False, masks=False
    )
    options = frozenset({"max_new_tokens", "temperature", "stop", "seed"})
    busy = False

    def generate(self, prompt, params):
        if not prompt:
            raise GenerationError("The prompt is empty")
        if Parrot.busy:
            raise GenerationError("busy")
        Parrot.busy = FAULT == "busy"
        drawn = random.Random(str(prompt) if FAULT != "random" else None)
        text = ""
        for count in range(params.max_new_tokens):
            word = f" {drawn.randrange(10**6)}"
            ends = [(text + word).find(each) for each in params.stop if each in text + word]
            if ends and FAULT != "stops late":
                yield (text + word)[len(text):min(ends)]
                break
            text += word
            yield word
            if ends:
                break
        Parrot.busy = False
        return "eos" if FAULT == "reason" else None


class TestBooks(EngineContract):
    @pytest.fixture
    def engine(self):
        return Books()

    other_engine = engine


class TestParrot(EngineContract):
    @pytest.fixture
    def engine(self):
        return Parrot()
'''

FAULTS = {
    "none": set(),
    "cannot copy": set(),
    "one row": set(),
    "vocabulary": {"test_logits_are_a_row_of_numbers_for_each_sequence"},
    "nan": {"test_logits_are_a_row_of_numbers_for_each_sequence"},
    "context": {"test_the_end_of_the_context_is_an_error"},
    "foreign": {"test_wrong_calls_are_refused_and_change_nothing"},
    "half": {"test_wrong_calls_are_refused_and_change_nothing"},
    "mixes": {
        "test_a_ragged_batch_equals_one_by_one",
        "test_sequences_may_be_given_in_any_order",
        "test_sequences_join_and_leave_at_any_step",
    },
    "crops too much": {"test_after_a_crop_other_tokens_follow"},
    "shares": {"test_a_fork_equals_reading_the_beginning_anew"},
    "claims": {"test_logits_are_a_row_of_numbers_for_each_sequence"},
    "busy": {"test_a_text_that_is_not_read_on_leaves_the_engine_free"},
    "random": {"test_greedy_text_is_the_same_again"},
    "stops late": {"test_a_stop_string_is_not_part_of_the_text"},
    "reason": {"test_it_continues_a_prompt", "test_the_number_of_tokens_is_a_limit"},
}


def outcomes(fault: str, folder: Path) -> tuple[set[str], set[str], str]:
    """Test the engines with a fault; return failures, reasons of skips, and the output."""
    file = folder / "test_it.py"
    file.write_text(ENGINES, encoding="utf-8")
    results = folder / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [*command, f"--junitxml={results}", f"--rootdir={folder}", str(file)],
        env={**os.environ, "ENGINE_FAULT": fault},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    failed, skipped = set(), set()
    for case in ElementTree.parse(results).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(case.attrib["name"].partition("[")[0])
        if (skip := case.find("skipped")) is not None:
            skipped.add(skip.attrib["message"])
    return failed, skipped, done.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_tests_of_what_it_does(fault: str, tmp_path: Path) -> None:
    """An engine with a fault fails the tests that name it, and a right one passes all."""
    failed, _, output = outcomes(fault, tmp_path)
    assert failed >= FAULTS[fault], output
    assert bool(failed) == bool(FAULTS[fault]), output


@pytest.mark.parametrize(("fault", "name"), [("cannot copy", "fork"), ("one row", "rows")])
def test_what_an_engine_does_not_declare_is_skipped_by_name(
    fault: str, name: str, tmp_path: Path
) -> None:
    """The reason names the capability, in the output of pytest too."""
    _, skipped, output = outcomes(fault, tmp_path)
    assert f"not supported: {name}" in skipped
    assert f"not supported: {name}" in output


def test_a_test_of_the_contract_cannot_be_overridden() -> None:
    """Neither one of logits nor one of text."""
    for name in ("test_a_ragged_batch_equals_one_by_one", "test_it_continues_a_prompt"):
        with pytest.raises(TruthGPTError, match=f"TestNone overrides .*: {name}"):
            type("TestNone", (EngineContract,), {name: None})
