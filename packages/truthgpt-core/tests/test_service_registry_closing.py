"""Closing services in order, and overriding them for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from truthgpt_core.service_registry import (
    MissingDependencyError,
    Provider,
    ServiceClosedError,
    ServiceCloseError,
    ServiceContainer,
    ServiceCycleError,
    UnknownServiceError,
)


class Log(list[str]):
    """What was closed, in order."""

    def service(self, name: str) -> Any:
        log = self

        class Service:
            def close(self) -> None:
                log.append(name)

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


# Closing


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


@pytest.mark.parametrize("name", ["a", "t", "absent"])
def test_nothing_is_got_after_closing(container: ServiceContainer, name: str) -> None:
    """`get` on a closed container is an error, also for what was built before."""
    container.register("t", lambda: 1, singleton=False)
    container.get("a")
    container.get("t")
    container.close()
    with pytest.raises(ServiceClosedError):
        container.get(name)


def test_no_scope_is_opened_after_closing(container: ServiceContainer) -> None:
    """A closed container opens no scopes."""
    container.close()
    with pytest.raises(ServiceClosedError), container.scope():
        pass


def test_generator_function_is_finished(container: ServiceContainer, log: Log) -> None:
    """What follows the yield runs on closing, before what the function needed is closed."""

    def opened(c: Any) -> Iterator[str]:
        yield "service"
        log.append("after yield")

    container.register("opened", opened)
    assert container.get("opened") == "service"
    assert log == []
    container.close()
    assert log == ["after yield", "c"]


def test_what_a_generator_function_got_by_hand_is_closed_after_it(
    container: ServiceContainer, log: Log
) -> None:
    """A service that was got inside a generator function outlives it."""

    def opened() -> Iterator[str]:
        container.get("c")
        yield "service"
        log.append("after yield")

    container.register("opened", opened)
    container.get("opened")
    container.close()
    assert log == ["after yield", "c"]


def test_dependency_through_a_transient_is_closed_after(
    container: ServiceContainer, log: Log
) -> None:
    """A singleton is closed before what a transient service between them needs."""
    container.register("between", lambda c: c, singleton=False)
    container.register("user", lambda between: log.service("user"))
    container.get("user")
    container.close()
    assert log == ["user", "c"]


def test_what_a_provider_brought_is_closed_after_its_user(
    container: ServiceContainer, log: Log
) -> None:
    """A service that was built later, by a provider, outlives the holder of the provider."""

    def user(late: Provider[Any]) -> Any:
        service = log.service("user")
        service.late = late
        return service

    container.register("user", user)
    container.register("late", lambda c: log.service("late"))
    container.get("user").late()
    container.close()
    assert log == ["user", "late", "c"]


def test_cycle_through_a_provider_is_closed_from_its_dependent(
    container: ServiceContainer, log: Log
) -> None:
    """Where two need each other, the one that was built on the other is closed first."""

    def parent(child: Provider[Any]) -> Any:
        return log.service("parent")

    container.register("parent", parent)
    container.register("child", lambda parent: log.service("child"))
    container.get("child")
    container.close()
    assert log == ["child", "parent"]


def test_given_instance_is_not_closed(container: ServiceContainer, log: Log) -> None:
    """An instance that the container did not make belongs to whoever gave it."""
    container.register("given", log.service("given"))
    container.get("given")
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

    def failing(c: Any) -> Iterator[int]:
        yield 1
        raise ValueError("stuck")

    container.register("failing", failing)
    container.register("other", lambda failing: log.service("other"))
    container.get("other")
    container.get("a")
    with pytest.raises(ServiceCloseError, match='"failing": ValueError: stuck') as caught:
        container.close()
    assert list(caught.value.errors) == ["failing"]
    assert sorted(log) == ["a", "b", "c", "other"]


def test_generator_function_that_yields_twice_is_told(container: ServiceContainer) -> None:
    """A second yield is an error on closing."""

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    container.register("twice", twice)
    container.get("twice")
    with pytest.raises(ServiceCloseError, match="yielded twice"):
        container.close()


def test_service_can_get_its_dependency_while_it_is_closed(
    container: ServiceContainer, log: Log
) -> None:
    """What a service depends on is still there while the service is being closed."""

    def user(c: Provider[Any]) -> Iterator[int]:
        yield 1
        log.append("still there" if c() is service else "gone")

    container.register("user", user)
    service = container.get("c")
    container.get("user")
    container.close()
    assert log == ["still there", "c"]


def test_what_was_got_by_hand_outlives_it_though_it_has_a_provider(
    container: ServiceContainer, log: Log
) -> None:
    """A service got inside a generator function is open after the yield, whatever it brought."""

    def holder(late: Provider[Any]) -> Any:
        service = log.service("holder")
        service.late = late
        return service

    def opened() -> Iterator[str]:
        container.get("holder")
        yield "service"
        log.append("after yield")

    container.register("holder", holder)
    container.register("late", lambda: log.service("late"))
    container.register("opened", opened)
    container.get("opened")
    container.get("holder").late()
    container.close()
    assert log == ["after yield", "holder", "late"]


def test_what_was_asked_for_in_vain_is_closed_by_what_it_needs(
    container: ServiceContainer, log: Log
) -> None:
    """A constructor that asks for its own dependent, and does without, is closed after it."""

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


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_while_closing_passes_after_all_are_closed(
    container: ServiceContainer, log: Log, kind: type[BaseException]
) -> None:
    """Ctrl-C in a `close` is raised as it is, and leaves nothing open."""

    def interrupted(b: Any) -> Iterator[int]:
        yield 1
        raise kind

    def failing(b: Any) -> Iterator[int]:
        yield 1
        raise ValueError("stuck")

    container.register("interrupted", interrupted)
    container.register("failing", failing)
    container.get("interrupted")
    container.get("failing")
    with pytest.raises(kind) as caught:
        container.close()
    assert log == ["b", "c"]
    assert isinstance(caught.value.__cause__, ServiceCloseError)


def test_with_block_closes_the_container(log: Log) -> None:
    """A container is a context manager, which closes it at the end of the block."""
    with ServiceContainer() as container:
        container.register("c", lambda: log.service("c"))
        container.get("c")
        assert log == []
    assert log == ["c"]


def test_scope_finishes_its_generator_functions(container: ServiceContainer, log: Log) -> None:
    """What follows the yield of a scoped generator function runs at the end of the scope."""

    def session(c: Any) -> Iterator[str]:
        yield "session"
        log.append("after yield")

    container.register("session", session, lifetime="scoped")
    with container.scope() as scope:
        assert scope.get("session") == "session"
        assert log == []
    assert log == ["after yield"]


def test_scope_closes_what_is_scoped_at_its_end(container: ServiceContainer, log: Log) -> None:
    """The end of a scope closes what was made for it and leaves the singletons."""
    container.register("session", lambda c: log.service("session"), lifetime="scoped")
    container.register("job", lambda session: log.service("job"), lifetime="scoped")
    with container.scope() as scope:
        scope.get("job")
        assert log == []
    assert log == ["job", "session"]


def test_closed_scope_gives_nothing(container: ServiceContainer) -> None:
    """After its block, a scope is closed, also for singletons."""
    with container.scope() as scope:
        scope.get("a")
    with pytest.raises(ServiceClosedError, match="scope"):
        scope.get("a")


def test_container_closes_open_scopes_first(container: ServiceContainer, log: Log) -> None:
    """Closing the container closes what is scoped before the singletons, and only once."""
    container.register("session", lambda c: log.service("session"), lifetime="scoped")
    with container.scope() as scope:
        scope.get("session")
        container.close()
        assert log == ["session", "c"]
    assert log == ["session", "c"]


def test_replacing_closes_what_was_built_on_it(container: ServiceContainer, log: Log) -> None:
    """Replacing a service closes it after its dependents, and nothing else."""
    container.get("a")
    container.register("b", lambda c: log.service("new b"), replace=True)
    assert log == ["a", "b"]


def test_replacing_closes_in_open_scopes(container: ServiceContainer, log: Log) -> None:
    """What an open scope built on a replaced service is closed and built anew."""
    container.register("session", lambda c: log.service("session"), lifetime="scoped")
    with container.scope() as scope:
        session = scope.get("session")
        container.register("c", lambda: log.service("new c"), replace=True)
        assert log == ["session", "c"]
        assert scope.get("session") is not session


# Overriding


def test_override_rebuilds_what_was_built_on_it(container: ServiceContainer) -> None:
    """In the block, dependents are built on the override, and others are as before."""
    container.register("list", lambda b: [b])
    container.get("list")
    c = container.get("c")
    with container.override("b", "fake"):
        assert container.get("list") == ["fake"]
        assert container.get("c") is c


def test_override_restores_the_old_instances(container: ServiceContainer, log: Log) -> None:
    """After the block, the old instances are back and were not closed."""
    before = [container.get(name) for name in "abc"]
    with container.override("b", "fake"):
        assert container.get("a") is not before[0]
    assert log == ["a"]
    assert [container.get(name) for name in "abc"] == before
    container.close()
    assert log == ["a", "a", "b", "c"]


def test_override_is_over_when_the_block_fails(container: ServiceContainer) -> None:
    """An error in the block ends the override as well."""
    before = container.get("b")
    with pytest.raises(LookupError), container.override("b", "fake"):
        raise LookupError
    assert container.get("b") is before


def test_what_an_override_made_is_closed(container: ServiceContainer, log: Log) -> None:
    """An override that the container made is closed at the end, after its dependents."""
    with container.override("b", lambda: log.service("fake b")):
        container.get("a")
    assert log == ["a", "fake b"]


def test_override_is_found_by_annotation() -> None:
    """A fake of another class is injected wherever the class it overrides is asked for."""

    class Real:
        pass

    class User:
        def __init__(self, thing: Real) -> None:
            self.thing = thing

    container = ServiceContainer()
    container.register("real", Real)
    container.register("user", User)
    with container.override("real", "fake"):
        assert container.get("user").thing == "fake"


def test_overrides_nest(container: ServiceContainer) -> None:
    """An inner override of the same name is undone to the outer one."""
    with container.override("b", "outer"):
        with container.override("b", "inner"):
            assert container.get("b") == "inner"
        assert container.get("b") == "outer"


def test_overriding_an_unknown_name_suggests_one(container: ServiceContainer) -> None:
    """Only what is registered can be overridden."""
    container.register("engine", object())
    with (
        pytest.raises(UnknownServiceError, match='Did you mean "engine"'),
        container.override("engin", 1),
    ):
        pass


def test_override_that_needs_what_is_absent_is_judged(container: ServiceContainer) -> None:
    """The graph is judged with the override in it, and again without."""
    with container.override("b", lambda absent: 1), pytest.raises(MissingDependencyError):
        container.get("b")
    container.get("b")


def test_override_reaches_open_scopes(container: ServiceContainer) -> None:
    """A scope that was open before sees the override, and its old instance afterwards."""
    container.register("session", lambda c: [c], lifetime="scoped")
    with container.scope() as scope:
        before = scope.get("session")
        with container.override("c", "fake"):
            assert scope.get("session") == ["fake"]
        assert scope.get("session") is before


@pytest.mark.parametrize("name", ["b", "c"])
def test_change_below_an_override_outlives_it(
    container: ServiceContainer, log: Log, name: str
) -> None:
    """What was set aside is not restored if it, or what it was built on, was replaced since."""
    before = container.get("a")
    with container.override("b", "fake"):
        new = (lambda c: log.service("new")) if name == "b" else (lambda: log.service("new"))
        container.register(name, new, replace=True)
        assert container.get("b") == "fake"
    assert log == (["a", "b"] if name == "b" else ["a", "b", "c"])
    assert container.get("a") is not before
    container.close()
    assert log.count("new") == 1


def test_new_dependency_of_what_is_overridden_outlives_the_override(
    container: ServiceContainer,
) -> None:
    """What was set aside is not restored if it would now be built with more than it was."""
    container.register("user", lambda extra="default": [extra])
    container.get("user")
    with container.override("user", "fake"):
        container.register("extra", "real")
    assert container.get("user") == ["real"]


def test_container_closed_under_an_override_closes_what_was_set_aside(
    container: ServiceContainer, log: Log
) -> None:
    """Instances that cannot be restored to a closed container are closed, in their order."""
    container.get("a")
    with container.override("b", "fake"):
        container.close()
    assert log == ["a", "b", "c"]
