"""A cluster on this machine, of four CPUs that there need not be, for all tests of a process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRUTHGPT_PLUGINS_BLOCK"] = ""

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests in one process: each would start a cluster of its own."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray"))
        # Ray leaves sockets and files to be closed by their finalizers.
        item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray's processes, which can import `ray_programs`."""
    import ray

    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("TRUTHGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def cluster(local_cluster: None) -> Any:
    """The cluster `ray`, as `--on ray:cpus=0.5` gives it."""
    from truthgpt_core.application import Application
    from truthgpt_core.cluster import make_cluster

    application = Application()
    application.plugins.activate("ray")
    return make_cluster("ray:cpus=0.5", application.factories["cluster_factory"])
