"""Choosing a cluster with `--on`, and what it says of mistakes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import pytest

from truthgpt_core.cluster import Cluster, ClusterError, Replicas, make_cluster
from truthgpt_core.dynamic_factory import ComponentTypeError
from truthgpt_core.errors import UsageError
from truthgpt_core.optimization import Options
from truthgpt_core.plugin_system import PluginManager


class Nodes(Options):
    nodes: int = 1
    partition: str | None = None


class Queue(Cluster[Nodes]):
    name = "queue"
    options_type = Nodes

    def map(
        self,
        make_worker: str,
        settings: Mapping[str, Any],
        tasks: Iterable[Any],
        *,
        replicas: Replicas,
    ) -> Generator[Any, None, None]:
        yield from tasks


@pytest.fixture
def clusters() -> Any:
    """The factory, with one cluster in it."""
    factory = PluginManager().factories["cluster_factory"]
    factory.register("queue", Queue)
    return factory


def test_a_cluster_gets_the_options_behind_its_name(clusters: Any) -> None:
    """In their types; those that are left out have their defaults."""
    assert make_cluster("queue", clusters).options == Nodes()
    made = make_cluster("queue:nodes=3,partition=gpu", clusters)
    assert isinstance(made, Queue)
    assert made.options == Nodes(nodes=3, partition="gpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "ray",
            'The cluster "ray" is not installed. It comes with truthgpt-plugin-ray: '
            "pip install truthgpt-plugin-ray.",
        ),
        ("queu", 'There is no cluster named "queu". Did you mean "queue"? Available: queue.'),
        ("", 'There is no cluster named "". Available: queue.'),
        ("queue:node=3", '"queue": there is no option "node" (Did you mean "nodes"?)'),
        ("queue:nodes=many", '"queue": option "nodes": Input should be a valid integer'),
        ("queue:nodes", '"nodes" of --on queue is not OPTION=VALUE'),
        ("queue:=3", '"=3" of --on queue is not OPTION=VALUE'),
    ],
)
def test_a_wrong_choice_is_one_error(clusters: Any, given: str, message: str) -> None:
    """It says what there is, or what to install."""
    with pytest.raises(UsageError) as raised:
        make_cluster(given, clusters)
    assert str(raised.value).startswith(message)


def test_a_cluster_says_what_it_cannot_do(clusters: Any) -> None:
    """One that only does tasks serves nothing, and the other way round."""
    made = make_cluster("queue", clusters)
    with pytest.raises(ClusterError, match='The cluster "queue" serves nothing'):
        made.serve("a:b", {}, host="127.0.0.1", port=0, replicas=Replicas())
    with pytest.raises(ClusterError, match='The cluster "queue" does no tasks'):
        Cluster.map(made, "a:b", {}, [], replicas=Replicas())


@pytest.mark.parametrize(
    "wrong", [{"least": 0}, {"least": 2}, {"target_ongoing_requests": float("nan")}], ids=str
)
def test_replicas_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    """None at all, fewer at most than at least, and no number of requests."""
    with pytest.raises(UsageError):
        Replicas(**wrong)


def test_the_factory_takes_clusters_alone(clusters: Any) -> None:
    """What does not fit is refused when it is registered."""
    with pytest.raises(ComponentTypeError):
        clusters.register("other", dict)
