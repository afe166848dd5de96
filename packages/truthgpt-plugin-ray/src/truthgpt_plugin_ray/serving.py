"""Replicas of Ray Serve, each with an ASGI application of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from truthgpt_core.cluster import ClusterError, Replicas
from truthgpt_core.errors import in_one_line
from truthgpt_plugin_ray.settings import RayOptions
from truthgpt_plugin_ray.work import Made

_MOST_ONGOING = 4
"""Requests that a replica takes, for each that it has on average before there is one more."""

_SECONDS_BETWEEN_CHECKS = 5.0
_SECONDS_OF_A_CHECK = 30.0
_SECONDS_TO_END = 30.0

Message = dict[str, Any]


@contextmanager
def deployed(
    make_app: str, settings: Mapping[str, Any], options: RayOptions, replicas: Replicas
) -> Iterator[DeploymentHandle[Any]]:
    """Run replicas until the context is left; they are ready when it is entered.

    Returns:
        A context that gives a handle of `Replica.answer`.

    Raises:
        ClusterError: they cannot be started, or `make_app` failed in one.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    name = f"truthgpt-{os.getpid()}-{os.urandom(4).hex()}"
    most = round(_MOST_ONGOING * max(replicas.target_ongoing_requests, 16.0))
    how: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        how = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": replicas.target_ongoing_requests,
            }
        }
    kind = serve.deployment(
        name="replica",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=most,
        health_check_period_s=_SECONDS_BETWEEN_CHECKS,
        health_check_timeout_s=_SECONDS_OF_A_CHECK,
        graceful_shutdown_timeout_s=_SECONDS_TO_END,
        **how,
    )(Replica)
    try:
        handle = _run(name, kind.bind(make_app, json.dumps(settings)))
        asked = handle.options(method_name="why_not")
        answers = handle.options(method_name="answer", stream=True)
        try:
            wrong = asked.remote().result()
            if wrong is not None:
                raise ClusterError(wrong["error"], hint=wrong["hint"])
            yield answers
        finally:
            # Their threads would look for the cluster when this process has left it.
            asked.shutdown()
            answers.shutdown()
    finally:
        serve.delete(name)


def _run(name: str, replicas: Any) -> DeploymentHandle[Any]:
    """Start replicas, and wait until they are ready."""
    try:
        # The gateway listens, and not Ray's own proxies, which never ask a second replica.
        serve.start(proxy_location="Disabled")
        return serve.run(replicas, name=name, route_prefix=None)
    except Exception as error:
        raise ClusterError(f"Ray Serve starts no replicas: {in_one_line(error):.1000}") from error


class Replica:
    """One process of a server.

    Args:
        make_app: as for `Cluster.serve`.
        settings: JSON.
    """

    def __init__(self, make_app: str, settings: str) -> None:
        self._made = Made(make_app, json.loads(settings))
        self._lifespan: Lifespan | None = None

    async def why_not(self) -> dict[str, Any] | None:
        """Return why there is no application; None if there is."""
        return self._made.error

    async def answer(self, request: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Let the application answer a request.

        Args:
            request: the scope of ASGI, what is not JSON or bytes left out.
            body: of the request.

        Yields:
            The messages of ASGI with which it answers.
        """
        await self._begun()
        async for message in answered(self._made.value, request, body):
            yield message

    async def check_health(self) -> None:
        """Ask the application whether it is well; Ray Serve replaces this process if it is not.

        Raises:
            RuntimeError: it answers `GET /livez` with an error.
        """
        if self._made.error is not None:
            return
        await self._begun()
        request = {"type": "http", "method": "GET", "path": "/livez", "raw_path": b"/livez"}
        async for message in answered(self._made.value, request, b""):
            if message["type"] == "http.response.start" and message["status"] >= 400:
                raise RuntimeError(f"GET /livez was answered with {message['status']}")

    async def _begun(self) -> None:
        if self._lifespan is None:
            self._lifespan = Lifespan(self._made.value)
        await self._lifespan.begun()

    async def __del__(self) -> None:
        """End the application."""
        if self._lifespan is not None:
            await self._lifespan.end()


class Lifespan:
    """The beginning and the end of an ASGI application.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def begun(self) -> None:
        """Wait until the application is ready.

        Raises:
            RuntimeError: it says that it cannot begin.
        """
        await asyncio.shield(self._ready)

    async def end(self) -> None:
        """Tell the application that it ends, and wait for it."""
        if not self._task.done():
            self._asked.put_nowait({"type": "lifespan.shutdown"})
            await self._ended.wait()

    async def _run(self) -> None:
        self._asked.put_nowait({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        # By the protocol, an error is that of an application which knows no lifespan.
        with suppress(Exception):
            await self._app(scope, self._asked.get, self._told)
        self._ended.set()
        if not self._ready.done():
            self._ready.set_result(None)

    async def _told(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete" and not self._ready.done():
            self._ready.set_result(None)
        elif message["type"] == "lifespan.startup.failed" and not self._ready.done():
            reason = message.get("message", "")
            self._ready.set_exception(RuntimeError(f"The application does not start: {reason}"))
        elif message["type"].startswith("lifespan.shutdown"):
            self._ended.set()


async def answered(app: Any, request: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
    """Yield the messages with which an ASGI application answers a request.

    Args:
        app: the application.
        request: its scope; what is left out is filled in.
        body: of the request.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> Message:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "state": {},
    } | dict(request)
    task = asyncio.create_task(app(scope, receive, messages.put))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        gone.set()
        if not task.done():
            task.cancel()
