"""Transient services: made anew every time, with everything transient that they need."""

from __future__ import annotations

import traceback

import pytest

from truthgpt_core.service_registry import Provider, ServiceContainer

CHAIN = "abcde"


@pytest.fixture
def container() -> ServiceContainer:
    return ServiceContainer()


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


def test_a_deep_chain_is_made(container: ServiceContainer) -> None:
    """What a transient service needs is made first, however deep."""
    register_chain(container)
    assert container.get("a") == "edcba"
    assert container.get("c") == "edc"


@pytest.mark.parametrize("failing", CHAIN)
def test_the_note_names_the_path_to_what_failed(container: ServiceContainer, failing: str) -> None:
    """An error names the services that were being made, and none that were made already."""
    register_chain(container, failing)
    with pytest.raises(ValueError, match=f"{failing} is broken") as caught:
        container.get("a")
    path = " -> ".join(CHAIN[: CHAIN.index(failing) + 1])
    assert caught.value.__notes__ == [f"While building services: {path}"]


@pytest.mark.parametrize(
    ("failing", "path"),
    [("left", "both -> left"), ("right", "both -> right"), ("both", "both")],
)
def test_the_note_tells_neighbours_apart(
    container: ServiceContainer, failing: str, path: str
) -> None:
    """Of several arguments the one that failed is named, by position or by keyword."""

    def made(name: str) -> str:
        if name == failing:
            raise ValueError(name)
        return name

    container.register("left", lambda: made("left"), singleton=False)
    container.register("right", lambda: made("right"))

    def both(left: str, *, right: str) -> str:
        return made("both")

    container.register("both", both, singleton=False)
    with pytest.raises(ValueError, match=failing) as caught:
        container.get("both")
    assert caught.value.__notes__ == [f"While building services: {path}"]


def test_arguments_are_made_in_their_order(container: ServiceContainer) -> None:
    """Arguments are made from the first to the last, transient and kept ones alike."""
    order: list[str] = []
    container.register("first", lambda: order.append("first"), singleton=False)
    container.register("second", lambda: order.append("second"))
    container.register("third", lambda: order.append("third"), singleton=False)

    def last(first: object, second: object, *, third: object) -> None:
        order.append("last")

    container.register("last", last, singleton=False)
    container.get("last")
    assert order == ["first", "second", "third", "last"]


def test_every_place_gets_its_own(container: ServiceContainer) -> None:
    """A transient service that two others need is made for each of them, and shared by none."""
    container.register("leaf", object, singleton=False)
    container.register("left", lambda leaf: leaf, singleton=False)
    container.register("right", lambda leaf: leaf, singleton=False)
    container.register("both", lambda left, right: (left, right), singleton=False)
    first, second = container.get("both"), container.get("both")
    assert len({id(each) for each in (*first, *second)}) == 4


def test_what_is_needed_deep_down_can_be_replaced(container: ServiceContainer) -> None:
    """Replacing or overriding a service changes everything that is made of it from then on."""
    register_chain(container)
    container.get("a")
    container.register("c", lambda: "new", singleton=False, replace=True)
    assert container.get("a") == "newba"
    with container.override("c", lambda: "fake"):
        assert container.get("a") == "fakeba"
    assert container.get("a") == "newba"


def test_a_provider_deep_down_makes_a_new_one_at_each_call(container: ServiceContainer) -> None:
    """A transient service that gets a provider makes what is provided when it calls it."""

    def use(leaf: Provider[object]) -> tuple[object, object]:
        return leaf(), leaf()

    container.register("leaf", object, singleton=False)
    container.register("user", use, singleton=False)
    container.register("outer", lambda user: user, singleton=False)
    one, other = container.get("outer")
    assert one is not other


def test_a_traceback_names_the_service(container: ServiceContainer) -> None:
    """The frame that makes a transient service says in its file's name which one it is."""
    register_chain(container, failing="a")
    with pytest.raises(ValueError, match="a is broken") as caught:
        container.get("a")
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "<service a>" in files
