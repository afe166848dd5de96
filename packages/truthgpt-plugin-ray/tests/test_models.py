"""`truthgpt serve MODEL --on ray`: the server of truthgpt-plugin-serve on replicas."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from truthgpt_services.testing import write_tiny_model

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("truthgpt_plugin_serve", reason="truthgpt-plugin-serve is not installed")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_replica_that_is_killed_under_load_fails_no_request(tmp_path: Path) -> None:
    """Clients that do not try again get their answers, and SIGTERM ends the command with 0."""
    model = tmp_path / "tiny"
    template = "{% for each in messages %}{{ each['content'] }}\n{% endfor %}"
    write_tiny_model(model, chat_template=template)
    truthgpt = Path(sys.executable).with_name("truthgpt")
    command = [truthgpt, "serve", model, "--port", "0", "--engine", "torch"]
    with subprocess.Popen(
        [*command, "--on", "ray:cpus=0.5", "--replicas", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        try:
            assert server.stderr is not None
            said = ""
            for line in server.stderr:
                said += line
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError(said)
            threading.Thread(target=server.stderr.read, daemon=True).start()
            url = found[0]
            statuses: list[int] = []
            killed = threading.Event()

            def ask(number: int) -> None:
                body = {"messages": [{"role": "user", "content": str(number)}], "max_tokens": 40}
                request = urllib.request.Request(
                    f"{url}/chat/completions",
                    json.dumps({"model": "tiny", **body}).encode(),
                    {"Content-Type": "application/json"},
                )
                try:
                    with urllib.request.urlopen(request, timeout=120) as answer:
                        statuses.append(answer.status)
                except urllib.error.HTTPError as error:
                    statuses.append(error.code)
                if len(statuses) == 40:
                    _kill_a_replica(server.pid)
                    killed.set()

            with ThreadPoolExecutor(8) as threads:
                list(threads.map(ask, range(200)))
            assert killed.is_set()
            assert statuses == [200] * 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def _kill_a_replica(pid: int) -> None:
    """Kill one of the processes that hold the model."""
    session = psutil.Process(pid).children(recursive=True)
    found = [each for each in session if "ServeReplica" in " ".join(each.cmdline())]
    assert found, session
    found[0].kill()
