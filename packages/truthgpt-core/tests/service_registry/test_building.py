"""Building services: how long they live, and what their constructors raise."""

from __future__ import annotations

import pytest

from truthgpt_core.service_registry import ServiceContainer

CHAIN = "abcde"


class Engine:
    pass


def test_singleton_is_one(container: ServiceContainer) -> None:
    """A singleton is the same for everyone."""
    container.register("engine", Engine)
    container.register("car", lambda engine: [engine])
    assert container.get("engine") is container.get("engine")
    assert container.get("car")[0] is container.get("engine")


def test_transient_is_new_every_time(container: ServiceContainer) -> None:
    """Every `get` of a transient service builds one."""
    container.register("engine", Engine, singleton=False)
    assert container.get("engine") is not container.get("engine")


def test_transient_services_are_not_shared(container: ServiceContainer) -> None:
    """A transient service that two others need is built for each of them."""
    container.register("leaf", object, singleton=False)
    container.register("left", lambda leaf: leaf, singleton=False)
    container.register("right", lambda leaf: leaf, singleton=False)
    container.register("both", lambda left, right: (left, right), singleton=False)
    first, second = container.get("both"), container.get("both")
    assert len({id(each) for each in (*first, *second)}) == 4


def register_chain(container: ServiceContainer, failing: str = "") -> None:
    """Register transient services a to e, each made of the next one's letters and its own."""

    def made(letter: str, needed: str) -> str:
        if letter == failing:
            raise ValueError(f"{letter} is broken")
        return needed + letter

    container.register("e", lambda: made("e", ""), singleton=False)
    container.register("d", lambda e: made("d", e), singleton=False)
    container.register("c", lambda d: made("c", d), singleton=False)
    container.register("b", lambda c: made("b", c), singleton=False)
    container.register("a", lambda b: made("a", b), singleton=False)


def test_deep_chain_is_built(container: ServiceContainer) -> None:
    """What a transient service needs is built first, however deep."""
    register_chain(container)
    assert container.get("a") == "edcba"
    assert container.get("c") == "edc"


def test_what_is_needed_deep_down_can_be_replaced(container: ServiceContainer) -> None:
    """Replacing a service changes everything that is built of it from then on."""
    register_chain(container)
    container.get("a")
    container.register("c", lambda: "new", singleton=False, replace=True)
    assert container.get("a") == "newba"


def test_failed_singleton_is_built_again(container: ServiceContainer) -> None:
    """A singleton whose constructor raised is tried again by the next `get`."""
    attempts = iter([True, False])

    def flaky() -> Engine:
        if next(attempts):
            raise OSError("not yet")
        return Engine()

    container.register("flaky", flaky)
    with pytest.raises(OSError, match="not yet"):
        container.get("flaky")
    assert isinstance(container.get("flaky"), Engine)


# What constructors raise


@pytest.mark.parametrize("failing", CHAIN)
def test_notes_name_the_way_to_what_failed(container: ServiceContainer, failing: str) -> None:
    """An error names the services that were being built, and none that were built already."""
    register_chain(container, failing)
    with pytest.raises(ValueError, match=f"{failing} is broken") as caught:
        container.get("a")
    way = reversed(CHAIN[: CHAIN.index(failing) + 1])
    assert caught.value.__notes__ == [f'While building service "{name}"' for name in way]


def test_error_of_a_constructor_passes_as_it_is(container: ServiceContainer) -> None:
    """An error that is raised twice is the same, without a context, and is noted once."""
    error = ValueError("boom")

    def fail() -> None:
        raise error

    container.register("b", fail)
    container.register("a", lambda b: b)
    for _ in range(2):
        with pytest.raises(ValueError, match="boom") as caught:
            container.get("a")
        assert caught.value is error
        assert error.__context__ is None
    assert error.__notes__ == ['While building service "b"', 'While building service "a"']
