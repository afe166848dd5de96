"""The command `truthgpt train` in several processes, forked from one that has imported torch.

As a script it reads a list of jobs as JSON from standard input, does one after another, and
writes, for each, the exit codes of its processes and what each of them said. A job has
`processes`; `arguments`, what follows `truthgpt train`; and, if something is to happen,
`signal`, `rank` and `at`: that process sends it to itself when it computes its batch of that
number, from 1.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from truthgpt_core.cli.main import main
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import get_plugin_manager


class Signalling:
    """A plugin that sends this process a signal when a batch is computed."""

    def __init__(self, number: int, at: int) -> None:
        self.number, self.at, self.count = number, at, 0

    @hookimpl(wrapper=True)
    def make_training_step(self) -> Any:
        step = yield

        def signalling(batch: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.number)
            return step(batch)

        return signalling


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Run the processes of a job to their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        logs = [Path(directory, str(rank)) for rank in range(job["processes"])]
        children = []
        for rank, log in enumerate(logs):
            child = os.fork()
            if child == 0:
                _become(job, rank, port, log)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return {"codes": codes, "said": [log.read_text() for log in logs]}


def _become(job: dict[str, Any], rank: int, port: int, log: Path) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(said, stream)
    if job["processes"] > 1:
        os.environ.update(
            WORLD_SIZE=str(job["processes"]),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(job["processes"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    if job.get("rank") == rank:
        get_plugin_manager().register_plugin(Signalling(job["signal"], job["at"]))
    sys.argv = ["truthgpt", "train", *map(str, job["arguments"])]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    os.environ["TRUTHGPT_PLUGINS"] = "services,accelerate,Signalling"
    warnings.simplefilter("ignore")
    for name in (
        "rich.console",
        "transformers.optimization",
        "truthgpt_plugin_accelerate.backend",
        "truthgpt_services.commands.train",
        "truthgpt_services.services.training_job",
        "truthgpt_services.training.metrics_log",
    ):
        import_module(name)
    get_plugin_manager().activate_all()
    json.dump([do(job) for job in json.load(sys.stdin)], sys.stdout)
