"""Closing a container: what is closed, in which order, and what happens if that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from truthgpt_core.service_registry import (
    ServiceClosedError,
    ServiceCloseError,
    ServiceContainer,
    ServiceCycleError,
    ServiceError,
)


class Log(list[str]):
    """What was closed, in order."""

    def service(self, name: str, error: BaseException | None = None) -> Any:
        log = self

        class Service:
            def close(self) -> None:
                log.append(name)
                if error is not None:
                    raise error

        return Service()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def container(log: Log) -> Iterator[ServiceContainer]:
    """A container in which a is built on b, and b on c."""
    with ServiceContainer() as container:
        container.register("c", lambda: log.service("c"))
        container.register("b", lambda c: log.service("b"))
        container.register("a", lambda b: log.service("a"))
        yield container


def test_dependents_are_closed_first(container: ServiceContainer, log: Log) -> None:
    """What was built on a service is closed before it."""
    container.get("a")
    container.close()
    assert log == ["a", "b", "c"]


def test_what_was_not_built_is_not_closed(container: ServiceContainer, log: Log) -> None:
    """Closing closes what is there and builds nothing for it."""
    container.get("c")
    container.close()
    assert log == ["c"]


def test_closing_again_does_nothing(container: ServiceContainer, log: Log) -> None:
    """A second `close` closes nothing twice."""
    container.get("c")
    container.close()
    container.close()
    assert log == ["c"]


def test_with_block_closes_the_container(log: Log) -> None:
    """A container is a context manager, which closes it at the end of the block."""
    with ServiceContainer() as container:
        container.register("c", lambda: log.service("c"))
        container.get("c")
        assert log == []
    assert log == ["c"]


@pytest.mark.parametrize("name", ["a", "t", "absent"])
def test_nothing_is_got_after_closing(container: ServiceContainer, name: str) -> None:
    """`get` on a closed container is an error, also for what was built before."""
    container.register("t", lambda: 1, singleton=False)
    container.get("a")
    container.get("t")
    container.close()
    with pytest.raises(ServiceClosedError):
        container.get(name)


def test_what_a_constructor_got_is_closed_after_it(container: ServiceContainer, log: Log) -> None:
    """A service that a constructor got from the container is closed after what it is for."""

    def user() -> Any:
        container.get("c")
        return log.service("user")

    container.register("user", user)
    container.get("user")
    container.close()
    assert log == ["user", "c"]


def test_what_a_constructor_could_not_get_is_closed_before_it(
    container: ServiceContainer, log: Log
) -> None:
    """A constructor that gets its own dependent, and does without, is closed after it."""

    def base() -> Any:
        with pytest.raises(ServiceCycleError):
            container.get("user")
        return log.service("base")

    container.register("base", base)
    container.register("user", lambda base: log.service("user"))
    container.get("base")
    container.get("user")
    container.close()
    assert log == ["user", "base"]


def test_dependency_through_a_transient_is_closed_after(
    container: ServiceContainer, log: Log
) -> None:
    """A singleton is closed before what a transient service between them needs."""
    container.register("between", lambda c: [c], singleton=False)
    container.register("user", lambda between: log.service("user"))
    container.get("user")
    container.close()
    assert log == ["user", "c"]


def test_given_instances_and_transient_services_are_not_closed(
    container: ServiceContainer, log: Log
) -> None:
    """What the container was given, or gave away, belongs to the caller."""
    container.register("given", log.service("given"))
    container.register("alias", lambda given: given)
    container.register("transient", lambda: log.service("transient"), singleton=False)
    for name in ("given", "alias", "transient"):
        container.get(name)
    container.close()
    assert log == []


def test_service_with_two_names_is_closed_once(container: ServiceContainer, log: Log) -> None:
    """A factory that returns another service makes an alias, which is not closed twice."""
    container.register("alias", lambda c: c)
    container.get("alias")
    container.close()
    assert log == ["c"]


def test_failing_close_does_not_stop_the_others(container: ServiceContainer, log: Log) -> None:
    """All are closed, then one error names each that failed."""
    container.register("failing", lambda c: log.service("failing", ValueError("stuck")))
    container.register("other", lambda failing: log.service("other"))
    container.get("other")
    container.get("a")
    with pytest.raises(ServiceCloseError, match='"failing": ValueError: stuck') as caught:
        container.close()
    assert list(caught.value.errors) == ["failing"]
    assert sorted(log) == ["a", "b", "c", "failing", "other"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_while_closing_passes_after_all_are_closed(
    container: ServiceContainer, log: Log, kind: type[BaseException]
) -> None:
    """Ctrl-C in a `close` is raised as it is, and leaves nothing open."""
    container.register("interrupted", lambda b: log.service("interrupted", kind()))
    container.register("failing", lambda b: log.service("failing", ValueError("stuck")))
    container.get("interrupted")
    container.get("failing")
    with pytest.raises(kind) as caught:
        container.close()
    assert log == ["failing", "interrupted", "b", "c"]
    assert isinstance(caught.value.__cause__, ServiceCloseError)


def test_service_may_close_its_container(container: ServiceContainer, log: Log) -> None:
    """A `close` that closes the container again does no harm."""

    class User:
        close: Callable[[], None] = container.close

    container.register("user", lambda c: User())
    container.get("user")
    container.close()
    assert log == ["c"]


def test_constructor_that_closes_the_container_makes_no_service(
    container: ServiceContainer, log: Log
) -> None:
    """What was being built while the container was closed is closed as well."""

    def user(c: Any) -> Any:
        container.close()
        return log.service("user")

    container.register("user", user)
    with pytest.raises(ServiceError, match='"user" was changed while it was being built'):
        container.get("user")
    assert log == ["c", "user"]
