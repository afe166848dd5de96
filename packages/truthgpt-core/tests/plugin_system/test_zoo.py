"""Broken plugins, each a real installed distribution: rows with reasons, and the rest works."""

from __future__ import annotations

import json
import logging
import textwrap
from dataclasses import dataclass, field

import pytest

from truthgpt_core import OptimizationError, PluginManager
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.plugin_system import PluginError, State
from truthgpt_core.service_registry import ServiceContainer, get_container

CORE = "truthgpt-core>=0.1,<0.2"


@dataclass
class Animal:
    """A broken plugin: its code, what its reason has to say, and what it declares besides."""

    code: str
    reason: str
    value: str = "MODULE"
    optimizations: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = (CORE,)


PLUGIN = """
from truthgpt_core import Plugin, hookimpl
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.service_registry import get_container, register_service

class Broken(Plugin):
    name = "broken"
    version = "1.0"
"""

ZOO = {
    "syntax error": Animal("def f(:", "cannot be imported: SyntaxError: "),
    "missing module": Animal(
        "import not_there_at_all",
        "cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    "no such object": Animal("", "cannot be imported: AttributeError: ", value="MODULE:Broken"),
    "module not there": Animal(
        "", "cannot be imported: ModuleNotFoundError: ", value="zoo_not_installed:Broken"
    ),
    "raises at import": Animal(
        "raise RuntimeError('two\\n    lines')", "cannot be imported: RuntimeError: two lines"
    ),
    "exits at import": Animal("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    "imports another version": Animal(
        "from truthgpt_core.hookspecs import not_yet_there",
        "cannot be imported: ImportError: cannot import name 'not_yet_there'",
    ),
    "registers and then raises at import": Animal(
        PLUGIN + "@register_service('zoo_left_behind')\ndef service(): pass\n1 / 0",
        "cannot be imported: ZeroDivisionError",
    ),
    "raises when it is made": Animal(
        PLUGIN + "    def __init__(self): raise OSError('no GPU')",
        "Broken() raised OSError: no GPU",
        value="MODULE:Broken",
    ),
    "exits when it is initialized": Animal(
        PLUGIN + "    def initialize(self, registry): raise SystemExit",
        "it failed to initialize: SystemExit",
        value="MODULE:Broken",
    ),
    "raises half-way": Animal(
        PLUGIN
        + """
    def initialize(self, registry):
        registry.register("zoo_left_behind", lambda: 1)
        on_event(EventType("zoo.ping"), print)
    @hookimpl
    def make_decode_step(self, model, cache):
        return "left behind"
    @hookimpl
    def register_components(self, factories):
        factories["optimizer_factory"].register("zoo_left_behind", dict)
        raise ValueError("half-way")
""",
        "it failed to initialize: ValueError: half-way",
        value="MODULE:Broken",
    ),
    "takes a service's name": Animal(
        PLUGIN
        + """
    def initialize(self, registry):
        registry.register("zoo_left_behind", lambda: 1)
        registry.register("zoo_left_behind", lambda: 2)
""",
        '"zoo_left_behind"',
        value="MODULE:Broken",
    ),
    "misspelled hook": Animal(
        PLUGIN + "    @hookimpl\n    def register_servises(self, registry): pass",
        'there is no hook named register_servises. Did you mean "register_services"?',
        value="MODULE:Broken",
    ),
    "hook argument that does not exist": Animal(
        PLUGIN
        + """
    @hookimpl
    def register_services(self, registry):
        registry.register("zoo_left_behind", lambda: 1)
    @hookimpl
    def make_decode_step(self, model, cash): pass
""",
        "cash",
        value="MODULE:Broken",
    ),
    "calls itself otherwise": Animal(
        PLUGIN + "    name = 'other'",
        'it calls itself "other", and its metadata does not',
        value="MODULE:Broken",
    ),
    "says no name": Animal(
        "from truthgpt_core import Plugin\nclass Broken(Plugin): pass",
        "Broken does not say its name",
        value="MODULE:Broken",
    ),
    "alias for no optimization": Animal(
        "",
        'the alias "zoo_alias" is for MODULE:Other, no optimization of it',
        optimizations={"zoo_left_behind": "MODULE:Shrink"},
        aliases={"zoo_alias": "MODULE:Other"},
    ),
    "unusable name of an optimization": Animal(
        "", "'zoo.dotted' cannot name a component", optimizations={"zoo.dotted": "MODULE:Shrink"}
    ),
    "for another core": Animal(
        "raise AssertionError('imported')",
        "it was written for truthgpt-core>=99, and 0.1.0 is installed",
        requires=("truthgpt-core>=99",),
    ),
    "for no core": Animal(
        "raise AssertionError('imported')",
        "its metadata does not say which truthgpt-core it was written for",
        requires=(),
    ),
}

HEALTHY = """
from truthgpt_core import hookimpl

@hookimpl
def register_services(registry):
    registry.register("zoo_healthy", lambda: "well")
"""


def install(site, animal: Animal) -> None:
    module = "zoo_broken_module"
    groups = {
        "truthgpt.plugins": {"broken": animal.value},
        "truthgpt.optimizations": animal.optimizations,
        "truthgpt.optimizations.aliases": animal.aliases,
    }
    site.install(
        "zoo-broken",
        {
            group: {name: value.replace("MODULE", module) for name, value in names.items()}
            for group, names in groups.items()
            if names
        },
        {f"{module}.py": textwrap.dedent(animal.code)},
        requires=animal.requires,
    )
    # One is activated before the broken one and one after it.
    for name in ("a_healthy", "z_healthy"):
        site.install_plugin(name, HEALTHY.replace("zoo_healthy", name))


@pytest.fixture(params=ZOO.values(), ids=ZOO.keys())
def animal(request: pytest.FixtureRequest, site) -> Animal:
    install(site, request.param)
    return request.param


def test_a_broken_plugin_is_a_row_and_the_others_work(animal, manager) -> None:
    """The reason stands in the row, in one line, and plugins before and after it are active."""
    manager.activate_all()
    rows = {row.name: row for row in manager.rows()}
    assert rows["broken"].state is State.BROKEN
    assert animal.reason.replace("MODULE", "zoo_broken_module") in rows["broken"].reason
    assert "\n" not in rows["broken"].reason
    for name in ("a_healthy", "z_healthy"):
        assert rows[name].state is State.ACTIVE
        assert manager.container.get(name) == "well"


def test_a_broken_plugin_leaves_nothing_behind(animal, manager, caplog) -> None:
    """No service, component, event handler, hook or optimization of it stays."""
    with caplog.at_level(logging.ERROR):
        manager.activate_all()
        assert not caplog.records, "undoing failed"
    assert "zoo_left_behind" not in manager.container.registry.names()
    assert "zoo_left_behind" not in get_container().registry.names()
    for factory in manager.factories.values():
        assert "zoo_left_behind" not in factory
    assert manager.hooks.make_decode_step(model=None, cache=None) is None
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_: heard.append("left behind"))
        emit_event(EventType("zoo.ping"))
    assert heard == []


