"""Contract of clusters: where work runs that one process of this machine is not enough for.

A cluster is registered, under its name, in `factories["cluster_factory"]`, in the hook
`register_components`. The user chooses one with `--on NAME`, or `--on NAME:OPTION=VALUE,...`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, cast

from pydantic import ValidationError

from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.errors import TruthGPTError, UsageError, meant_or_known
from truthgpt_core.optimization import Options
from truthgpt_core.optimization.options import OptionsT, wrong_options


class ClusterError(TruthGPTError):
    """A cluster cannot be had, or cannot do what is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many processes do the same work, each with a model of its own.

    Attributes:
        least: there are always as many.
        most: there are up to as many while there is work for them.
        target_ongoing_requests: of a server, how many requests each has under way on average before
            there is one more.

    Raises:
        UsageError: they are not 1 or more, or `most` is less than `least`.
    """

    least: int = 1
    most: int = 1
    target_ongoing_requests: float = 8.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(
                f"{self.least} to {self.most} replicas are asked for",
                hint="There is at least 1, and at most no fewer than at least.",
            )
        if not 0 < self.target_ongoing_requests < float("inf"):
            raise UsageError(
                f"target_ongoing_requests is {self.target_ongoing_requests}: it must be above 0"
            )


class Cluster(Generic[OptionsT]):
    """A way to run work in many processes, on this machine or on others.

    What they run is named as `"module:attribute"` and made in each of them, from settings that are
    JSON. So nothing is pickled, and every process needs the same packages and, under the same path,
    the same model.

    Args:
        options: an `options_type`, with the values that the user gave.
    """

    name: ClassVar[str]
    """What the user types after `--on`; also its name in the factory."""

    options_type: ClassVar[type[Options]] = Options
    """What can be set behind the name."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def map(
        self,
        make_worker: str,
        settings: Mapping[str, Any],
        tasks: Iterable[Any],
        *,
        replicas: Replicas,
    ) -> Generator[Any, None, None]:
        """Do tasks in several processes. A task whose process dies is done again in another one.

        Args:
            make_worker: a callable as `"module:attribute"`, which is called with `settings` in each
                process, once, and returns what is called with a task and returns its result.
            settings: JSON.
            tasks: each JSON. They are taken as they are needed, a bounded number ahead, so there
                may be more than fit into memory.
            replicas: how many processes.

        Yields:
            The result of each task, JSON, in the order in which they are done. The processes end
            when it is closed.

        Raises:
            ClusterError: the cluster cannot be had or fails.
            TruthGPTError: what a worker raised of the kind, with its message and hint.
        """
        raise ClusterError(f'The cluster "{self.name}" does no tasks')

    def serve(
        self,
        make_app: str,
        settings: Mapping[str, Any],
        *,
        host: str,
        port: int,
        replicas: Replicas,
    ) -> AbstractContextManager[str]:
        """Serve an ASGI application with several processes at one address.

        A request whose process dies goes to another one, unless its answer is streamed
        (`text/event-stream`) and has begun: such a stream ends with an event `error`. So the
        application is asked twice, and must be one for which that does no harm.

        Args:
            make_app: a callable as `"module:attribute"`, which is called with `settings` in each
                process, once, and returns an ASGI application. It answers `GET /livez` with a
                status below 400 as long as the process is well; one that is not is replaced.
            settings: JSON.
            host: where to listen.
            port: where to listen; 0 for any that is free.
            replicas: how many processes.

        Returns:
            A context that gives the URL, when all processes that there are at least are ready, and
            that ends the server when it is left.

        Raises:
            ClusterError: the cluster cannot be had or fails, or nothing can listen there.
            TruthGPTError: what `make_app` raised of the kind, with its message and hint.
        """
        raise ClusterError(f'The cluster "{self.name}" serves nothing')


def same_everywhere(name: str) -> str:
    """Return what a user typed for a model so that a process in another directory finds it.

    Args:
        name: a path, which becomes absolute, or something else, which stays as it is.
    """
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def make_cluster(given: str, clusters: DynamicFactory[Cluster[Any]]) -> Cluster[Any]:
    """Make the cluster that the user chose.

    Args:
        given: a name, or `NAME:OPTION=VALUE,OPTION=VALUE`.
        clusters: the factory `cluster_factory`.

    Raises:
        UsageError: there is none of that name, with what to install if that is known; or an
            option is unknown or has a wrong value.
        FactoryError: its plugin cannot be imported.
    """
    name, _, rest = given.partition(":")
    if name not in clusters:
        missing = clusters.distribution_of(name)
        names = clusters.names()
        have = f"Available: {', '.join(names)}." if names else "None is installed."
        if missing is not None:
            raise UsageError(
                f'The cluster "{name}" is not installed',
                hint=f"It comes with {missing}: pip install {missing}.",
            )
        raise UsageError(
            f'There is no cluster named "{name:.100}"', hint=meant_or_known(name, names, have)
        )
    kind = clusters.get_class(name)
    options: dict[str, str] = {}
    for each in filter(None, rest.split(",")):
        option, equals, value = each.partition("=")
        if not equals or not option.strip():
            raise UsageError(f'"{each:.60}" of --on {name} is not OPTION=VALUE')
        options[option.strip()] = value
    try:
        chosen = kind.options_type(**cast(Any, options))
    except ValidationError as error:
        raise UsageError(wrong_options(name, kind.options_type, error)) from None
    return clusters.create(name, chosen)
