"""A mistake in an optimization is one line that names its distribution, file and line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from truthgpt_core import (
    Applied,
    Coverage,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
    Verdict,
)
from truthgpt_core.optimization import SourceModel, refuse_impossible
from truthgpt_core.optimization import calls as calls

NAMES = frozenset({"", "lm_head", "lm_head.weight", "norm"})

Write = Callable[..., Optimization[Any]]


@pytest.fixture
def context(tmp_path: Path) -> OptimizationContext:
    return OptimizationContext("cpu", tmp_path)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Install the plugin `truthgpt-plugin-wrong` 1.2, whose optimization has such a method."""
    package = "truthgpt_plugin_wrong"
    monkeypatch.syspath_prepend(tmp_path)

    def install(*body: str, method: str = "apply", arguments: str = "model, context") -> Any:
        lines = [
            "from truthgpt_core import Applied, Coverage, Optimization, OptimizationError",
            "class Wrong(Optimization):",
            "    name = 'wrong'",
            "    def apply(self, model, context): return Applied(model)",
            f"    def {method}(self, {arguments}):",
            *(f"        {line}" for line in body),
        ]
        (tmp_path / f"{package}.py").write_text("\n".join(lines) + "\n")
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: truthgpt-plugin-wrong\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(
            f"[truthgpt.optimizations]\nwrong = {package}:Wrong\n"
        )
        importlib.invalidate_caches()
        return importlib.import_module(package).Wrong()

    yield install
    sys.modules.pop(package, None)


@pytest.mark.parametrize(
    ("raising", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise StopIteration", "StopIteration"),
        (r"raise ValueError('one\ntwo')", "ValueError: one two"),
    ],
)
def test_what_apply_raises_names_distribution_file_and_line(
    write: Write, context: OptimizationContext, tmp_path: Path, raising: str, said: str
) -> None:
    """Whatever it is, the user sees whose mistake it is and where, in one line."""
    wrong = write(raising)
    with pytest.raises(OptimizationError) as caught:
        calls.apply(wrong, object(), context)
    file = tmp_path / "truthgpt_plugin_wrong.py"
    assert caught.value.message == (
        f'"wrong" (truthgpt-plugin-wrong 1.2) failed in apply at {file}:6: {said}'
    )
    assert "TRUTHGPT_DEBUG=1" in str(caught.value.hint)


def test_the_line_is_the_plugins_own_and_not_that_of_a_library(
    write: Write, context: OptimizationContext
) -> None:
    """What the plugin called is of no use to its author without where it was called from."""
    wrong = write("import json", "json.loads('{')")
    with pytest.raises(OptimizationError, match=r"wrong\.py:7: JSONDecodeError"):
        calls.apply(wrong, object(), context)


def test_an_optimization_without_a_distribution_is_named_by_its_class(
    context: OptimizationContext,
) -> None:
    """What a program registers itself is found by module and class."""

    class Local(Optimization[Options]):
        name = "local"

        def apply(self, model: Any, context: OptimizationContext) -> Applied:
            raise LookupError("gone")

    with pytest.raises(OptimizationError, match=r'"local" \(\S*test_calls\..*Local\)'):
        calls.apply(Local(), object(), context)


def test_what_an_optimization_says_on_purpose_stays_as_it_is(
    write: Write, context: OptimizationContext
) -> None:
    """Its own message and hint are better than anything that could be put around them."""
    wrong = write("raise OptimizationError('It has no layers', hint='Take another.')")
    with pytest.raises(OptimizationError) as caught:
        calls.apply(wrong, object(), context)
    assert str(caught.value) == "It has no layers. Take another."


def test_a_real_interrupt_is_not_an_error_of_the_plugin(
    write: Write, context: OptimizationContext
) -> None:
    """Ctrl-C while an optimization runs ends the work."""
    with pytest.raises(KeyboardInterrupt):
        calls.apply(write("raise KeyboardInterrupt"), object(), context)


@pytest.mark.parametrize(
    ("body", "returned"),
    [("return None", "None"), ("return model", "an object of type list"), ("pass", "None")],
)
def test_an_apply_that_forgets_applied_is_told_so(
    write: Write, context: OptimizationContext, tmp_path: Path, body: str, returned: str
) -> None:
    """The commonest mistake of a first plugin says what was returned and what is wanted."""
    with pytest.raises(OptimizationError) as caught:
        calls.apply(write(body), [], context)
    file = tmp_path / "truthgpt_plugin_wrong.py"
    assert str(caught.value) == (
        f'"wrong" (truthgpt-plugin-wrong 1.2): apply returned {returned} instead of Applied, '
        f"at {file}:5. It has to return Applied(model), with the changed model."
    )


def test_the_other_methods_name_their_author_too(
    write: Write, context: OptimizationContext
) -> None:
    """`restore` is called when a model is loaded, long after anybody looked at the plugin."""
    wrong = write("return model.gone", method="restore")
    with pytest.raises(OptimizationError, match=r"failed in restore at .*wrong\.py:6: Attribute"):
        calls.restore(wrong, object(), context)


