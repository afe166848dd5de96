"""What `create` says about arguments that do not fit, before the component runs."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.dynamic_factory import ComponentArgumentsError, DynamicFactory, FactoryError

if TYPE_CHECKING:
    from somewhere import Tensor


class Optimizer:
    def __init__(
        self,
        params: Tensor,
        lr: float = 0.1,
        steps: int = 1,
        name: str = "x",
        fused: bool = False,
        mode: Literal["min", "max"] = "min",
        limit: Optional[int] = None,  # noqa: UP045 - both spellings are supported
        decay: Union[float, Tensor] = 0.0,  # noqa: UP007 - both spellings are supported
        schedule: int | str | None = None,
    ):
        self.given = {key: value for key, value in locals().items() if key != "self"}


@pytest.fixture
def factory():
    factory = DynamicFactory(base_class=Optimizer, name="test_factory")
    factory.register("adamw", Optimizer)
    return factory


def problems_of(factory, *args, **kwargs):
    with pytest.raises(ComponentArgumentsError) as caught:
        factory.create("adamw", *args, **kwargs)
    return caught.value.problems


def test_everything_wrong_is_said_at_once(factory):
    """Unknown, missing and mistyped arguments are one error, with the signature."""
    with pytest.raises(ComponentArgumentsError) as caught:
        factory.create("adamw", lrr=1, steps="many")
    assert caught.value.problems == (
        'unknown argument "lrr" (Did you mean "lr"?)',
        'missing argument "params"',
        "\"steps\" must be int, not str 'many'",
    )
    for part in (*caught.value.problems, "adamw", "test_factory", "lr: 'float' = 0.1"):
        assert part in str(caught.value)


def test_the_constructor_does_not_run():
    """Wrong arguments are found before the component does anything."""
    ran = []
    factory = DynamicFactory(name="callables")
    factory.register("f", lambda a: ran.append(a))
    with pytest.raises(ComponentArgumentsError):
        factory.create("f", 1, 2)
    assert ran == []


def test_too_many_positional_arguments_are_counted():
    """The error says how many were given and how many are taken."""
    factory = DynamicFactory()
    factory.register("f", lambda a, *, b=1: None)
    with pytest.raises(ComponentArgumentsError, match="3 positional arguments given, 1 taken"):
        factory.create("f", 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "1e-3"),
        ("lr", True),
        ("lr", None),
        ("steps", 1.5),
        ("steps", True),
        ("name", 3),
        ("fused", 1),
        ("mode", "median"),
        ("limit", "none"),
        ("schedule", 1.5),
    ],
)
def test_simple_types_are_checked(factory, name, value):
    """A value of the wrong simple type is named with what it must be."""
    (problem,) = problems_of(factory, params=None, **{name: value})
    assert problem.startswith(f'"{name}" must be ')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 1),
        ("lr", Fraction(1, 2)),
        ("mode", "max"),
        ("limit", None),
        ("limit", 3),
        ("decay", "a tensor, for all we know"),
        ("schedule", "cosine"),
        ("schedule", None),
    ],
)
def test_what_fits_passes(factory, name, value):
    """Numbers of other kinds, and types that are not simple, are left to the component."""
    assert factory.create("adamw", None, **{name: value}).given[name] == value


def test_a_literal_compares_types_too():
    """True is not the 1 that a Literal allows."""

    def f(level: Literal[1, 2]): ...

    factory = DynamicFactory()
    factory.register("f", f)
    factory.create("f", 1)
    with pytest.raises(ComponentArgumentsError, match="1 or 2"):
        factory.create("f", True)


def test_a_configuration_gives_a_name_and_parameters(factory):
    """create_from_config takes what a file says and what only code has."""
    made = factory.create_from_config({"name": "adamw", "parameters": {"lr": 0.5}}, "weights")
    assert (made.given["params"], made.given["lr"]) == ("weights", 0.5)
    assert factory.create_from_config({"name": "adamw"}, params=1).given["params"] == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "has no name"),
        ({"name": 3}, "has no name"),
        ({"name": "adamw", "lr": 0.5}, "stand beside"),
        ({"name": "adamw", "parameters": [1]}, "no mapping"),
        ({"name": "adamw", "parameters": {1: 2}}, "no mapping"),
        ({"name": "adamw", "parameters": {"params": 2}}, "sets 'params'"),
        ({"name": "os.system"}, "only registered names"),
    ],
)
def test_a_configuration_of_another_form_is_refused(factory, config, reason):
    """Each mistake in the form of a configuration has its own error."""
    with pytest.raises(FactoryError, match=reason):
        factory.create_from_config(config, params=1)


SIGNATURES = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /, b: None,
    lambda a, /, **rest: None,
    lambda a=1, /, *rest, b: None,
    lambda *rest, b=2: None,
    lambda a, *, b, c=3: None,
    lambda **d: None,
]


@given(
    st.sampled_from(SIGNATURES),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from("abcd"), st.integers(), max_size=3),
)
def test_calls_are_judged_as_python_judges_them(function, args, kwargs):
    """A call is refused if, and only if, Python would refuse it."""
    factory = DynamicFactory()
    factory.register("f", function)
    try:
        function(*args, **kwargs)
    except TypeError:
        with pytest.raises(ComponentArgumentsError):
            factory.create("f", *args, **kwargs)
    else:
        assert factory.create("f", *args, **kwargs) is None


def test_a_value_that_the_component_refuses_is_one_error():
    """What a constructor says of a configuration's value is an error of ours that names both."""

    class Picky:
        def __init__(self, lr: float) -> None:
            raise ValueError(f"Invalid learning rate: {lr}")

    factory = DynamicFactory(Picky, name="picky_factory")
    factory.register("picky", Picky)
    with pytest.raises(FactoryError) as raised:
        factory.create_from_config({"name": "picky", "parameters": {"lr": -1.0}})
    assert str(raised.value) == (
        '"picky" of picky_factory refuses its parameters: ValueError: Invalid learning rate: -1.0'
    )
