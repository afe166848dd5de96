"""Hooks as a plugin's author meets them: implementing, wrapping, ordering, for every hook.

A test marked `hook("NAME")` fails if implementations of that hook are not called; for
every hook there are some. `tests/test_hook_contract.py` of the repository sees to both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from truthgpt_core import (
    Applied,
    Optimization,
    OptimizationContext,
    Options,
    Plugin,
    hookimpl,
    hookspecs,
)
from truthgpt_core.config import ConfigError, ConfigManager, Section
from truthgpt_core.decoding import EngineOptions
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.evaluation import Measured, ReportSection
from truthgpt_core.event_system import EventType
from truthgpt_core.plugin_system import PluginError, PluginManager
from truthgpt_core.training import TrainingProgress

MARK = "truthgpt_spec"
SPECS: dict[str, Any] = {
    name: value for name, value in vars(hookspecs).items() if hasattr(value, MARK)
}
HISTORIC = {name for name, spec in SPECS.items() if getattr(spec, MARK)["historic"]}
FIRST_RESULT = {name for name, spec in SPECS.items() if getattr(spec, MARK)["firstresult"]}


class Double(Optimization[Options]):
    name = "double"

    def apply(self, model, context):
        return Applied(model * 2, notes=(context.device,))


CONTEXT = OptimizationContext("cpu", Path("cache"))
PROGRESS = TrainingProgress(
    step=10, total_steps=20, epoch=0, last_of_epoch=False, tokens=800, loss=2.5, metrics={}
)
MEASURED = Measured("halve", {"speed": 1.0})
# How a program calls each hook that is called, and what it says when no plugin answers.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "diagnose": {},
    "apply_optimization": {"optimization": Double(), "model": 3, "context": CONTEXT},
    "judge_step": {"candidate": MEASURED, "before": MEASURED, "baseline": MEASURED, "gate": {}},
    "report_sections": {"report": {}},
    "make_engine": {"source": "source", "options": EngineOptions()},
    "make_decoder": {"engine": "engine", "options": {}},
    "make_cache": {"model": "model", "rows": 1, "positions": 8},
    "make_decode_step": {"model": "model", "cache": "cache"},
    "make_stored_matmul": {"device": "cpu"},
    "make_training_step": {"model": "model"},
    "should_stop_training": {"progress": PROGRESS},
    "should_evaluate": {"progress": PROGRESS},
    "should_save": {"progress": PROGRESS},
}
UNANSWERED = {
    "diagnose": [],
    "judge_step": [],
    "report_sections": [],
    "apply_optimization": Applied(6, notes=("cpu",)),
}


def ask(manager: PluginManager, hook: str) -> Any:
    """Call a hook as programs do; one that is historic was called when the plugin came."""
    return None if hook in HISTORIC else getattr(manager.hooks, hook)(**ARGUMENTS[hook])


def for_each(hooks: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for each of the hooks, marked as a test of it."""
    return pytest.mark.parametrize(
        "hook", [pytest.param(hook, marks=pytest.mark.hook(hook)) for hook in sorted(hooks)]
    )


def implementing(hook: str, does: Callable[[], object], **options: bool) -> object:
    """Make a plugin that implements a hook, without taking any of its arguments."""

    def method(self):
        return does()

    return type("Implementing", (), {hook: hookimpl(**options)(method)})()


# Every hook


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_is_documented(hook: str) -> None:
    """A plugin's author reads in the docstring what a hook is for."""
    documentation = inspect.getdoc(SPECS[hook])
    assert documentation
    assert documentation.splitlines()[0].endswith(".")


@for_each(SPECS)
def test_a_function_in_a_module_implements_a_hook(manager, hook) -> None:
    """A module with a function of the hook's name is a plugin; it is given the arguments."""
    arguments = list(inspect.signature(SPECS[hook]).parameters)
    module = ModuleType("a_plugin")
    code = f"""
from truthgpt_core import hookimpl

given = []

@hookimpl
def {hook}({", ".join(arguments)}):
    given.append(dict({", ".join(f"{name}={name}" for name in arguments)}))
"""
    exec(code, vars(module))
    manager.register_plugin(module)
    ask(manager, hook)
    (given,) = module.given
    assert list(given) == arguments
    assert given == ARGUMENTS.get(hook, given)


