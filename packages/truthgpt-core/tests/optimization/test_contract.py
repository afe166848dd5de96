"""What the user types after `--apply`, in which order it is done, and what options may be."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from truthgpt_core import (
    Applied,
    Coverage,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
    TruthGPTError,
    Verdict,
)
from truthgpt_core.optimization import (
    SourceModel,
    in_order,
    no_progress,
    parse_applied,
    refuse_impossible,
)

# Reading what was typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([], []),
        (["quantize"], [("quantize", {})]),
        (["quantize,compile"], [("quantize", {}), ("compile", {})]),
        (["quantize", "compile"], [("quantize", {}), ("compile", {})]),
        ([" quantize , compile "], [("quantize", {}), ("compile", {})]),
        (["quantize:scheme=int8"], [("quantize", {"scheme": "int8"})]),
        (
            ["quantize:scheme=int8,skip=lm_head,compile"],
            [("quantize", {"scheme": "int8", "skip": "lm_head"}), ("compile", {})],
        ),
        (
            ["a:x=1,b:y=2,z=3", "c:x=4"],
            [("a", {"x": "1"}), ("b", {"y": "2", "z": "3"}), ("c", {"x": "4"})],
        ),
        (["q:skip=a,skip=b,skip=c"], [("q", {"skip": ["a", "b", "c"]})]),
        (["q: scheme =int8"], [("q", {"scheme": "int8"})]),
        (["q:skip="], [("q", {"skip": ""})]),
        (["q:where=a=b"], [("q", {"where": "a=b"})]),
        (["q:file=C:/x,other=d:e"], [("q", {"file": "C:/x", "other": "d:e"})]),
    ],
)
def test_what_is_typed_after_apply(typed: list[str], meant: list[Any]) -> None:
    """Names are separated by commas, options follow a colon, and a repeated option is a list."""
    assert parse_applied(typed) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", 'A name is missing in ""'),
        ("quantize,,compile", 'A name is missing in "quantize,,compile"'),
        ("quantize,", 'A name is missing in "quantize,"'),
        (":scheme=int8", 'A name is missing in ":scheme=int8"'),
        ("quantize:=int8", 'A name is missing in "quantize:=int8"'),
        ("scheme=int8", '"scheme=int8" begins with an option and not with the name'),
        ("quantize:int8", '"int8" in "quantize:int8" is not an option'),
        ("quantize:", '"" in "quantize:" is not an option'),
    ],
)
def test_what_cannot_be_read_says_how_to_write_it(typed: str, said: str) -> None:
    """A part that cannot be read is an error that quotes it and shows the form."""
    with pytest.raises(OptimizationError) as raised:
        parse_applied(["fine", typed])
    assert raised.value.message.startswith(said)
    assert raised.value.hint is not None
    assert "OPTION=VALUE" in raised.value.hint


def test_options_do_not_go_from_one_argument_to_the_next() -> None:
    """A second `--apply` begins anew: an option in front is an error there too."""
    with pytest.raises(OptimizationError, match='"skip=x" begins with an option'):
        parse_applied(["quantize:scheme=int8", "skip=x"])


WORDS = st.text(st.characters(categories=["L", "N"], include_characters="_-./"), min_size=1)
VALUES = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), max_size=8)
ASKED = st.lists(st.tuples(WORDS, st.lists(st.tuples(WORDS, VALUES), max_size=4)), max_size=4)


@given(ASKED, st.booleans())
def test_anything_written_is_read_back(asked: list[Any], together: bool) -> None:
    """Written as documented, in one argument or several, names and options are read back."""
    texts = [
        name + (":" + ",".join(f"{key}={value}" for key, value in options) if options else "")
        for name, options in asked
    ]
    expected = []
    for name, options in asked:
        kept: dict[str, Any] = {}
        for key in dict.fromkeys(key for key, _ in options):
            values = [value for each, value in options if each == key]
            kept[key] = values if len(values) > 1 else values[0]
        expected.append((name, kept))
    assert parse_applied([",".join(texts)] if together and texts else texts) == expected


@given(st.lists(st.text(alphabet="ab=:, ", max_size=12), max_size=3))
def test_any_text_is_read_or_refused(texts: list[str]) -> None:
    """Whatever is typed, it is read or is an error of ours; a name is never empty."""
    try:
        found = parse_applied(texts)
    except OptimizationError:
        return
    assert len(found) >= len(texts)
    for name, options in found:
        assert name == name.strip() != ""
        assert all(key.strip() for key in options)


# Order


def make(
    name: str,
    stage: Stage = Stage.WEIGHTS,
    after: Iterable[str] = (),
    before: Iterable[str] = (),
) -> Optimization[Any]:
    def apply(self: Any, model: Any, context: OptimizationContext) -> Applied:
        return Applied(model)

    attributes = {
        "name": name,
        "stage": stage,
        "after": frozenset(after),
        "before": frozenset(before),
        "apply": apply,
    }
    return type(name, (Optimization,), attributes)()


def names(optimizations: list[Optimization[Any]]) -> list[str]:
    return [each.name for each in optimizations]


def test_what_changes_weights_comes_before_how_they_are_run() -> None:
    """Whatever was typed first, quantizing goes before compiling."""
    compiling = make("torch_compile", Stage.EXECUTION)
    assert names(in_order([compiling, make("quantize")])) == ["quantize", "torch_compile"]


def test_what_changes_structure_comes_before_weights() -> None:
    """Whatever was typed first, layers are dropped before those that stay are quantized."""
    dropping = make("zap", Stage.STRUCTURE)
    assert names(in_order([make("quantize"), dropping])) == ["zap", "quantize"]


def test_after_is_kept_within_a_stage() -> None:
    """An optimization that names another comes after it."""
    ordered = in_order([make("quantize", after=("smooth",)), make("smooth")])
    assert names(ordered) == ["smooth", "quantize"]


def test_before_is_kept_within_a_stage() -> None:
    """An optimization that names another comes before it, which need not know of the first."""
    ordered = in_order([make("quantize"), make("smooth", before=("quantize",))])
    assert names(ordered) == ["smooth", "quantize"]


def test_after_an_optimization_that_is_not_applied_means_nothing() -> None:
    """Naming what is not applied changes nothing."""
    made = [make("quantize", after=("smooth",), before=("none",)), make("other")]
    assert names(in_order(made)) == ["other", "quantize"]


def test_the_same_optimization_twice_is_refused() -> None:
    """Applying one optimization twice is an error that names it."""
    with pytest.raises(OptimizationError, match='"quantize" is applied twice'):
        in_order([make("quantize"), make("other"), make("quantize")])


def test_a_circle_is_named_in_full() -> None:
    """Optimizations that want to come after each other are named, each followed by its need."""
    circle = [make("a", after=("b",)), make("b"), make("c", before=("b",), after=("a",))]
    with pytest.raises(OptimizationError) as raised:
        in_order([make("free"), *circle])
    said, _, path = raised.value.message.partition(": ")
    assert said == "Optimizations want to come after each other"
    steps = path.split(" -> ")
    assert steps[0] == steps[-1]
    assert dict(pairwise(steps)) == {"a": "b", "b": "c", "c": "a"}


def test_a_stage_against_after_is_a_circle() -> None:
    """Something that changes weights cannot come after something that runs them."""
    with pytest.raises(OptimizationError, match=r"a -> b|b -> a"):
        in_order([make("a", Stage.WEIGHTS, ("b",)), make("b", Stage.EXECUTION)])


LETTERS = "abcdef"
SOME = st.sets(st.sampled_from(LETTERS), max_size=1)
DECLARED = st.fixed_dictionaries(
    {letter: st.tuples(st.sampled_from(Stage), SOME, SOME) for letter in LETTERS}
)


def order_or_error(typed: list[str], declared: Any) -> list[str] | str:
    try:
        return names(in_order([make(name, *declared[name]) for name in typed]))
    except OptimizationError as error:
        return error.message


@given(st.permutations(LETTERS), DECLARED, st.integers(0, len(LETTERS)))
def test_the_order_is_the_declared_one(typed: list[str], declared: Any, count: int) -> None:
    """Every order keeps stages, `after` and `before`, loses nothing, and is else by name."""
    typed = typed[:count]

    def before(one: str, other: str) -> bool:
        return (
            declared[one][0] < declared[other][0]
            or one in declared[other][1]
            or other in declared[one][2]
        )

    ordered = order_or_error(typed, declared)
    if isinstance(ordered, str):
        path = ordered.partition(": ")[2].split(" -> ")
        assert all(before(earlier, later) for later, earlier in pairwise(path)), (
            "what is called a circle is none"
        )
        assert path[0] == path[-1]
        return
    assert sorted(ordered) == sorted(typed)
    left = sorted(typed)
    for name in ordered:
        ready = [each for each in left if not any(before(other, each) for other in left)]
        assert name == ready[0], "a name that sorts earlier could have come first"
        left.remove(name)


@given(st.permutations(LETTERS), st.permutations(LETTERS), DECLARED)
def test_the_order_does_not_depend_on_what_was_typed(one: Any, other: Any, declared: Any) -> None:
    """However optimizations are typed, the order is the same, or the same error."""
    assert order_or_error(one, declared) == order_or_error(other, declared)


# Options


class SchemeOptions(Options):
    scheme: Literal["int8", "int4"] = "int8"
    skip: tuple[str, ...] = ()
    group: int = Field(64, ge=1)


class Scheme(Optimization[SchemeOptions]):
    name = "scheme_it"
    options_type = SchemeOptions

    def apply(self, model, context):
        return Applied(model)


class Plain(Optimization[Options]):
    name = "plain"

    def apply(self, model, context):
        return Applied(model)


def test_options_are_typed_and_have_defaults() -> None:
    """Options arrive as the type that their class declares; what is not given is its default."""
    options = Scheme(scheme="int4", group="32").options
    assert (options.scheme, options.group, options.skip) == ("int4", 32, ())


def test_all_wrong_options_are_told_at_once() -> None:
    """One error names every wrong option, with what was given and what was meant."""
    with pytest.raises(OptimizationError) as raised:
        Scheme(shceme="int8", group=0, scheme="int3")
    said = str(raised.value)
    assert said.startswith('"scheme_it": ')
    assert "option \"scheme\": Input should be 'int8' or 'int4', not 'int3'" in said
    assert 'option "group": Input should be greater than or equal to 1, not 0' in said
    assert 'there is no option "shceme" (Did you mean "scheme"?)' in said
    assert said.count("; ") == 2


def test_an_option_like_no_other_lists_what_there_is() -> None:
    """An unknown option that resembles none is answered with all there are."""
    with pytest.raises(OptimizationError, match=r'"xyzzy" \(it has scheme, skip, group\)'):
        Scheme(xyzzy=1)


class PlaceOptions(Options):
    path: str


class Place(Plain):
    options_type = PlaceOptions


def test_an_option_that_is_missing_is_named() -> None:
    """What has no default has to be given, and the error says no more than that."""
    with pytest.raises(OptimizationError) as raised:
        Place()
    assert raised.value.message == '"plain": option "path" must be given'


def test_an_optimization_without_options_says_so() -> None:
    """An option for an optimization that has none is refused."""
    with pytest.raises(OptimizationError, match=r'no option "scheme" \(it has none\)'):
        Plain(scheme="int8")


def test_options_cannot_be_changed_later() -> None:
    """Options are what was asked for: they are frozen."""
    options = Scheme().options
    with pytest.raises(ValueError, match="frozen"):
        options.group = 1


# What an optimization says


def test_an_optimization_can_work_anywhere_unless_it_says_otherwise() -> None:
    """`check` says yes by default."""
    assert Plain().check("cpu") == Verdict.yes() == Verdict(ok=True, reason="", fix="")


def test_a_verdict_against_has_a_reason() -> None:
    """A no says why, and may say what to do about it."""
    assert Verdict.no("no compiler", "apt install g++") == Verdict(
        ok=False, reason="no compiler", fix="apt install g++"
    )
    assert Verdict.no("no compiler").fix == ""


def test_coverage_counts_what_was_looked_at() -> None:
    """The total is what was changed and what was left alone."""
    coverage = Coverage("linear layers", ("a", "b"), (("lm_head", "it is skipped"),))
    assert coverage.total == 3
    assert Coverage().total == 0


def test_an_optimization_that_cannot_restore_says_so(tmp_path: Path) -> None:
    """Loading a saved model needs `restore`, and without it there is an error of ours."""
    with pytest.raises(TruthGPTError, match='"plain" does not say how to restore a saved model'):
        Plain().restore(object(), OptimizationContext("cpu", tmp_path))


def test_what_apply_gives_has_its_own_settings() -> None:
    """Two results share no settings."""
    one, other = Applied("model"), Applied("model")
    one.settings["scheme"] = "int8"
    assert other.settings == {}


def test_progress_may_be_ignored(tmp_path: Path) -> None:
    """Without anybody who wants to know, telling of progress does nothing."""
    context = OptimizationContext("cpu", tmp_path)
    assert context.progress is no_progress
    assert context.progress("quantizing", 1, 0) is None  # type: ignore[func-returns-value]
    assert context.seed == 0


# What can be applied to a model


class OnlyLlamas(Optimization[Options]):
    """Takes Llamas, and no others."""

    name = "only_llamas"

    def check_source(self, source: SourceModel) -> Verdict:
        """Look at the architecture."""
        if source.architecture == "LlamaForCausalLM":
            return Verdict.yes()
        return Verdict.no(f"{source.architecture} is no Llama", "Take a Llama.")

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        """Do nothing."""
        return Applied(model)


class Anything(OnlyLlamas):
    """Says nothing of models."""

    name = "anything"
    check_source = Optimization.check_source


def test_a_model_that_an_optimization_cannot_take_is_refused_by_name() -> None:
    """The error has the optimization, the model as typed, the reason and what to do."""
    source = SourceModel("some/model", "GPT2LMHeadModel")
    with pytest.raises(OptimizationError) as caught:
        refuse_impossible([Anything(), OnlyLlamas()], source)
    assert caught.value.message == (
        '"only_llamas" cannot be applied to some/model: GPT2LMHeadModel is no Llama'
    )
    assert caught.value.hint == "Take a Llama."


def test_an_optimization_that_a_model_has_is_refused_unasked() -> None:
    """No optimization has to think of being applied twice."""
    source = SourceModel("dir", optimizations=("other", "anything"))
    with pytest.raises(OptimizationError, match=r'"anything" cannot .* has it already'):
        refuse_impossible([Anything()], source)


def test_what_can_be_applied_is_let_through() -> None:
    """A model with other optimizations, of an architecture that is wanted."""
    source = SourceModel("dir", "LlamaForCausalLM", {}, ("other",))
    refuse_impossible([OnlyLlamas(), Anything()], source)


def test_filling_in_does_nothing_where_all_is_in_memory(tmp_path: Path) -> None:
    """An optimization that works layer by layer need not know where weights come from."""
    assert not Anything.layerwise
    OptimizationContext("cpu", tmp_path).fill("any module")
