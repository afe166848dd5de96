"""Plugins that need each other are activated and deactivated in the right order."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core import Plugin, PluginManager
from truthgpt_core.plugin_system import PluginError, State
from truthgpt_core.service_registry import ServiceContainer

pytestmark = pytest.mark.slow

CORE = "truthgpt-core>=0.1,<0.2"


class Needing(Plugin):
    """A plugin that needs others and writes down what becomes of it."""

    version = "1.0"

    def __init__(self, name: str, needs: object = (), told: list[str] | None = None) -> None:
        self._name, self._needs = name, needs
        self.told = [] if told is None else told

    @property
    def name(self) -> str:
        return self._name

    @property
    def dependencies(self):
        return self._needs

    def initialize(self, registry) -> None:
        self.told.append(f"+{self._name}")

    def shutdown(self) -> None:
        self.told.append(f"-{self._name}")


def states(manager: PluginManager) -> dict[str, State]:
    return {row.name: row.state for row in manager.rows()}


# Deactivating


def test_active_dependents_refuse_it(site, manager) -> None:
    """A plugin that active ones need is not deactivated; the error names them all."""
    site.install_plugin("base")
    site.install_plugin("middle", requires=(CORE, "base-dist"))
    site.install_plugin("top", requires=(CORE, "middle-dist"))
    manager.activate_all()
    with pytest.raises(PluginError) as raised:
        manager.deactivate("base")
    assert str(raised.value) == (
        'Plugin "base" is needed by plugins that are active: "middle", "top". '
        "Deactivate them first, or say cascade=True."
    )
    assert states(manager)["base"] is State.ACTIVE


def test_dependents_that_are_not_active_do_not_matter(site, manager) -> None:
    """Once its dependents are deactivated, a plugin can be."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    manager.activate_all()
    manager.deactivate("top")
    manager.deactivate("base")
    assert states(manager)["base"] is State.INACTIVE


def test_cascade_goes_from_the_top(manager) -> None:
    """With `cascade`, dependents are deactivated first, the furthest before all others."""
    told: list[str] = []
    manager.register_plugin(Needing("base", (), told))
    manager.register_plugin(Needing("middle", ["base"], told))
    manager.register_plugin(Needing("top", ["middle", "base"], told))
    manager.register_plugin(Needing("apart", (), told))
    told.clear()
    manager.deactivate("base", cascade=True)
    assert told == ["-top", "-middle", "-base"]
    assert states(manager).get("apart") is State.ACTIVE


def test_what_was_deactivated_is_not_needed_for_activating_others(site, manager) -> None:
    """A plugin whose requirement was deactivated is not activated, and says why."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    manager.activate("base")
    manager.deactivate("base")
    manager.activate_all()
    (row,) = (row for row in manager.rows() if row.name == "top")
    assert (row.state, row.reason) == (
        State.INACTIVE,
        'it needs plugin "base", which is inactive',
    )
    manager.activate("top")
    assert states(manager)["base"] is State.ACTIVE


# What a plugin says itself


def test_dependencies_by_hand_are_activated_first(site, manager) -> None:
    """A plugin registered by hand has what it depends on activated before it."""
    site.install_plugin("base")
    manager.register_plugin(Needing("mine", ["base"]))
    assert states(manager)["base"] is State.ACTIVE


def test_a_dependency_that_is_not_there_is_named(site, manager) -> None:
    """A plugin that depends on what is not installed is refused, with a suggestion."""
    site.install_plugin("quantise")
    with pytest.raises(PluginError) as raised:
        manager.register_plugin(Needing("mine", ["quantize"]))
    assert str(raised.value) == (
        'Plugin "mine": it depends on plugin "quantize", which is not installed. '
        'Did you mean "quantise"?'
    )
    assert "mine" not in states(manager)


@pytest.mark.parametrize("said", ["base", 3, [1], None])
def test_dependencies_are_names(manager, said: object) -> None:
    """Dependencies that are no list of names are an error that shows them."""
    with pytest.raises(PluginError, match=r"its dependencies are .*Return a list of names"):
        manager.register_plugin(Needing("mine", said))


def test_dependencies_that_raise_are_one_error(manager) -> None:
    """An exception while a plugin says what it needs is the plugin's, in one line."""

    class Raising(Needing):
        @property
        def dependencies(self):
            raise KeyError("no")

    with pytest.raises(PluginError, match="its dependencies raised KeyError"):
        manager.register_plugin(Raising("mine"))