@for_each(SPECS)
def test_a_method_of_a_plugin_implements_a_hook(manager, hook) -> None:
    """A subclass of `Plugin` implements a hook by a method, which takes what it needs: nothing."""
    told: list[str] = []

    def method(self):
        told.append(self.name)

    kind = type("Ours", (Plugin,), {"name": "ours", "version": "1", hook: hookimpl(method)})
    manager.register_plugin(kind())
    ask(manager, hook)
    assert told == ["ours"]


@for_each(SPECS)
def test_an_argument_that_a_hook_does_not_have_is_an_error(manager, hook) -> None:
    """An implementation with a misspelt argument is refused, by name, when it is registered."""

    def method(self, modell):
        pass

    plugin = type("Misspelt", (), {hook: hookimpl(method)})()
    with pytest.raises(PluginError, match=rf'Plugin "Misspelt".*{hook}.*modell'):
        manager.register_plugin(plugin)
    assert ask(manager, hook) == UNANSWERED.get(hook)


@for_each(SPECS)
def test_a_deactivated_plugin_is_not_asked(manager, hook) -> None:
    """After a plugin is deactivated its implementation is not called."""
    told: list[str] = []
    manager.register_plugin(implementing(hook, lambda: told.append("called")), name="ours")
    ask(manager, hook)
    manager.deactivate("ours")
    assert ask(manager, hook) == UNANSWERED.get(hook)
    assert told == ["called"]


# Hooks that programs call


@for_each(SPECS.keys() - HISTORIC)
def test_who_is_asked_first(manager, hook) -> None:
    """`tryfirst` goes first and `trylast` last; between them, what was activated later."""
    asked: list[str] = []
    for name, options in {
        "last": {"trylast": True},
        "early": {},
        "first": {"tryfirst": True},
        "late": {},
    }.items():

        def does(name: str = name) -> None:
            asked.append(name)

        manager.register_plugin(implementing(hook, does, **options), name=name)
    assert ask(manager, hook) == UNANSWERED.get(hook)
    assert asked == ["first", "late", "early", "last"]


@for_each(FIRST_RESULT)
def test_the_first_result_is_the_result(manager, hook) -> None:
    """Who returns None leaves it to the next; after the first other result nobody is asked."""
    asked: list[str] = []
    for name, answer in {"third": "result", "second": "result", "first": None}.items():

        def does(name: str = name, answer: str | None = answer) -> str | None:
            asked.append(name)
            return answer

        manager.register_plugin(implementing(hook, does), name=name)
    assert ask(manager, hook) == "result"
    assert asked == ["first", "second"]


@for_each(SPECS.keys() - HISTORIC - FIRST_RESULT)
def test_all_results_are_the_result(manager, hook) -> None:
    """Everyone is asked; the result lists what they return, None left out."""
    for name, answer in {"third": 3, "second": None, "first": 1}.items():
        manager.register_plugin(implementing(hook, lambda answer=answer: answer), name=name)
    assert ask(manager, hook) == [1, 3]


@for_each(SPECS.keys() - HISTORIC)
def test_a_hook_can_be_wrapped(manager, hook) -> None:
    """A wrapper runs before and after all implementations, and its result is the result."""
    order: list[object] = []

    def wrapper(self):
        order.append("before")
        result = yield
        order.append(result)
        return "changed"

    plugin = type("Wrapping", (), {hook: hookimpl(wrapper=True)(wrapper)})()
    manager.register_plugin(plugin)
    manager.register_plugin(implementing(hook, lambda: order.append("asked"), tryfirst=True))
    assert ask(manager, hook) == "changed"
    assert order == ["before", "asked", UNANSWERED.get(hook)]


@for_each(SPECS.keys() - HISTORIC)
def test_wrappers_nest(manager, hook) -> None:
    """Of two wrappers, the one that was activated later is outside."""

    def wrapping(name: str) -> object:
        def wrapper(self):
            result = yield
            return [name, *(result if isinstance(result, list) else [])]

        return type("Wrapping", (), {hook: hookimpl(wrapper=True)(wrapper)})()

    for name in ("inner", "outer"):
        manager.register_plugin(wrapping(name), name=name)
    assert ask(manager, hook) == ["outer", "inner"]