def test_a_check_that_fails_names_its_author(write: Write) -> None:
    """It is called before any work starts."""
    wrong = write("raise KeyError(device)", method="check", arguments="device")
    with pytest.raises(
        OptimizationError, match=r"failed in check at .*wrong\.py:6: KeyError: 'cpu'"
    ):
        calls.check(wrong, "cpu")


def test_a_check_of_the_model_that_fails_names_its_author(write: Write) -> None:
    """It is called before any work starts."""
    wrong = write("return source.shape", method="check_source", arguments="source")
    with pytest.raises(OptimizationError, match=r"failed in check_source at .*wrong\.py:6"):
        refuse_impossible([wrong], SourceModel("here"))


def test_a_restore_that_forgets_the_model_is_told_so(
    write: Write, context: OptimizationContext
) -> None:
    """A model that was changed in place has to be returned all the same."""
    wrong = write("pass", method="restore")
    with pytest.raises(OptimizationError, match="restore returned None instead of a model"):
        calls.restore(wrong, object(), context)


def test_a_check_that_forgets_the_verdict_is_told_so(write: Write) -> None:
    """True is not a verdict."""
    wrong = write("return True", method="check", arguments="device")
    with pytest.raises(OptimizationError, match="check returned an object of type bool instead"):
        calls.check(wrong, "cpu")


class Scheme(Options):
    scheme: str = "int8"


class Right(Optimization[Scheme]):
    """Gives what a test gives it."""

    name: ClassVar[str] = "right"
    options_type: ClassVar[type[Options]] = Scheme

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        raise NotImplementedError


def test_what_can_be_reported_and_restored_is_let_through() -> None:
    """Names of modules and of parameters, the model itself among them; known settings."""
    coverage = Coverage("parts", ("lm_head.weight", ""), (("norm", "it is small"),))
    calls.refuse_malformed(Right(), Applied(None, coverage, {"scheme": "int4"}), NAMES)


def test_invented_names_are_the_authors_error() -> None:
    """A thousand modules that do not exist are no coverage; a few of them are named."""
    invented = tuple(f"layer.{number}" for number in range(1000))
    with pytest.raises(OptimizationError) as caught:
        calls.refuse_malformed(Right(), Applied(None, Coverage("x", invented)), NAMES)
    assert (
        "apply says that it looked at 'layer.0', 'layer.1', 'layer.2' and 997 more, "
        "which the model does not have"
    ) in caught.value.message
    assert "This is an error of its author" in str(caught.value.hint)


def test_an_invented_name_among_those_left_alone_is_an_error_too() -> None:
    """Skipping what does not exist is as wrong as covering it."""
    coverage = Coverage("x", ("lm_head",), (("gone", "it is not there"),))
    with pytest.raises(OptimizationError, match="looked at 'gone', which the model does not have"):
        calls.refuse_malformed(Right(), Applied(None, coverage), NAMES)


def test_a_name_counts_once() -> None:
    """One layer named a thousand times is not a thousand layers."""
    for coverage in (Coverage("x", ("norm",) * 9), Coverage("x", ("norm",), (("norm", "small"),))):
        with pytest.raises(OptimizationError, match="names 'norm' more than once"):
            calls.refuse_malformed(Right(), Applied(None, coverage), NAMES)


@pytest.mark.parametrize("skipped", [("norm",), (("norm",),), None, 3])
def test_a_coverage_that_cannot_be_read_is_the_authors_error(skipped: Any) -> None:
    """Names without reasons are told of, and not a traceback out of our code."""
    with pytest.raises(OptimizationError, match="returned a Coverage that cannot be read"):
        calls.refuse_malformed(Right(), Applied(None, Coverage("x", (), skipped)), NAMES)


@pytest.mark.parametrize(
    "settings", [{"scheme": object()}, {"shceme": "int8"}, {"scheme": 4}, None, {1: 2}]
)
def test_settings_that_cannot_be_restored_are_found_at_once(settings: Any) -> None:
    """And not when the saved model is loaded, on another machine."""
    with pytest.raises(OptimizationError, match="settings that it could not be restored with"):
        calls.refuse_malformed(Right(), Applied(None, settings=settings), NAMES)


def test_how_a_model_is_run_has_to_be_proven() -> None:
    """A step of execution was not used unless it says so; others show in the model."""

    class Runs(Right):
        stage = Stage.EXECUTION

    assert not calls.was_used(Runs(), object())
    assert calls.was_used(Right(), object())


def test_a_proof_that_fails_names_its_author(write: Write) -> None:
    """`was_used` is asked after minutes of measuring."""
    wrong = write("return model.calls > 0", method="was_used", arguments="model")
    with pytest.raises(OptimizationError, match=r"failed in was_used at .*wrong\.py:6"):
        calls.was_used(wrong, object())


def test_verdicts_pass() -> None:
    """A check that answers is passed on."""
    assert calls.check(Right(), "cpu") == Verdict.yes()
