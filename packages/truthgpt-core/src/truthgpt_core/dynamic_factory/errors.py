"""The errors of factories; import them from `truthgpt_core.dynamic_factory`."""

from __future__ import annotations

from truthgpt_core.errors import TruthGPTError


class FactoryError(TruthGPTError):
    """Base class of the errors about factories and components."""


class ComponentNameError(FactoryError):
    """A name is not one that a component can have, or is the path of something to import."""


class ComponentTypeError(FactoryError):
    """A component is not what the factory's base class asks for."""


class DuplicateComponentError(FactoryError):
    """A name is taken by something else."""


class UnknownComponentError(FactoryError):
    """A factory has no component of a name."""


class UnknownFactoryError(FactoryError):
    """No factory is published under a name."""


class ComponentLoadError(FactoryError):
    """The loader of a component that is imported on first use failed."""


class ComponentArgumentsError(FactoryError):
    """A component was to be created with arguments that do not fit it.

    Attributes:
        problems: every one, not the first alone.
    """

    def __init__(self, message: str, *, problems: list[str], hint: str) -> None:
        super().__init__(message, hint=hint)
        self.problems: tuple[str, ...] = tuple(problems)
