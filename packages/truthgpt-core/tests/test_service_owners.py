"""Services of plugins: whose they are, what they may replace, and classes written in C."""

from __future__ import annotations

import json

import pytest

from truthgpt_core.dynamic_factory import DynamicFactory, UnknownComponentError
from truthgpt_core.plugin_system import State
from truthgpt_core.service_registry import ServiceContainer, UnknownServiceError

CODE = "from truthgpt_core import hookimpl\n{before}\n@hookimpl\ndef register_services(registry):\n"


def install(site, name: str, body: str, before: str = "") -> None:
    site.install_plugin(name, CODE.format(before=before) + f"    {body}\n")


def reason_of(manager, name: str) -> str:
    manager.activate_all()
    (row,) = (row for row in manager.rows() if row.name == name)
    assert row.state is State.BROKEN
    return row.reason


def test_replacing_what_is_not_there_is_the_plugins_error(site, manager) -> None:
    """It says which name may be meant, and how to be activated after the one that has it."""
    install(site, "a_late", "registry.register('of_early', lambda: 2, replace=True)")
    install(site, "early", "registry.register('of_early2', lambda: 1)")
    install(site, "b_early", "registry.register('of_earli', lambda: 1)")
    manager.activate("b_early")
    reason = reason_of(manager, "a_late")
    assert 'There is no service "of_early" to replace' in reason
    assert 'Did you mean "of_earli"?' in reason
    assert "require the distribution of that one" in reason


def test_replacing_what_is_not_there_is_an_error_by_hand_too() -> None:
    """Outside plugins as well, and it says to leave out replace=True."""
    with pytest.raises(UnknownServiceError, match=r"Leave out replace=True\.$"):
        ServiceContainer().register("new", lambda: 1, replace=True)


def test_a_component_that_is_not_there_cannot_be_replaced() -> None:
    """Factories refuse it in the same way."""
    factory: DynamicFactory[object] = DynamicFactory(name="things")
    factory.register("adamw", dict)
    with pytest.raises(UnknownComponentError, match=r'"adam" to replace.*Did you mean "adamw"'):
        factory.register("adam", dict, replace=True)
    factory.register("adamw", list, replace=True)


def test_a_name_that_is_taken_says_by_which_plugin(site, manager) -> None:
    """The second plugin's reason names the first."""
    for name in ("one", "two"):
        install(site, name, "registry.register('shared', lambda: 1)")
    assert 'Service "shared" of plugin "one" is registered already' in reason_of(manager, "two")


@pytest.mark.parametrize(
    ("body", "before", "said"),
    [
        (
            "registry.register('lonely', make)",
            "def make(not_there): ...",
            '"lonely" of plugin "owner" needs "not_there"',
        ),
        (
            "registry.register('a', make_a); registry.register('b', make_b)",
            "def make_a(b): ...\ndef make_b(a): ...",
            'a is of plugin "owner", b is of plugin "owner"',
        ),
        (
            "registry.register('s', make); registry.register('short', short, lifetime='scoped')",
            "def make(short): ...\ndef short(): ...",
            'Singleton "s" of plugin "owner" needs the scoped service "short" of plugin "owner"',
        ),
    ],
    ids=["missing", "cycle", "lifetime"],
)
def test_faults_name_the_plugin(site, truthgpt, body: str, before: str, said: str) -> None:
    """`truthgpt services` ends with an error that says whose service is at fault."""
    install(site, "owner", body, before)
    result = truthgpt("services", "--json")
    assert said in result.stderr
    owners = {each["name"]: each["plugin"] for each in json.loads(result.stdout)}
    assert "owner" in owners.values()


@pytest.mark.parametrize("kind", [dict, list, set, frozenset, bytearray, object])
def test_classes_written_in_c_can_be_services(kind: type) -> None:
    """A built-in class is made without arguments, once or each time."""
    container = ServiceContainer()
    container.register("one", kind)
    container.register("many", kind, singleton=False)
    assert type(container.get("one")) is kind
    assert container.get("one") is container.get("one")
    assert type(container.get("many")) is kind


def test_a_builtin_class_is_found_by_its_name(manager) -> None:
    """A parameter gets it by name; by class, one `dict` is like any other."""
    manager.container.register("memory", dict)
    manager.container.register("user", lambda memory: memory)
    assert manager.container.get("user") is manager.container.get("memory")
