"""Wrong uses of a factory: a type checker says what is marked, and nothing else."""

from __future__ import annotations

from typing import assert_type

from truthgpt_core.dynamic_factory import DynamicFactory, register_component


class Shape:
    """What the factory makes."""

    def area(self) -> float:
        """Return how large it is."""
        return 0.0


def make(shapes: DynamicFactory[Shape]) -> None:
    """Use a factory as it cannot be used."""
    # error: arg-type, reportArgumentType
    shapes.register("number", int)
    # error: arg-type, reportArgumentType
    shapes.register("square", Shape())
    # error: arg-type, call-arg, reportCallIssue
    shapes.register(Shape)
    # error: call-arg, reportCallIssue
    shapes.register("square", Shape, overwrite=True)
    # error: call-arg, reportCallIssue
    shapes.register_lazy("circle", Shape, target="shapes:Circle")
    # error: call-arg, reportCallIssue
    shapes.create()
    # error: attr-defined, reportAttributeAccessIssue
    shapes.create("square").volume()
    # error: assert-type, reportAssertTypeFailure
    assert_type(shapes.create("square"), int)
    # error: arg-type, reportArgumentType
    shapes.create_from_config("square")
    # error: attr-defined, reportAttributeAccessIssue
    shapes.names().append("circle")
    # error: index, reportIndexIssue
    shapes.aliases()["box"] = "square"
    # error: arg-type, reportArgumentType
    DynamicFactory(1)
    # error: arg-type, reportArgumentType
    DynamicFactory[int](Shape)


@register_component("number")
def number() -> int:
    """A decorated function keeps its type."""
    return 1


# error: assert-type, reportAssertTypeFailure
assert_type(number(), str)
