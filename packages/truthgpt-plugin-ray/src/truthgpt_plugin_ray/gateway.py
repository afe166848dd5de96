"""HTTP in front of replicas: a request goes to one of them, and to another if that one dies."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from truthgpt_core.cluster import ClusterError
from truthgpt_core.errors import in_one_line

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
"""Replicas that a request is given to, one after the other, as each dies."""

_LARGEST_BODY = 1 << 26
_STREAMED = b"text/event-stream"
_SECONDS_TO_END = 30

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gateway:
    """An ASGI application that passes requests on to replicas.

    An answer is given when all of it is there, unless it is a stream of events
    (`text/event-stream`): until then, the request can go to another replica. A stream that a
    replica leaves unfinished ends with an event `error`.

    Args:
        replicas: a handle of Ray Serve, of `Replica.answer`.
    """

    def __init__(self, replicas: Any) -> None:
        self._replicas = replicas

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is None:
            return
        if len(body) > _LARGEST_BODY:
            await _refuse(send, 413, f"The body has more than {_LARGEST_BODY >> 20} MiB")
            return
        names = ("type", "method", "path", "raw_path", "query_string", "http_version", "scheme")
        request: dict[str, Any] = {name: scope[name] for name in names if name in scope}
        request["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        for name in ("client", "server"):
            request[name] = tuple(scope[name]) if scope.get(name) else None
        answer = asyncio.create_task(self._answer(request, body, send))
        left = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            for task in (answer, left):
                task.cancel()
            await asyncio.gather(answer, left, return_exceptions=True)

    async def _answer(self, request: Mapping[str, Any], body: bytes, send: Send) -> None:
        for _ in range(_ATTEMPTS):
            try:
                if await self._tried(request, body, send):
                    return
            except (BackPressureError, DeploymentUnavailableError):
                break
            except RayActorError:
                continue
            except RayTaskError as error:
                await _refuse(send, *_told(error))
                return
        await _refuse(send, 503, "No replica can answer now")

    async def _tried(self, request: Mapping[str, Any], body: bytes, send: Send) -> bool:
        """Let one replica answer.

        Raises:
            RayActorError: it died, and nothing was sent.
            RayTaskError: the application failed, and nothing was sent.
        """
        messages = self._replicas.remote(request, body)
        held: list[Message] = []
        streams = False
        try:
            async for message in messages:
                held.append(message)
                if message["type"] == "http.response.start":
                    streams = _is_stream(message)
                if streams:
                    await send(held.pop())
        except (RayActorError, RayTaskError) as error:
            if not streams:
                raise
            status, message = _told(error)
            event = b"event: error\ndata: " + _error(status, message) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})
            return True
        except asyncio.CancelledError:
            messages.cancel()
            raise
        for message in held:
            await send(message)
        return True


def _is_stream(start: Message) -> bool:
    return any(
        bytes(name).lower() == b"content-type" and bytes(value).lower().startswith(_STREAMED)
        for name, value in start.get("headers", ())
    )


def _told(error: Exception) -> tuple[int, str]:
    """Return the status and the message for what a replica did in place of answering."""
    if isinstance(error, RayActorError):
        return 503, "The process that answered has died"
    # What went wrong in it is for those who run the server.
    _log.error("The application failed: %s", in_one_line(getattr(error, "cause", None) or error))
    return 500, "The server failed"


def _error(status: int, message: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()


async def _refuse(send: Send, status: int, message: str) -> None:
    content = _error(status, message)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, a little more than may be at most; None if it breaks off."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body") or size > _LARGEST_BODY:
            return b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Listener:
    """A socket that listens, and the server behind it.

    Args:
        bound: the socket.
        host: as it was asked for.
    """

    def __init__(self, bound: socket.socket, host: str) -> None:
        self._socket = bound
        port = bound.getsockname()[1]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @contextmanager
    def answer(self, app: Any) -> Iterator[str]:
        """Answer with an application, in a thread, until the context is left; give the URL."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        server = uvicorn.Server(config)
        # Signals are for those who wait in the main thread.
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[self._socket])),
            name="truthgpt-gateway",
            daemon=True,
        )
        thread.start()
        try:
            yield self._url
        finally:
            server.should_exit = True
            thread.join(_SECONDS_TO_END + 5)


@contextmanager
def listening(host: str, port: int) -> Iterator[Listener]:
    """Listen at an address.

    Raises:
        ClusterError: that is not possible.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(1024)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ClusterError(
                f"Nothing can listen at {host}:{port}: {reason}", hint="Take another --port."
            ) from error
        yield Listener(bound, host)
    finally:
        with suppress(OSError):
            bound.close()
