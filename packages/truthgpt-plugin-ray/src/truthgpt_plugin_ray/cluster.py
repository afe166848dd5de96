"""The cluster `ray`, and connecting to one or starting it on this machine. Ray is imported late."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from truthgpt_core.cluster import Cluster, ClusterError, Replicas
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_plugin_ray.settings import RayOptions


class RayCluster(Cluster[RayOptions]):
    """Ray: Ray Data does tasks, Ray Serve serves."""

    name = "ray"
    options_type = RayOptions

    def map(
        self,
        make_worker: str,
        settings: Mapping[str, Any],
        tasks: Iterable[Any],
        *,
        replicas: Replicas,
    ) -> Generator[Any, None, None]:
        """Do tasks with a pool of actors of Ray Data."""
        from truthgpt_plugin_ray.data import map_tasks

        with _connected(self.options, replicas), _explained():
            found = map_tasks(make_worker, settings, tasks, self.options, replicas)
            for text in found:
                answer = json.loads(text)
                if "error" in answer:
                    raise ClusterError(answer["error"], hint=answer["hint"])
                yield answer["result"]

    @contextmanager
    def serve(
        self,
        make_app: str,
        settings: Mapping[str, Any],
        *,
        host: str,
        port: int,
        replicas: Replicas,
    ) -> Iterator[str]:
        """Serve with replicas of Ray Serve, and a gateway to them in this process."""
        from truthgpt_plugin_ray.gateway import Gateway, listening
        from truthgpt_plugin_ray.serving import deployed

        with (
            # First: a port that is taken is said before a model is loaded.
            listening(host, port) as listener,
            _connected(self.options, replicas),
            _explained(),
            deployed(make_app, settings, self.options, replicas) as handle,
            listener.answer(Gateway(handle)) as url,
        ):
            yield url


@contextmanager
def _connected(options: RayOptions, replicas: Replicas) -> Iterator[None]:
    """Use the cluster that this program is connected to, connect to one, or start one here."""
    # Neither a report to the makers of Ray nor lines about what is running, unless asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            f"Ray cannot be imported: {in_one_line(error)}",
            hint='pip install --force-reinstall "ray[data,serve]".',
        ) from error
    if ray.is_initialized():
        _refuse_too_little(options, replicas)
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ClusterError(
            f"There is no Ray cluster at {address}: {in_one_line(error)}",
            hint="`ray status` looks at it; without an address one is started on this machine.",
        ) from error
    try:
        if address == "local":
            _refuse_too_little(options, replicas)
        yield
    finally:
        ray.shutdown()


def _refuse_too_little(options: RayOptions, replicas: Replicas) -> None:
    """Refuse what would wait forever for resources that the cluster does not have."""
    import ray

    have: Mapping[str, float] = ray.cluster_resources()
    for name, option, each in (("CPU", "cpus", options.cpus), ("GPU", "gpus", options.gpus)):
        needed, there = each * replicas.least, have.get(name, 0.0)
        if needed > there:
            raise ClusterError(
                f"{replicas.least} replicas take {needed:g} {name}s, and the cluster has {there:g}",
                hint=f"Fewer --replicas, or less for each: --on ray:{option}="
                f"{there / replicas.least:.2g}."
                if there
                else "Fewer --replicas, or another cluster.",
            )


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Ray raises into one error."""
    from ray.exceptions import RayError

    try:
        yield
    except TruthGPTError:
        raise
    except RayError as error:
        raise ClusterError(f"Ray failed: {in_one_line(error):.1000}") from error
