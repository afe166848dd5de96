"""A server on a cluster: what a client sees, also when a process dies under it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.cluster import ClusterError, Replicas

pytest.importorskip("ray", reason="ray is not installed")

TWO = Replicas(least=2, most=2)
SECONDS = 60


def get(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Ask once; return status, headers and JSON."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def until(is_so: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes(url: str) -> set[int]:
    """Those that answer."""
    with ThreadPoolExecutor(8) as pool:
        return {each[2]["process"] for each in pool.map(get, [f"{url}/slow"] * 16)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the application leaves marks."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def url(local_cluster: None, folder: Path) -> Iterator[str]:
    """A server of two processes."""
    from truthgpt_plugin_ray.cluster import RayCluster
    from truthgpt_plugin_ray.settings import RayOptions

    cluster = RayCluster(RayOptions(cpus=0.5))
    settings = {"folder": str(folder)}
    with cluster.serve(
        "ray_programs:App", settings, host="127.0.0.1", port=0, replicas=TWO
    ) as address:
        yield address
    until(lambda: list(folder.glob("ended-*")))


def test_requests_and_answers_pass_unchanged(url: str) -> None:
    """Method, path, query, headers and body there; status, headers and body back."""
    status, headers, said = get(f"{url}/echo?a=1&b=%20", b"caf\xc3\xa9", **{"X-Mine": "1"})
    assert (status, headers["x-app"]) == (418, "yes")
    assert said == {
        "method": "POST",
        "query": "a=1&b=%20",
        "body": "café",
        "headers": [["x-mine", "1"]],
    }


def test_all_processes_answer_and_have_begun(url: str) -> None:
    """The lifespan of each application was begun before its first request."""
    until(lambda: len(processes(url)) == 2)
    assert get(f"{url}/")[2]["began"] is True


def test_a_process_that_is_killed_fails_no_request(url: str) -> None:
    """Not one of many clients, none of which tries again, sees an error."""
    (victim, *_) = processes(url)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(get, f"{url}/slow") for _ in range(120)]
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        answers = [each.result() for each in asked]
    assert {status for status, _, _ in answers} == {200}
    until(lambda: len(processes(url) - {victim}) == 2)


def test_a_stream_that_is_cut_off_ends_with_an_error_event(url: str) -> None:
    """What was sent before stays whole."""
    with urllib.request.urlopen(f"{url}/stream", timeout=SECONDS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        victim = int(answer.readline().removeprefix(b"data: "))
        os.kill(victim, signal.SIGKILL)
        events = answer.read().decode().strip().split("\n\n")
    assert set(events[:-1]) <= {f"data: {victim}", ""}
    name, data = events[-1].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "server_error"
    until(lambda: len(processes(url) - {victim}) == 2)


def test_a_client_that_goes_ends_its_stream(url: str, folder: Path) -> None:
    """The application does not work for nobody."""
    (folder / "stream-ended").unlink(missing_ok=True)
    with urllib.request.urlopen(f"{url}/stream", timeout=SECONDS) as answer:
        answer.readline()
    until((folder / "stream-ended").exists)


def test_a_process_that_is_ill_is_replaced(url: str) -> None:
    """Once `/livez` says so."""
    ill = get(f"{url}/ill")[2]["process"]
    until(lambda: len(found := processes(url)) == 2 and ill not in found)


def test_an_error_of_the_application_is_an_answer(url: str) -> None:
    """And not tried on every process."""
    status, _, said = get(f"{url}/error")
    assert status == 500
    assert said["error"]["type"] == "server_error"


def test_an_application_that_cannot_be_made_is_one_error(cluster: Any) -> None:
    """With its hint."""
    with (
        pytest.raises(ClusterError, match=r"There is no such model\. Name another\."),
        cluster.serve("ray_programs:refuse", {}, host="127.0.0.1", port=0, replicas=TWO),
    ):
        pass


def test_an_application_that_is_not_there_is_one_error(cluster: Any) -> None:
    """As of a package that only this process has; nothing stays behind."""
    from ray import serve

    before = set(serve.status().applications)
    with (
        pytest.raises(ClusterError, match="nothing_here:App failed: ModuleNotFoundError"),
        cluster.serve("nothing_here:App", {}, host="127.0.0.1", port=0, replicas=TWO),
    ):
        pass
    assert set(serve.status().applications) == before


def test_a_port_that_is_taken_is_one_error(cluster: Any) -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"Nothing can listen at 127.0.0.1:{port}: Address"),
            cluster.serve("nothing:here", {}, host="127.0.0.1", port=port, replicas=TWO),
        ):
            pass


@pytest.mark.slow
def test_there_are_more_processes_while_there_is_more_to_do(cluster: Any, folder: Path) -> None:
    """Up to as many as may be."""
    replicas = Replicas(least=1, most=2, target_ongoing_requests=2)
    settings = {"folder": str(folder)}
    with (
        cluster.serve("ray_programs:App", settings, host="::1", port=0, replicas=replicas) as url,
        ThreadPoolExecutor(12) as pool,
    ):
        assert url.startswith("http://[::1]:")
        assert len(processes(url)) == 1
        found: set[int] = set()

        def ask() -> bool:
            answers = pool.map(get, [f"{url}/slow"] * 24)
            found.update(said["process"] for _, _, said in answers)
            return len(found) == 2

        until(ask)