@for_each(SPECS.keys() - HISTORIC)
def test_an_error_passes_through_a_wrapper(manager, hook) -> None:
    """A wrapper can clean up after an implementation that raises; the caller gets the error."""
    seen: list[str] = []

    def fails() -> None:
        raise ValueError("no")

    def wrapper(self):
        try:
            return (yield)
        finally:
            seen.append("cleaned up")

    manager.register_plugin(implementing(hook, fails))
    manager.register_plugin(type("Wrapping", (), {hook: hookimpl(wrapper=True)(wrapper)})())
    with pytest.raises(ValueError, match="no"):
        ask(manager, hook)
    assert seen == ["cleaned up"]


# Hooks that are called for each plugin when it is activated


@for_each(HISTORIC)
def test_plugins_register_in_the_order_of_activation(manager, hook) -> None:
    """Each plugin is called once, when it is activated, whatever it says of first and last."""
    told: list[str] = []
    for name, options in {"first": {"trylast": True}, "second": {"tryfirst": True}}.items():

        def does(name: str = name) -> None:
            told.append(name)

        manager.register_plugin(implementing(hook, does, **options), name=name)
    assert told == ["first", "second"]


@for_each(HISTORIC)
def test_registering_cannot_be_wrapped(manager, hook) -> None:
    """A plugin that would wrap the registrations of others is refused, and told why."""

    def wrapper(self):
        yield

    plugin = type("Wrapping", (), {hook: hookimpl(wrapper=True)(wrapper)})()
    with pytest.raises(PluginError, match=f'Plugin "Wrapping".*{hook}.*historic'):
        manager.register_plugin(plugin)


@for_each(HISTORIC)
def test_a_plugin_that_fails_to_register_is_refused(manager, hook) -> None:
    """What an implementation raises is the reason why its plugin is not activated."""

    def fails() -> None:
        raise ValueError("no room")

    with pytest.raises(PluginError, match="no room"):
        manager.register_plugin(implementing(hook, fails))


# Each hook by itself


@pytest.mark.hook("register_services")
def test_a_service_that_a_plugin_registers_is_there_while_it_is_active(manager) -> None:
    """`register_services` gets the registry of the manager's container."""

    class Registering:
        @hookimpl
        def register_services(self, registry):
            registry.register("greeting", lambda: "hello")

    manager.register_plugin(Registering(), name="ours")
    assert manager.container.get("greeting") == "hello"
    manager.deactivate("ours")
    assert "greeting" not in manager.container.health()


@pytest.mark.hook("register_components")
def test_a_component_that_a_plugin_registers_is_there_while_it_is_active(manager) -> None:
    """`register_components` gets the manager's factories by name."""

    class Registering:
        @hookimpl
        def register_components(self, factories):
            factories["optimizer_factory"].register("still", dict)

    manager.register_plugin(Registering(), name="ours")
    factory = manager.factories["optimizer_factory"]
    assert factory.create("still", rate=0) == {"rate": 0}
    manager.deactivate("ours")
    assert "still" not in factory


@pytest.mark.hook("register_components")
def test_the_factories_are_those_that_the_documentation_names(manager) -> None:
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


@pytest.mark.hook("register_config_sections")
def test_a_section_that_a_plugin_registers_is_read_while_it_is_active(manager, tmp_path) -> None:
    """`register_config_sections` adds to what `load_config` reads, until the plugin is gone."""

    class Budget(Section):
        hours: float = 1.0

    class Registering:
        @hookimpl
        def register_config_sections(self, sections):
            sections.register("budget", Budget)

    file = tmp_path / "training.yaml"
    file.write_text("budget: {hours: 2}\n")
    load = partial(ConfigManager.load_config, file, environment={}, sections=manager.sections)
    manager.register_plugin(Registering(), name="ours")
    assert load().budget == Budget(hours=2)
    manager.deactivate("ours")
    with pytest.raises(ConfigError, match="budget"):
        load()