def test_a_broken_plugin_is_fatal_if_strict(animal) -> None:
    """In strict mode the plugin's name and reason are raised."""
    manager = PluginManager(ServiceContainer(), strict=True)
    with pytest.raises(PluginError) as raised:
        manager.activate_all()
    assert str(raised.value).startswith('Plugin "broken" is broken: ')
    assert animal.reason.replace("MODULE", "zoo_broken_module") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_plugin_stays_broken(site, manager) -> None:
    """A plugin that failed is not tried again by the next work that needs plugins."""
    install(site, ZOO["misspelled hook"])
    manager.activate_all()
    manager.activate_all()
    (row,) = (row for row in manager.rows() if row.name == "broken")
    assert "register_servises" in row.reason


BAD_OPTIMIZATIONS = {
    "no class": ("Shrink = 3", "zoo_shrink_module:Shrink is not a subclass of Optimization"),
    "another class": (
        "class Shrink: pass",
        "zoo_shrink_module:Shrink is not a subclass of Optimization",
    ),
    "another name": (
        "from truthgpt_core import Optimization\nclass Shrink(Optimization): name = 'other'",
        'zoo_shrink_module:Shrink calls itself "other", not "zoo_shrink"',
    ),
    "no name": (
        "from truthgpt_core import Optimization\nclass Shrink(Optimization): pass",
        "zoo_shrink_module:Shrink does not say its name",
    ),
    "raises at import": (
        "raise RuntimeError('two\\nlines')",
        "zoo_shrink_module:Shrink cannot be imported: RuntimeError: two lines",
    ),
}