INSTALLED = """
from truthgpt_core import Plugin

class Mine(Plugin):
    name = "mine"
    version = {version!r}
    dependencies = {dependencies!r}
    api_version = {api!r}
    def initialize(self, registry):
        registry.register("mine_service", lambda: 1)
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, ""),
        ({"api": "<0.2,>=0.1"}, ""),
        ({"dependencies": ["base"]}, ""),
        ({"version": "1.0.0"}, ""),
        (
            {"dependencies": ["other"]},
            'it says that it depends on plugin "other", and its metadata requires '
            "no distribution that has that plugin",
        ),
        (
            {"version": "2.0"},
            "it says that its version is 2.0, and its metadata says 1.0. "
            'Return importlib.metadata.version("mine-dist").',
        ),
        ({"api": ">=0.3"}, "it says that it was written for truthgpt-core >=0.3, and"),
        ({"api": "soon"}, "it says that it was written for truthgpt-core soon, and"),
    ],
)
def test_what_an_installed_plugin_says_agrees_with_its_metadata(
    site, manager, said, reason
) -> None:
    """Version, API and dependencies that contradict the metadata break it before it acts."""
    site.install_plugin("base")
    site.install_plugin("other")
    code = INSTALLED.format(**{"version": "1.0", "dependencies": [], "api": ""} | said)
    site.install(
        "mine-dist",
        {"truthgpt.plugins": {"mine": "mine_module:Mine"}},
        {"mine_module.py": code},
        requires=(CORE, "base-dist"),
    )
    manager.activate_all()
    (row,) = (row for row in manager.rows() if row.name == "mine")
    assert row.reason.startswith(reason)
    assert (row.state is State.ACTIVE) is (not reason)
    assert ("mine_service" in manager.container.registry.names()) is (not reason)


@pytest.mark.parametrize(
    ("api", "reason"),
    [
        (">=99", "it was written for truthgpt-core>=99, and 0.1.0 is installed"),
        ("new", "its api_version is 'new'. Write it as"),
        (3, "its api_version is 3. Write it as"),
    ],
)
def test_the_api_of_a_plugin_by_hand_is_checked(manager, api: object, reason: str) -> None:
    """A plugin without a distribution is held to the API version that it says itself."""
    plugin = Needing("mine")
    type(plugin).api_version, before = api, Plugin.api_version
    try:
        with pytest.raises(PluginError) as raised:
            manager.register_plugin(plugin)
    finally:
        type(plugin).api_version = before
    assert reason in str(raised.value)
    assert plugin.told == []


# Files


def write(folder: Path, needs: dict[str, list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, needed in needs.items():
        (folder / f"{name}.py").write_text(
            "from truthgpt_core import Plugin\n"
            f"class P(Plugin):\n    name = {name!r}\n    version = '1'\n"
            f"    dependencies = {needed!r}\n"
            "    def initialize(self, registry):\n"
            "        import builtins; builtins.order.append(self.name)\n"
        )
    return folder


@pytest.fixture
def order(monkeypatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr("builtins.order", told, raising=False)
    return told


def test_files_are_activated_after_what_they_depend_on(tmp_path, manager, order) -> None:
    """A file whose plugin depends on that of a later file is activated after it."""
    folder = write(tmp_path / "plugins", {"a": ["b"], "b": ["c"], "c": [], "d": []})
    manager.load_plugins_from_directory(folder)
    assert order.index("c") < order.index("b") < order.index("a")
    assert "d" in order


def test_a_cycle_of_files_is_named(tmp_path, manager, order) -> None:
    """Files whose plugins depend on each other are broken and name the cycle; others work."""
    folder = write(tmp_path / "plugins", {"a": ["b"], "b": ["a"], "leans": ["a"], "fine": []})
    rows = {row.name: row for row in manager.load_plugins_from_directory(folder)}
    assert rows["a"].reason.startswith("plugins depend on each other: ")
    assert set(rows["a"].reason.partition(": ")[2].split(" -> ")) == {"a", "b"}
    assert 'Plugin "a" is broken' in rows["leans"].reason
    assert order == ["fine"]


# Any graph


@st.composite
def graphs(draw) -> dict[str, list[str]]:
    """Names and what each needs, without cycles, in an order that says nothing."""
    names = draw(st.lists(st.sampled_from(string.ascii_lowercase), unique=True, max_size=8))
    needs = {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        for index, name in enumerate(names)
    }
    return {name: needs[name] for name in draw(st.permutations(names))}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs(), data=st.data())
def test_any_graph_is_activated_and_deactivated_in_order(
    tmp_path_factory, order, graph, data
) -> None:
    """Whatever needs what, needs come first; `cascade` takes exactly what needs one, in reverse."""
    manager = PluginManager(ServiceContainer(), strict=True)
    order.clear()
    folder = write(tmp_path_factory.mktemp("graph"), graph)
    manager.load_plugins_from_directory(folder)
    assert sorted(order) == sorted(graph)
    for name, needed in graph.items():
        assert all(order.index(other) < order.index(name) for other in needed)
    if not graph:
        return
    start = data.draw(st.sampled_from(sorted(graph)))
    gone = {start}
    for _ in graph:
        gone |= {name for name, needed in graph.items() if gone & set(needed)}
    manager.deactivate(start, cascade=True)
    left = {row.name for row in manager.rows() if row.file is not None}
    assert left == set(graph) - gone


@st.composite
def rings(draw) -> list[str]:
    return draw(
        st.lists(st.sampled_from(string.ascii_lowercase), unique=True, min_size=2, max_size=6)
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ring=rings())
def test_any_cycle_is_named_in_full(tmp_path_factory, order, ring) -> None:
    """However long a cycle of plugins is, each member's reason shows all of it in order."""
    manager = PluginManager(ServiceContainer(), strict=False)
    needs = {one: [other] for one, other in pairwise([*ring, ring[0]])}
    rows = manager.load_plugins_from_directory(write(tmp_path_factory.mktemp("ring"), needs))
    for row in rows:
        names = row.reason.partition(": ")[2].split(" -> ")
        assert names[0] == names[-1]
        assert all(needs[one] == [other] for one, other in pairwise(names))
        assert set(names) == set(ring)
