"""The contract is documented, typed as it is called, tested, and called in the order it says."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core import (
    Applied,
    Optimization,
    OptimizationContext,
    Options,
    hookimpl,
    hookspecs,
)
from truthgpt_core.plugin_system import PluginManager

MARK = "truthgpt_spec"
SPECS: dict[str, Any] = {
    name: value for name, value in vars(hookspecs).items() if hasattr(value, MARK)
}
CALLED = {name for name, spec in SPECS.items() if not getattr(spec, MARK)["historic"]}
ROOT = Path(__file__).parents[3]


# The contract itself


def test_there_are_hooks() -> None:
    """The tests of all hooks below do find the hooks."""
    assert {
        "register_services",
        "register_components",
        "apply_optimization",
        "make_decode_step",
    } <= SPECS.keys()


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_is_documented(name: str) -> None:
    """A plugin's author reads in the docstring what a hook is for."""
    documentation = inspect.getdoc(SPECS[name])
    assert documentation
    assert documentation.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_has_typed_arguments_and_a_result(name: str) -> None:
    """A hook's arguments and its result have types."""
    signature = inspect.signature(SPECS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


def test_the_typed_hooks_are_those_that_are_called() -> None:
    """`Hooks` has a method for each hook that services call, and for no other."""
    methods = {name for name in vars(hookspecs.Hooks) if name in SPECS or not name.startswith("_")}
    assert methods == CALLED


@pytest.mark.parametrize("name", sorted(CALLED))
def test_a_typed_hook_is_the_hook(name: str) -> None:
    """What a type checker sees of a hook is its true signature, with keywords only."""
    spec = inspect.signature(SPECS[name])
    typed = inspect.signature(getattr(hookspecs.Hooks, name))
    parameters = list(typed.parameters.values())[1:]
    assert [(each.name, each.annotation) for each in parameters] == [
        (each.name, each.annotation) for each in spec.parameters.values()
    ]
    assert {each.kind for each in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert typed.return_annotation == spec.return_annotation


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_has_a_test(name: str) -> None:
    """Some test in this repository implements the hook or calls it."""
    folders = [Path(__file__).parent, *ROOT.glob("packages/*/tests"), ROOT / "tests"]
    tests = {path for folder in folders for path in folder.rglob("test_*.py")}
    assert any(name in implemented_or_called(path.read_text(encoding="utf-8")) for path in tests), (
        f"no test implements or calls {name}"
    )


def implemented_or_called(code: str) -> set[str]:
    """Names of functions with a decorator, and of methods called: what a test does with hooks."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            found.add(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.add(node.func.attr)
    return found


# Calling


class Double(Optimization[Options]):
    name = "double"

    def apply(self, model, context):
        return Applied(model * 2, notes=(context.device,))


@pytest.fixture
def context(tmp_path: Path) -> OptimizationContext:
    return OptimizationContext("cpu", tmp_path)


def apply(manager: PluginManager, context: OptimizationContext) -> Any:
    applied = manager.hooks.apply_optimization(optimization=Double(), model=3, context=context)
    assert applied is not None
    return applied.model


def test_the_core_applies_an_optimization(manager, context) -> None:
    """With no plugin, applying an optimization calls its own `apply`."""
    assert apply(manager, context) == 6


def test_a_plugin_can_take_over(manager, context) -> None:
    """A plugin's implementation goes before the core's, which then is not called."""

    class TakingOver:
        @hookimpl
        def apply_optimization(self, optimization, model):
            return Applied((optimization.name, model))

    manager.register_plugin(TakingOver())
    assert apply(manager, context) == ("double", 3)


def test_a_plugin_that_is_trylast_still_goes_before_the_core(manager, context) -> None:
    """The core is the last to be asked, even after a plugin that asks to be last."""

    class Last:
        @hookimpl(trylast=True)
        def apply_optimization(self, optimization):
            return Applied("last")

    manager.register_plugin(Last())
    assert apply(manager, context) == "last"


def test_a_plugin_that_returns_none_leaves_it_to_the_next(manager, context) -> None:
    """Returning None hands the work on, to other plugins and in the end to the core."""
    asked: list[str] = []

    def made(name: str, answer: Applied | None) -> object:
        class Asked:
            @hookimpl
            def apply_optimization(self, model):
                asked.append(name)
                return answer

        return Asked()

    manager.register_plugin(made("first", None), name="first")
    assert apply(manager, context) == 6
    manager.register_plugin(made("second", Applied("second")), name="second")
    manager.register_plugin(made("third", None), name="third")
    assert apply(manager, context) == "second"
    assert asked == ["first", "third", "second"]


def test_a_wrapper_sees_the_result_and_may_change_it(manager, context) -> None:
    """A wrapper runs before and after all implementations, the core's included."""
    order: list[object] = []

    class Wrapping:
        @hookimpl(wrapper=True)
        def apply_optimization(self, model):
            order.append(("before", model))
            applied = yield
            order.append(("after", applied.model))
            return Applied(applied.model + 1)

    class Implementing:
        @hookimpl
        def apply_optimization(self, model):
            order.append("asked")

    manager.register_plugin(Wrapping())
    manager.register_plugin(Implementing())
    assert apply(manager, context) == 7
    assert order == [("before", 3), "asked", ("after", 6)]


def test_wrappers_nest(manager, context) -> None:
    """Of two wrappers, the one that was activated later is outside."""

    def wrapping(name: str) -> object:
        class Wrapping:
            @hookimpl(wrapper=True)
            def apply_optimization(self):
                applied = yield
                return Applied((name, applied.model))

        return Wrapping()

    manager.register_plugin(wrapping("inner"), name="inner")
    manager.register_plugin(wrapping("outer"), name="outer")
    assert apply(manager, context) == ("outer", ("inner", 6))


def test_an_error_passes_through_a_wrapper(manager, context) -> None:
    """A wrapper can clean up after an optimization that raises; the caller gets the error."""
    seen: list[str] = []

    class Failing:
        @hookimpl
        def apply_optimization(self):
            raise ValueError("no")

    class Wrapping:
        @hookimpl(wrapper=True)
        def apply_optimization(self):
            try:
                return (yield)
            finally:
                seen.append("cleaned up")

    manager.register_plugin(Failing())
    manager.register_plugin(Wrapping())
    with pytest.raises(ValueError, match="no"):
        apply(manager, context)
    assert seen == ["cleaned up"]


def test_a_deactivated_wrapper_is_gone(manager, context) -> None:
    """After a plugin is deactivated its wrapper is not called."""

    class Wrapping:
        @hookimpl(wrapper=True)
        def apply_optimization(self):
            yield
            return Applied("wrapped")

    manager.register_plugin(Wrapping(), name="wrapping")
    assert apply(manager, context) == "wrapped"
    manager.deactivate("wrapping")
    assert apply(manager, context) == 6


def test_nobody_has_a_decode_step_without_services(manager) -> None:
    """With nobody to make a decode step, the answer is None."""
    assert manager.hooks.make_decode_step(model=object(), cache=None) is None


def test_the_first_decode_step_is_used(manager) -> None:
    """The first plugin that offers a decode step for a model makes it."""

    class Deciding:
        @hookimpl
        def make_decode_step(self, model, cache):
            return (lambda token, position: (token, position, cache)) if model == "ours" else None

    manager.register_plugin(Deciding())
    step = manager.hooks.make_decode_step(model="ours", cache="cache")
    assert step is not None
    assert step(1, 2) == (1, 2, "cache")
    assert manager.hooks.make_decode_step(model="theirs", cache="cache") is None


def test_services_are_registered_in_the_managers_container(manager) -> None:
    """`register_services` gets the registry of the container that the manager was made with."""
    seen: list[object] = []

    class Registering:
        @hookimpl
        def register_services(self, registry):
            seen.append(registry)

    manager.register_plugin(Registering())
    assert seen == [manager.container.registry]


def test_components_are_registered_in_the_named_factories(manager) -> None:
    """`register_components` gets the factories that its documentation names, each by its name."""
    seen: list[Any] = []

    class Registering:
        @hookimpl
        def register_components(self, factories):
            seen.append(factories)

    manager.register_plugin(Registering())
    (factories,) = seen
    documentation = inspect.getdoc(SPECS["register_components"]) or ""
    assert factories.keys() == {
        word.strip("`.,") for word in documentation.split() if word.strip("`.,").endswith("factory")
    }
    assert all(factory.name == name for name, factory in factories.items())