@pytest.mark.parametrize(("code", "reason"), BAD_OPTIMIZATIONS.values(), ids=BAD_OPTIMIZATIONS)
def test_an_optimization_that_is_none_says_so(site, manager, code: str, reason: str) -> None:
    """What an entry point names and is no such optimization is refused when it is made."""
    site.install(
        "zoo-shrink",
        {
            "truthgpt.plugins": {"shrinker": "zoo_plugin_module"},
            "truthgpt.optimizations": {"zoo_shrink": "zoo_shrink_module:Shrink"},
        },
        {"zoo_plugin_module.py": "", "zoo_shrink_module.py": code},
    )
    with pytest.raises(OptimizationError) as raised:
        manager.make_optimization("zoo_shrink", {})
    assert str(raised.value) == f'"zoo_shrink" comes with plugin "shrinker", but {reason}'


# On the command line


def install_two(site) -> None:
    install(site, ZOO["raises at import"])
    site.install_plugin("early", requires=("truthgpt-core>=99",))


def test_loading_lists_all_and_exits_with_0(site, truthgpt) -> None:
    """`truthgpt plugins --load` lists broken plugins with their reasons beside the others."""
    install_two(site)
    result = truthgpt("plugins", "--load", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["broken"]["reason"].endswith("cannot be imported: RuntimeError: two lines")
    assert rows["early"]["state"] == "broken"
    assert rows["a_healthy"]["state"] == rows["z_healthy"]["state"] == "active"


@pytest.mark.parametrize("way", ["--strict", "TRUTHGPT_STRICT"])
def test_strict_exits_with_one_line(site, truthgpt, monkeypatch, way: str) -> None:
    """With `--strict` or TRUTHGPT_STRICT=1 broken plugins are listed, named in one line, fatal."""
    install_two(site)
    if way == "TRUTHGPT_STRICT":
        monkeypatch.setenv(way, "1")
    result = truthgpt("plugins", "--load", *(["--strict"] if way == "--strict" else []))
    assert result.returncode == 1
    assert result.stderr == "truthgpt: Broken: broken, early\n"
    assert "RuntimeError: two lines" in result.stdout


def test_without_loading_strict_judges_metadata_only(site, truthgpt) -> None:
    """`truthgpt plugins --strict` imports nothing, and so names only what was judged."""
    install_two(site)
    result = truthgpt("plugins", "--strict")
    assert (result.returncode, result.stderr) == (1, "truthgpt: Broken: early\n")


def test_a_circle_of_requirements_is_listed(site, truthgpt) -> None:
    """Plugins that require each other are rows that name the circle; the command goes on."""
    site.install_plugin("ring_a", requires=(CORE, "ring-b-dist"))
    site.install_plugin("ring_b", requires=(CORE, "ring-a-dist"))
    site.install_plugin("apart")
    result = truthgpt("plugins", "--load", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["apart"]["state"] == "active"
    for name in ("ring_a", "ring_b"):
        assert rows[name]["state"] == "broken"
        assert rows[name]["reason"].startswith("plugins require each other: ring_")
