"""Make plugin managers deaf to hooks, to see whether a test or an example needs them.

`pytest -p deaf_hooks` runs each test that is marked `hook("NAME")` with every
implementation of that hook overlooked, and says that one which passes has failed: it is
marked as a test of the hook, and is none.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

import pluggy
import pytest

from truthgpt_core.hookspecs import PROJECT

_parse = pluggy.PluginManager.parse_hookimpl_opts
_overlooked: Collection[str] = ()


def _overlook(
    manager: pluggy.PluginManager, plugin: object, name: str
) -> pluggy.HookimplOpts | None:
    if manager.project_name == PROJECT and name in _overlooked:
        return None
    return _parse(manager, plugin, name)


def deafen(*hooks: str) -> None:
    """Let the plugin managers of this process overlook implementations of these hooks alone."""
    global _overlooked
    _overlooked = hooks
    pluggy.PluginManager.parse_hookimpl_opts = _overlook  # type: ignore[assignment, method-assign]


def _hooks_of(item: pytest.Item) -> list[str]:
    return [hook for mark in item.iter_markers("hook") for hook in mark.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of hooks, and expect them to fail."""
    items[:] = [item for item in items if _hooks_of(item)]
    for item in items:
        reason = f"deaf to {', '.join(_hooks_of(item))}"
        item.add_marker(pytest.mark.xfail(strict=True, reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test without its hooks."""
    deafen(*_hooks_of(item))
    return (yield)
