"""Services of plugins: whose they are, and what they may replace."""

from __future__ import annotations

import json

import pytest

from truthgpt_core.dynamic_factory import DynamicFactory, UnknownComponentError
from truthgpt_core.plugin_system import State

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
            "registry.register('a', make_a); registry.register('b', A); registry.register('c', A)",
            "class A: ...\ndef make_a(one: A): ...",
            'needs one of "b" of plugin "owner", "c" of plugin "owner"',
        ),
    ],
    ids=["missing", "cycle", "ambiguous"],
)
def test_faults_name_the_plugin(site, truthgpt, body: str, before: str, said: str) -> None:
    """`truthgpt services` ends with an error that says whose service is at fault."""
    install(site, "owner", body, before)
    result = truthgpt("services", "--json")
    assert said in result.stderr
    owners = {each["name"]: each["plugin"] for each in json.loads(result.stdout)}
    assert "owner" in owners.values()
