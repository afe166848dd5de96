"""The table of names behind a factory: what each stands for, and what that covers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

from truthgpt_core.dynamic_factory.errors import (
    ComponentNameError,
    DuplicateComponentError,
    UnknownComponentError,
)
from truthgpt_core.errors import did_you_mean
from truthgpt_core.transaction import record_undo

_NAME = re.compile(r"[A-Za-z0-9_][\w-]*", re.ASCII)

lock = RLock()
"""Guards every table at once, because an open component is registered with several.

No component is imported or created under it: an import may wait for another thread
that is importing, too, and registers what it finds.
"""


@dataclass(eq=False, slots=True)
class Component:
    """A component; `target` is None while it waits to be imported."""

    origin: str
    target: Callable[..., Any] | None = None
    loader: Callable[[], object] | None = None

    def __str__(self) -> str:
        return self.origin

    def is_at(self, reference: str) -> bool:
        """Return whether it is what "module:attribute" refers to, importing nothing."""
        module_name, _, attributes = reference.partition(":")
        found: object = sys.modules.get(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute, None)
        return found is not None and found is self.target


@dataclass(eq=False, slots=True)
class Alias:
    """Another name of a component."""

    name: str

    def __str__(self) -> str:
        return f'an alias of "{self.name}"'


@dataclass(eq=False, slots=True)
class Removed:
    """What removing a name leaves, so that undoing it brings back what was there."""


Layer = Component | Alias | Removed


class ComponentNames:
    """Names and what they stand for.

    Each name has layers, and the last is in force. What it covers is kept, because
    registrations are undone in any order: a plugin goes, and a later one stays.

    Args:
        label: what error messages call the factory.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._layers: dict[str, tuple[Layer, ...]] = {}

    def get(self, name: str) -> Component | Alias | None:
        """Return what `name` stands for, None if it stands for nothing."""
        layers = self._layers.get(name)
        top = layers[-1] if layers else None
        return None if isinstance(top, Removed) else top

    def items(self) -> list[tuple[str, Component | Alias]]:
        """Return the names that stand for something, sorted, and what for."""
        found = ((name, self.get(name)) for name in sorted(self._layers))
        return [(name, layer) for name, layer in found if layer is not None]

    def check_free(self, name: str, layer: Layer) -> None:
        """Refuse `layer` if `name` stands for something else.

        Raises:
            DuplicateComponentError: it does.
        """
        present = self.get(name)
        if present is None:
            return
        match present, layer:
            case Component(loader=None), Component(target=None):
                pass
            case Component(), Component(target=None):
                if present.origin == layer.origin:
                    return
            case Component(target=None), Component():
                return
            case Component(), Component():
                if present.target is layer.target:
                    return
            case Alias(), Alias():
                if present.name == layer.name:
                    return
        raise DuplicateComponentError(
            f'{self._label} has "{name}" already, {present}, so it cannot be {layer}',
            hint="Choose another name, or say replace=True.",
        )

    def push(self, name: str, layer: Layer, *, replace: bool) -> None:
        """Let `name` stand for `layer`; the transaction under way can take that back.

        Raises:
            DuplicateComponentError: it stands for something else, and `replace` is False.
            UnknownComponentError: it stands for nothing, and `replace` is True.
        """
        if not replace:
            self.check_free(name, layer)
        elif self.get(name) is None:
            known = [known_name for known_name, _ in self.items()]
            raise UnknownComponentError(
                f'{self._label} has no "{name}" to replace, and replace=True was given',
                hint=did_you_mean(name, known) or "Leave out replace=True.",
            )
        undoable = record_undo(partial(self.withdraw, name, layer))
        self.cover(name, layer, for_good=not undoable)

    def cover(self, name: str, layer: Layer, *, for_good: bool = False) -> None:
        """Let `name` stand for `layer`, until `withdraw` is called unless it is for good."""
        # What lies under a layer that stays for good will never be seen again.
        beneath = () if for_good else self._layers.get(name, ())
        self._layers[name] = (*beneath, layer)

    def withdraw(self, name: str, layer: Layer) -> None:
        """Take `layer` out of `name`, wherever it lies."""
        with lock:
            rest = tuple(other for other in self._layers.get(name, ()) if other is not layer)
            if rest:
                self._layers[name] = rest
            else:
                self._layers.pop(name, None)


def check_name(name: object) -> None:
    """Refuse a name that no component can have.

    Raises:
        ComponentNameError: it is not made of letters, digits, `_` and `-`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ComponentNameError(
            f"{name!r} cannot name a component", hint='Use letters, digits, "_" and "-".'
        )


def refuse_other_than_string(name: object) -> None:
    """Refuse what is not even a string where the name of a component is looked up.

    Raises:
        ComponentNameError: it is none.
    """
    if not isinstance(name, str):
        raise ComponentNameError(f"{name!r} cannot name a component", hint="Names are strings.")


def name_for(cls: type) -> str:
    """Return the name a class goes by: one it says itself, or its own in snake_case."""
    # Of the class itself: an inherited name is another component's.
    for attribute in ("component_name", "name"):
        if isinstance(name := vars(cls).get(attribute), str):
            return name
    words = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z\d])([A-Z])", r"\1\3_\2\4", cls.__name__)
    return words.lower()


def origin_of(component: object) -> str:
    """Return what messages call a component, a base class or what was given as one."""
    qualname = getattr(component, "__qualname__", None)
    return f"{component.__module__}.{qualname}" if qualname else repr(component)
