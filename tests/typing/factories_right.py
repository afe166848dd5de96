"""Right uses of a factory: a type checker finds nothing, and knows what is created."""

# pyright: strict

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, assert_type, runtime_checkable

from truthgpt_core.dynamic_factory import DynamicFactory, get_factory, register_component


class Shape:
    """What the factory makes."""

    def area(self) -> float:
        """Return how large it is."""
        return 0.0


class Square(Shape):
    """One of them."""

    def __init__(self, side: float = 1.0) -> None:
        self.side = side


@runtime_checkable
class Sized(Protocol):
    """What another factory makes."""

    def area(self) -> float:
        """Return how large it is."""
        ...


@register_component("open_square")
class OpenSquare(Square):
    """A class that stays what it is though it was registered."""

    corners = 4


def make() -> None:
    """Make shapes."""
    shapes = DynamicFactory(Shape, name="shapes")
    assert_type(shapes, DynamicFactory[Shape])
    shapes.register("square", Square)
    shapes.register_lazy("circle", lambda: Square, describe="a test", target="shapes:Circle")
    shapes.register_alias("box", "square")
    assert_type(shapes.create("square", side=2.0), Shape)
    assert_type(shapes.create("square").area(), float)
    assert_type(shapes.create_from_config({"name": "square"}), Shape)
    assert_type(shapes.get_class("square"), type[Shape])
    assert_type(shapes.base_class, type[Shape] | None)
    assert_type(shapes.names(), tuple[str, ...])
    assert_type(shapes.aliases(), Mapping[str, str])
    assert_type(OpenSquare(2.0).corners, int)
    anything: DynamicFactory[int] = DynamicFactory()
    anything.register("number", int)
    assert_type(anything.create("number", 1), int)
    assert_type(get_factory("shapes"), DynamicFactory[Any])
