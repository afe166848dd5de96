"""Services used by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from truthgpt_core.service_registry import ServiceContainer

TIMEOUT = 20


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the calls return when threads start them together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(TIMEOUT)
        return call()

    pool = ThreadPoolExecutor(len(calls))
    try:
        return [future.result(TIMEOUT) for future in [pool.submit(run, call) for call in calls]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def slow(made: list[str], name: str) -> object:
    """Make a service slowly enough for every other thread to come and want it, too."""
    threading.Event().wait(0.05)
    made.append(name)
    return object()


def test_racing_threads_get_one_singleton() -> None:
    """Eight threads that ask at once get the one instance that is made."""
    made: list[str] = []
    container = ServiceContainer()
    container.register("s", lambda: slow(made, "s"))
    got = at_once([lambda: container.get("s")] * 8)
    assert made == ["s"]
    assert len(set(map(id, got))) == 1


def test_racing_threads_get_one_instance_of_what_fails_the_first_time() -> None:
    """One of eight threads gets the error, and the others the one instance that is made then."""
    attempts: list[str] = []
    container = ServiceContainer()

    def flaky() -> object:
        slow(attempts, "attempt")
        if len(attempts) == 1:
            raise OSError("not yet")
        return object()

    container.register("s", flaky)

    def get() -> object:
        try:
            return container.get("s")
        except OSError as error:
            return error

    got = at_once([get] * 8)
    assert len(attempts) == 2
    (failure,) = (one for one in got if isinstance(one, OSError))
    assert len({id(one) for one in got if one is not failure}) == 1


def test_transient_services_of_racing_threads_share_singletons() -> None:
    """Threads that get transient services build the singleton that those need once."""
    made: list[str] = []
    container = ServiceContainer()
    container.register("pool", lambda: slow(made, "pool"))
    container.register("session", lambda pool: [pool], singleton=False)
    container.register("job", lambda session: [session], singleton=False)
    got = at_once([lambda: container.get("job")] * 8)
    assert made == ["pool"]
    assert len({id(job[0]) for job in got}) == 8
    assert len({id(job[0][0]) for job in got}) == 1


def test_services_may_be_replaced_while_threads_use_them() -> None:
    """A get never fails or mixes old and new parts while another thread replaces them."""
    container = ServiceContainer()
    done = threading.Event()
    container.register("part", lambda: 0)
    container.register("left", lambda part: part)
    container.register("right", lambda part: part)
    container.register("both", lambda left, right: (left, right))

    def replace() -> None:
        for number in range(1, 101):
            container.register("part", lambda number=number: number, replace=True)
        done.set()

    def use() -> set[Any]:
        got = set()
        while not done.is_set():
            got.add(container.get("both"))
        return got

    uses = at_once([replace, *[use] * 4])[1:]
    assert all(left == right for got in uses for left, right in got)
    assert container.get("both") == (100, 100)


def test_threads_entering_from_different_ends_finish() -> None:
    """Constructors that get other services by hand do not lock each other out."""
    made: list[str] = []
    container = ServiceContainer()

    def left() -> object:
        slow(made, "left")
        return container.get("middle")

    def right() -> object:
        slow(made, "right")
        return container.get("middle")

    def middle(base: object) -> object:
        return slow(made, "middle")

    container.register("left", left)
    container.register("right", right)
    container.register("middle", middle)
    container.register("base", lambda: slow(made, "base"))
    ends = ["left", "right", "middle", "base"]
    got = at_once([lambda name=name: container.get(name) for name in ends * 2])  # type: ignore[misc]
    assert sorted(made) == sorted(ends)
    assert got[:4] == got[4:]


def test_thread_that_waited_for_a_replaced_service_gets_the_new_one() -> None:
    """A replacement that comes while a thread waits to build is what that thread builds."""
    container = ServiceContainer()
    building, go_on = threading.Event(), threading.Event()

    def blocker() -> object:
        building.set()
        assert go_on.wait(TIMEOUT)
        container.register("s", lambda: "new", replace=True)
        return object()

    def fails() -> object:
        raise LookupError

    container.register("blocker", blocker)
    container.register("s", lambda: "old")
    container.register("fails", fails)
    container.register("both", lambda fails, s: s, singleton=False)
    with pytest.raises(LookupError):  # from here on, how to build s is known, and s not built
        container.get("both")
    with ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(container.get, "blocker")
        assert building.wait(TIMEOUT)
        waiting = pool.submit(container.get, "s")
        threading.Event().wait(0.1)  # for it to have come as far as it can
        go_on.set()
        blocked.result(TIMEOUT)
        assert waiting.result(TIMEOUT) == "new"
    assert container.get("s") == "new"