@pytest.mark.hook("register_event_handlers")
def test_a_plugin_listens_while_it_is_active(manager) -> None:
    """`register_event_handlers` gets the emitter of the manager, and leaves nothing there."""
    heard: list[Any] = []

    class Listening:
        @hookimpl
        def register_event_handlers(self, events):
            events.on(EventType.CHECKPOINT_SAVED, heard.append)

    manager.register_plugin(Listening(), name="ours")
    manager.events.emit(EventType.CHECKPOINT_SAVED, {})
    manager.deactivate("ours")
    manager.events.emit(EventType.CHECKPOINT_SAVED, {})
    assert len(heard) == 1


@pytest.mark.hook("diagnose")
def test_a_plugin_says_what_it_found_of_the_machine(manager) -> None:
    """`diagnose` gives what each plugin returns, a list or a generator."""
    compiler = Diagnosis.failed("C++ compiler", "none is installed", "Install g++.")
    memory = Diagnosis.ok("memory", "24 GB")

    class Listing:
        @hookimpl
        def diagnose(self):
            return [compiler]

    class Generating:
        @hookimpl
        def diagnose(self):
            yield memory
            yield compiler

    manager.register_plugin(Listing())
    manager.register_plugin(Generating())
    assert [list(each) for each in manager.hooks.diagnose()] == [[memory, compiler], [compiler]]


@pytest.mark.hook("apply_optimization")
def test_the_core_applies_an_optimization(manager) -> None:
    """With no plugin, applying an optimization calls its own `apply`."""
    assert ask(manager, "apply_optimization").model == 6


@pytest.mark.hook("apply_optimization")
def test_a_plugin_can_take_over(manager) -> None:
    """A plugin goes before the core, which then is not called, even if it asks to be last."""

    class TakingOver:
        @hookimpl(trylast=True)
        def apply_optimization(self, optimization, model):
            return Applied((optimization.name, model))

    manager.register_plugin(TakingOver())
    assert ask(manager, "apply_optimization").model == ("double", 3)


@pytest.mark.hook("apply_optimization")
def test_a_wrapper_can_change_what_the_core_did(manager) -> None:
    """A wrapper sees the core's own result, and may change it."""

    class Wrapping:
        @hookimpl(wrapper=True)
        def apply_optimization(self, model):
            applied = yield
            return Applied((model, applied.model))

    manager.register_plugin(Wrapping())
    assert ask(manager, "apply_optimization").model == (3, 6)


def test_nobody_has_a_decode_step_without_services(manager) -> None:
    """With nobody to make a decode step, the answer is None."""
    assert manager.hooks.make_decode_step(model=object(), cache=None) is None


@pytest.mark.hook("judge_step")
def test_a_plugin_objects_to_a_step(manager) -> None:
    """`judge_step` gives the objections of all that have one."""

    class Ours:
        @hookimpl
        def judge_step(self, candidate, gate):
            slow = candidate.quantities["speed"] < gate["speed"]
            return f"{candidate.name} is slow." if slow else None

    manager.register_plugin(Ours(), name="ours")
    asked = {"before": MEASURED, "baseline": MEASURED, "gate": {"speed": 2.0}}
    assert manager.hooks.judge_step(candidate=MEASURED, **asked) == ["halve is slow."]
    assert manager.hooks.judge_step(candidate=Measured("double", {"speed": 3.0}), **asked) == []


@pytest.mark.hook("report_sections")
def test_a_plugin_adds_sections_to_a_report(manager) -> None:
    """`report_sections` gives what every plugin makes of the report."""

    class Ours:
        @hookimpl
        def report_sections(self, report):
            return [ReportSection("Steps", [("how many", str(len(report["steps"])))])]

    manager.register_plugin(Ours(), name="ours")
    ((section,),) = manager.hooks.report_sections(report={"steps": [1, 2]})
    assert (section.title, section.rows) == ("Steps", [("how many", "2")])


