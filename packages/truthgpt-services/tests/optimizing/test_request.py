"""What the user asks for, from the command line and from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from truthgpt_core.config import ConfigError
from truthgpt_core.errors import TruthGPTError, UsageError
from truthgpt_core.optimization import OptimizationError
from truthgpt_services.optimizing.request import (
    Applying,
    applied_on_command_line,
    read_request,
)

SAID = {"model": "m", "output": "o"}
HALVE = [Applying(name="halve")]


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


def test_a_file_lists_names_and_names_with_options(file):
    """All the ways to write a step in YAML, in the order written."""
    path = file(
        "model: m\noutput: build/demo\napply:\n"
        "  - quantize: {scheme: int8, skip: [lm_head]}\n"
        "  - compile\n"
        "  - idle:\n"
        "  - {name: halve, options: {note: x}}\n"
    )
    request = read_request(path, {}, [])
    assert [(each.name, each.options) for each in request.apply] == [
        ("quantize", {"scheme": "int8", "skip": ["lm_head"]}),
        ("compile", {}),
        ("idle", {}),
        ("halve", {"note": "x"}),
    ]
    assert request.output == Path("build/demo")


def test_the_command_line_goes_before_the_file(file):
    """Key by key; and steps that were typed replace all of the file's."""
    path = file("model: m\noutput: o\napply: [compile]\nrounds: 3\nmax_kl: 0.5\n")
    request = read_request(path, {"rounds": 5, "output": "p"}, HALVE)
    assert (request.model, request.output) == ("m", Path("p"))
    assert (request.plan.rounds, request.gate.max_kl) == (5, 0.5)
    assert [each.name for each in request.apply] == ["halve"]


def test_the_seed_and_the_rounds_reach_the_plan(file):
    """What is measured is what was asked for."""
    request = read_request(None, SAID | {"seed": 9, "rounds": 4}, HALVE)
    assert (request.plan.seed, request.plan.rounds) == (9, 4)


def test_what_a_step_has_to_keep_reaches_the_gate(file):
    """From the file and from the command line; flips are bounded only if that is asked for."""
    path = file("model: m\noutput: o\napply: [compile]\ngain: speed\nmax_flips: 0.02\n")
    gate = read_request(path, {"keep_all": True}, []).gate
    assert (gate.gain, gate.max_flips, gate.keep_all) == ("speed", 0.02, True)
    gate = read_request(None, SAID, HALVE).gate
    assert (gate.gain, gate.max_flips, gate.keep_all) == ("any", None, False)


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("model: m\nrounds: many\n", 2, 9, "rounds"),
        ("model: m\n  bad: [\n", 2, 6, ""),
        ("model: m\nmax_lk: 0.1\n", 2, 1, "max_kl"),
        ("apply:\n  - quantize\n  - [a, b]\n", 3, 5, "neither a name nor"),
        ("apply:\n  - {quantize: {}, compile: {}}\n", 2, 5, "neither a name nor"),
        ("apply:\n  - quantize: int8\n", 2, 5, "neither a name nor"),
        ("apply:\n  - {name: x, optoins: {}}\n", 2, 5, "neither a name nor"),
        ("apply: quantize\n", 1, 8, "apply"),
        ("model: m\ndtype: int8\n", 2, 8, "dtype"),
        ("rounds: 1\n", 1, 9, "greater than or equal to 2"),
    ],
)
def test_a_wrong_file_says_where(file, text, line, column, said):
    """The line, and the column where an editor can jump to, and what is wrong there."""
    path = file(text)
    with pytest.raises(TruthGPTError) as caught:
        read_request(path, SAID, HALVE)
    place = f"{path}:{line}:{column}" if line else f"{path}:"
    assert place in str(caught.value)
    assert said in str(caught.value)


def test_what_a_file_cannot_apply_is_told_with_its_place(file, plugins):
    """All of them at once; what is typed with --apply replaces them."""
    path = file("model: m\noutput: o\napply:\n  - qauntize\n  - halve: {no_such_option: 1}\n")
    with pytest.raises(ConfigError) as caught:
        read_request(path, {}, [], plugins)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:4:5: apply.0: ")
    assert second.startswith(f"{path}:5:5: apply.1: ")
    assert "no_such_option" in second
    assert read_request(path, {}, HALVE, plugins).apply == HALVE


def test_a_missing_file_is_named(tmp_path):
    """One line, and no traceback."""
    with pytest.raises(TruthGPTError, match=r"job\.yaml"):
        read_request(tmp_path / "job.yaml", SAID, HALVE)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"rounds": 1}, "--rounds 1: "),
        ({"max_kl": -1.0}, "--max-kl -1.0: "),
        ({"dtype": "int8"}, "--dtype int8: "),
        ({"max_perplexity_ratio": 0.0}, "--max-perplexity-ratio 0.0: "),
        ({"min_gain": -0.5}, "--min-gain -0.5: "),
        ({"max_flips": 1.5}, "--max-flips 1.5: "),
        ({"gain": "memory"}, "--gain memory: "),
    ],
)
def test_a_wrong_option_is_called_as_it_was_typed(said, expected):
    """The user finds it again on the command line."""
    with pytest.raises(UsageError) as caught:
        read_request(None, SAID | said, HALVE)
    assert str(caught.value).startswith(expected)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("said", "applied", "expected"),
    [
        ({"output": "o"}, HALVE, "No model is named"),
        ({"model": "m"}, HALVE, "No output directory is named. Add --output DIR."),
        (SAID, [], "No optimization is named"),
    ],
)
def test_what_is_missing_is_asked_for(said, applied, expected):
    """Each of the three things that have no default."""
    with pytest.raises(UsageError, match=expected):
        read_request(None, said, applied)


def test_the_command_line_names_steps_with_their_options():
    """One --apply with several, or several with one."""
    found = applied_on_command_line(["quantize:scheme=int8,skip=a,skip=b,compile", "idle"])
    assert [(each.name, each.options) for each in found] == [
        ("quantize", {"scheme": "int8", "skip": ["a", "b"]}),
        ("compile", {}),
        ("idle", {}),
    ]


def test_a_step_that_cannot_be_read_is_refused():
    """An option before any name belongs to nothing."""
    with pytest.raises(OptimizationError, match="begins with an option"):
        applied_on_command_line(["scheme=int8"])


@pytest.mark.parametrize(("written", "expected"), [("2%", 0.02), ("0.5 %", 0.005), ("0.1", 0.1)])
def test_fractions_in_a_file_may_be_percentages(file, written, expected):
    """`min_gain: 2%` means 0.02, in YAML as on the command line."""
    path = file(f"model: m\noutput: o\napply: [compile]\nmin_gain: {written}\nmax_flips: 1%\n")
    gate = read_request(path, {}, []).gate
    assert (gate.min_gain, gate.max_flips) == (pytest.approx(expected), 0.01)


@pytest.mark.parametrize(("written", "expected"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_dtypes_may_have_their_short_names(file, written, expected):
    """In a file and on the command line; the report has torch's name."""
    path = file(f"model: m\noutput: o\napply: [compile]\ndtype: {written}\n")
    assert read_request(path, {}, []).dtype == expected
    assert read_request(None, SAID | {"dtype": written}, HALVE).dtype == expected


@pytest.mark.parametrize("text", ["qauntize", "scheme=int8", "idle:no_such_option=1"])
def test_what_cannot_be_applied_is_a_usage_error(text, plugins):
    """A name, an option and a form that are wrong were typed wrong."""
    with pytest.raises(UsageError):
        applied_on_command_line([text], plugins)
