"""Tasks through Ray Data: a pool of actors, each with a worker of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import ray.data

from truthgpt_core.cluster import Replicas
from truthgpt_core.errors import TruthGPTError
from truthgpt_plugin_ray.settings import RayOptions
from truthgpt_plugin_ray.work import Made, as_json

_ROUND = 4096
"""Tasks that Ray is given at once. Before the next as many, its actors end and begin anew."""


def map_tasks(
    make_worker: str,
    settings: Mapping[str, Any],
    tasks: Iterable[Any],
    options: RayOptions,
    replicas: Replicas,
) -> Iterator[str]:
    """Do tasks; see `Cluster.map`.

    Yields:
        For each task, JSON: an object with its `result`, or with `error` and `hint`.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    left = iter(tasks)
    with _quiet():
        while some := [{"task": json.dumps(each)} for each in islice(left, _ROUND)]:
            least, most = (min(each, len(some)) for each in (replicas.least, replicas.most))
            # A block is what a result comes back with, and what is done again if a process dies.
            given = ray.data.from_items(some, override_num_blocks=len(some))
            done = given.map_batches(
                Worker,
                fn_constructor_args=(make_worker, json.dumps(settings)),
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
                num_cpus=options.cpus,
                num_gpus=options.gpus or None,
            )
            for row in done.iter_rows():
                yield str(row["answer"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from drawing progress; the one who asked for the tasks shows it."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


class Worker:
    """One process of the pool.

    Args:
        make_worker: as for `Cluster.map`.
        settings: JSON.
    """

    def __init__(self, make_worker: str, settings: str) -> None:
        self._made = Made(make_worker, json.loads(settings))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the tasks of a batch."""
        return {"answer": [self._answer(each) for each in batch["task"]]}

    def _answer(self, task: str) -> str:
        if self._made.error is not None:
            return json.dumps(self._made.error)
        try:
            return json.dumps({"result": self._made.value(json.loads(task))})
        except TruthGPTError as error:
            return json.dumps(as_json(error))
