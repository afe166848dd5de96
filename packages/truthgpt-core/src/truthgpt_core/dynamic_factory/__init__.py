"""Factories: components by name, registered by the code that has them.

    factory = DynamicFactory(base_class=BaseOptimizer)

    @register_component("adamw")
    class AdamWOptimizer(BaseOptimizer): ...

    optimizer = factory.create("adamw", lr=0.001)

A component registered with `register_component` and no factory is *open*: every
factory whose base class it satisfies has it, those made later too. Only registered
names resolve; no name is ever taken for the path of something to import.
"""

from truthgpt_core.dynamic_factory.errors import (
    ComponentArgumentsError,
    ComponentLoadError,
    ComponentNameError,
    ComponentTypeError,
    DuplicateComponentError,
    FactoryError,
    UnknownComponentError,
    UnknownFactoryError,
)
from truthgpt_core.dynamic_factory.factory import DynamicFactory
from truthgpt_core.dynamic_factory.published import (
    get_factory,
    publish_factory,
    register_component,
)

__all__ = [
    "ComponentArgumentsError",
    "ComponentLoadError",
    "ComponentNameError",
    "ComponentTypeError",
    "DuplicateComponentError",
    "DynamicFactory",
    "FactoryError",
    "UnknownComponentError",
    "UnknownFactoryError",
    "get_factory",
    "publish_factory",
    "register_component",
]