@pytest.mark.hook("make_engine")
def test_a_plugin_takes_its_options_and_makes_the_engine(manager) -> None:
    """`make_engine` gives the first engine; what a plugin takes of the options is gone."""

    class Ours:
        @hookimpl
        def make_engine(self, source, options):
            return f"engine for {source}" if options.given.pop("ours", False) else None

    manager.register_plugin(Ours(), name="ours")
    options = EngineOptions(given={"ours": True, "other": 1})
    assert manager.hooks.make_engine(source="tiny", options=options) == "engine for tiny"
    assert options.given == {"other": 1}
    assert manager.hooks.make_engine(source="tiny", options=options) is None


@pytest.mark.hook("make_decoder")
def test_a_plugin_makes_the_decoder_of_a_request(manager) -> None:
    """`make_decoder` gives the first decoder, for requests with an option of its own."""

    class Ours:
        @hookimpl
        def make_decoder(self, options):
            return "ours" if options.pop("lookup", False) else None

    manager.register_plugin(Ours(), name="ours")
    assert manager.hooks.make_decoder(engine="engine", options={"lookup": True}) == "ours"
    assert manager.hooks.make_decoder(engine="engine", options={}) is None


@pytest.mark.hook("make_cache")
def test_a_plugin_makes_the_cache_of_some_models(manager) -> None:
    """`make_cache` gives the first cache, and is told how large it has to be."""

    class Ours:
        @hookimpl
        def make_cache(self, model, rows, positions):
            return (rows, positions) if model == "ours" else None

    manager.register_plugin(Ours(), name="ours")
    assert manager.hooks.make_cache(model="ours", rows=2, positions=64) == (2, 64)
    assert manager.hooks.make_cache(model="theirs", rows=2, positions=64) is None


@pytest.mark.hook("make_decode_step")
def test_a_decode_step_is_made_for_the_models_that_a_plugin_knows(manager) -> None:
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


@pytest.mark.hook("make_stored_matmul")
def test_integers_are_multiplied_on_the_devices_that_a_plugin_knows(manager) -> None:
    """The first plugin that multiplies integers on a device does."""

    class Tripling:
        @hookimpl
        def make_stored_matmul(self, device):
            return (lambda x, matrix: 3 * x) if device == "cpu" else None

    manager.register_plugin(Tripling())
    assert manager.hooks.make_stored_matmul(device="cpu")(2, None) == 6
    assert manager.hooks.make_stored_matmul(device="cuda:0") is None


@pytest.mark.hook("make_training_step")
def test_a_training_step_is_made_for_the_models_that_a_plugin_knows(manager) -> None:
    """The first plugin that offers a step for a model makes it, and a wrapper adds to its loss."""

    class Summing:
        @hookimpl
        def make_training_step(self, model):
            return (lambda batch: sum(batch["labels"])) if model == "ours" else None

    class Adding:
        @hookimpl(wrapper=True)
        def make_training_step(self):
            step = yield
            return step and (lambda batch: step(batch) + 0.5)

    manager.register_plugin(Summing())
    manager.register_plugin(Adding())
    step = manager.hooks.make_training_step(model="ours")
    assert step is not None
    assert step({"labels": [1, 2]}) == 3.5
    assert manager.hooks.make_training_step(model="theirs") is None


@pytest.mark.hook("should_stop_training")
def test_a_plugin_ends_training_with_a_reason(manager) -> None:
    """One plugin that has a reason is enough, whatever the others say."""

    class Patient:
        @hookimpl(tryfirst=True)
        def should_stop_training(self):
            return None

    class Budget:
        @hookimpl
        def should_stop_training(self, progress):
            return "the budget is spent" if progress.tokens >= 800 else None

    manager.register_plugin(Patient())
    manager.register_plugin(Budget())
    assert manager.hooks.should_stop_training(progress=PROGRESS) == "the budget is spent"


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(name, marks=pytest.mark.hook(name))
        for name in ("should_evaluate", "should_save")
    ],
)
def test_a_plugin_says_when_to_evaluate_and_to_save(manager, hook) -> None:
    """What a plugin says goes, no included; None leaves it to the next."""

    class Undecided:
        pass

    class Refusing:
        pass

    setattr(Undecided, hook, hookimpl(tryfirst=True)(lambda self: None))
    setattr(Refusing, hook, hookimpl(lambda self, progress: progress.step != 10))
    manager.register_plugin(Undecided())
    manager.register_plugin(Refusing())
    assert ask(manager, hook) is False
