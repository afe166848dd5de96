"""One plugin manager, used by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from truthgpt_core import Plugin, PluginManager
from truthgpt_core.plugin_system import PluginError, State, get_plugin_manager
from truthgpt_core.service_registry import ServiceContainer

THREADS = 16
COUNTING = """
import time
from truthgpt_core import Plugin

class Counting(Plugin):
    name = "counting"
    version = "1.0"
    made = []

    def initialize(self, registry):
        time.sleep(0.01)
        self.made.append(1)
        registry.register("counted", lambda: 1)
"""


def at_once(work: Callable[[int], object]) -> list[object]:
    """Let `THREADS` threads begin the same work at the same moment; return what each returned."""
    together = threading.Barrier(THREADS)

    def begin(number: int) -> object:
        together.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS), timeout=60))


class Needing(Plugin):
    """A plugin that does something when it is activated."""

    name = "needing"
    version = "1.0"

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def initialize(self, registry: object) -> None:
        self.work()


def install_counting(site) -> None:
    site.install(
        "counting-dist",
        {"truthgpt.plugins": {"counting": "counting_module:Counting"}},
        {"counting_module.py": COUNTING},
    )


def test_activation_by_many_threads_is_one(site, manager) -> None:
    """Of threads that activate a plugin one does so, and the others find it active."""
    install_counting(site)

    def work(number: int) -> int:
        if number % 2:
            manager.activate("counting")
        else:
            manager.activate_all()
        return manager.container.get("counted")

    assert at_once(work) == [1] * THREADS
    import counting_module

    assert len(counting_module.Counting.made) == 1


def test_threads_that_turn_plugins_on_and_off_break_none(site, manager) -> None:
    """Whatever order threads do it in, no plugin is broken, and at the end it can be activated."""
    install_counting(site)
    for name in ("one", "two"):
        site.install_plugin(
            name,
            f"from truthgpt_core import hookimpl\n@hookimpl\n"
            f"def register_services(registry): registry.register('{name}', lambda: 1)",
        )
    names = ("one", "two", "counting")

    def work(number: int) -> set[State]:
        seen = set()
        for turn in range(25):
            name = names[(number + turn) % len(names)]
            # It may be active already, or not yet.
            with suppress(PluginError):
                (manager.activate if turn % 2 else manager.deactivate)(name)
            seen.update(row.state for row in manager.rows() if row.name in names)
        return seen

    assert set().union(*at_once(work)) <= {State.FOUND, State.INACTIVE, State.ACTIVE}
    for name in names:
        manager.activate(name)
        assert name == "counting" or manager.container.get(name) == 1


def test_making_a_service_may_activate_plugins(site, manager) -> None:
    """A service that activates plugins and a plugin that registers services do not hang."""
    install_counting(site)
    inside = threading.Event()

    def make() -> int:
        inside.set()
        manager.activate_all()
        return 3

    manager.container.register("made", make)
    with ThreadPoolExecutor(2) as pool:
        service = pool.submit(manager.container.get, "made")
        inside.wait(timeout=60)
        active = pool.submit(manager.activate, "counting")
        assert service.result(timeout=60) == 3
        active.result(timeout=60)


def test_a_thread_that_a_plugin_starts_may_use_plugins(manager) -> None:
    """It waits until the activation that started it has ended, and then goes on."""
    seen: list[State] = []
    threads: list[threading.Thread] = []

    def look() -> None:
        manager.activate_all()
        seen.extend(row.state for row in manager.rows() if row.name == "needing")

    def start() -> None:
        threads.append(threading.Thread(target=look))
        threads[0].start()

    manager.register_plugin(Needing(start))
    threads[0].join(timeout=60)
    assert seen == [State.ACTIVE]


def test_a_plugin_may_ask_for_the_others_while_it_is_activated(site, manager) -> None:
    """It is not activated again for that; those that need it wait until it is active."""
    site.install_plugin(
        "eager",
        """
        from truthgpt_core import hookimpl
        MANAGERS = []
        @hookimpl
        def register_services(registry):
            registry.register("eager", lambda: 1)
            MANAGERS[0].activate_all()
        """,
    )
    site.install_plugin("after", requires=("truthgpt-core>=0.1,<0.2", "eager-dist"))
    import eager_module

    eager_module.MANAGERS.append(manager)
    manager.activate_all()
    states = {row.name: row.state for row in manager.rows()}
    assert (states["eager"], states["after"]) == (State.ACTIVE, State.ACTIVE)


def test_a_plugin_that_activates_itself_says_so(manager) -> None:
    """Activating a plugin from its own activation is an error in one line, and no recursion."""
    manager.register_plugin(Needing(lambda: None), "other")
    manager.deactivate("other")
    asked: list[str] = []

    class Circular(Needing):
        name = "circular"

        def initialize(self, registry: object) -> None:
            with pytest.raises(PluginError) as raised:
                manager.activate("circular")
            asked.append(str(raised.value))

    manager.register_plugin(Circular(lambda: None))
    assert len(asked) == 1


def test_the_process_has_one_manager() -> None:
    """Threads that ask for the plugin manager at once get the same."""
    assert len({id(each) for each in at_once(lambda _: get_plugin_manager())}) == 1


def test_a_manager_of_its_own_has_a_lock_of_its_own() -> None:
    """Activation in one application does not wait for another application's."""
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(PluginManager(ServiceContainer()).register_plugin, Needing(wait))
        inside.wait(timeout=60)
        PluginManager(ServiceContainer()).register_plugin(Needing(lambda: None))
        assert not slow.done()
        go_on.set()
        slow.result(timeout=60)
