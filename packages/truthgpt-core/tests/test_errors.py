"""What every error of ours looks like to the person who gets it."""

from __future__ import annotations

import pytest

from truthgpt_core import TruthGPTError
from truthgpt_core.errors import did_you_mean, in_one_line


def test_an_error_shows_its_hint_after_what_is_wrong() -> None:
    """The text of an error is what is wrong, a full stop, and how to put it right."""
    error = TruthGPTError("There is no model", hint="Name one.")
    assert str(error) == "There is no model. Name one."
    assert (error.message, error.hint) == ("There is no model", "Name one.")


def test_an_error_without_hint_is_its_message() -> None:
    """Without a hint, nothing is added to the message."""
    assert str(TruthGPTError("There is no model")) == "There is no model"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("quantise", "quantize"), ("QUANTIZE", "quantize"), ("torchcompile", "torch_compile")],
)
def test_the_closest_name_is_suggested(typed: str, meant: str) -> None:
    """A name that is nearly right is answered with the one that was meant, in its own case."""
    assert did_you_mean(typed, ["torch_compile", "quantize", "prune"]) == f'Did you mean "{meant}"?'


def test_a_suggestion_keeps_the_case_of_the_name() -> None:
    """Case is ignored in looking, and kept in what is suggested."""
    assert did_you_mean("adamw", ["AdamW"]) == 'Did you mean "AdamW"?'


@pytest.mark.parametrize("candidates", [[], ["quantize", "prune"]])
def test_nothing_is_suggested_if_nothing_is_close(candidates: list[str]) -> None:
    """A name that is like no other gets no suggestion."""
    assert did_you_mean("xyzzy", candidates) is None


def test_an_exception_is_told_in_one_line() -> None:
    """Line breaks in what an exception says do not break the line that tells of it."""
    assert in_one_line(ValueError("first\n  second")) == "ValueError: first second"
    assert in_one_line(SystemExit()) == "SystemExit"
