"""What stands before the routes: limits, API keys, request ids, and a line of the log for each."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from contextlib import nullcontext
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from truthgpt_plugin_serve.context import Context, Record
from truthgpt_plugin_serve.errors import ApiError, failed, overloaded, unavailable
from truthgpt_plugin_serve.keys import KeyRing
from truthgpt_plugin_serve.tracing import Tracer

logger = logging.getLogger(__name__)

_OPEN = ("/livez", "/readyz")
"""Routes that need no key, and are answered whatever else happens."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KNOWN_PATHS = (
    *_OPEN,
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
)


class Guard:
    """Lets a request through to the routes, or answers it.

    Args:
        app: the routes.
        context: of the server.
        keys: API keys; None if none are needed.
        tracer: writes spans; None for none.
    """

    def __init__(
        self, app: ASGIApp, context: Context, keys: KeyRing | None, tracer: Tracer | None
    ) -> None:
        self._app = app
        self._context = context
        self._keys = keys
        self._tracer = tracer
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        record = Record(given if _REQUEST_ID.fullmatch(given) else uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        response = _Response(send, record.id)
        span = self._tracer.request(scope, headers, record) if self._tracer else nullcontext()
        began = time.perf_counter()
        is_open = scope["path"] in _OPEN
        self._open += not is_open
        self._context.metrics.open.set(self._open)
        try:
            with span:
                await self._let_in(scope, headers, receive, response, record)
        finally:
            self._open -= not is_open
            self._context.metrics.open.set(self._open)
            path = scope["path"] if scope["path"] in _KNOWN_PATHS else "other"
            status = response.status or 499  # the client left before there was one
            self._context.metrics.responded(path, status)
            if not is_open and path != "/metrics":
                seconds = round(time.perf_counter() - began, 4)
                fields = {"method": scope["method"], "path": scope["path"][:200], "status": status}
                fields |= {"seconds": seconds, **record.log}
                logger.info("request", extra={"request_id": record.id, "fields": fields})

    @property
    def open(self) -> int:
        """How many requests are handled now."""
        return self._open

    async def _let_in(
        self,
        scope: Scope,
        headers: dict[bytes, str],
        receive: Receive,
        response: _Response,
        record: Record,
    ) -> None:
        try:
            if scope["path"] in _OPEN:
                await self._app(scope, receive, response.send)
                return
            self._check(scope, headers, record)
            body = await self._body(headers, receive)
        except ApiError as error:
            await response.refuse(error)
            return
        except _ClientGone:
            return
        try:
            await self._app(scope, _Replay(body, receive), response.send)
        except Exception:
            logger.exception("A request failed", extra={"request_id": record.id})
            if response.status is None:
                await response.refuse(failed())

    def _check(self, scope: Scope, headers: dict[bytes, str], record: Record) -> None:
        if self._keys is not None:
            record.allowance = self._keys.find(
                headers.get(b"authorization"), "metrics" if scope["path"] == "/metrics" else "api"
            )
            record.log["key"] = record.allowance.key.name
        elif not self._context.settings.any_host and not _is_address(headers.get(b"host", "")):
            # A page may have its own name lead to this machine, and read what is answered.
            raise ApiError(
                403, "The server answers under its address and localhost alone", code="wrong_host"
            )
        if scope["path"] == "/metrics":
            return
        if self._context.draining:
            raise unavailable("The server is about to stop")
        if self._open > self._context.settings.max_requests:
            raise overloaded("The server has as many requests as it takes at once")
        if record.allowance is not None and scope["method"] == "POST":
            record.allowance.take_request()

    async def _body(self, headers: dict[bytes, str], receive: Receive) -> bytes:
        settings = self._context.settings
        most = settings.max_body_bytes
        declared = headers.get(b"content-length", "0")
        too_large = ApiError(413, f"The body has more than {most} bytes", code="body_too_large")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > most:
                        raise too_large
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise ApiError(
                408, f"The body was not there after {settings.body_timeout:g} s", code="timeout"
            ) from None


def _is_address(host: str) -> bool:
    """Whether the header `Host` has an IP address or localhost, and not a name of anyone's.

    No browser leaves it out.
    """
    if not host:
        return True
    name = host.rpartition("]")[0].removeprefix("[") or host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True


class _ClientGone(Exception):  # noqa: N818 - nothing went wrong
    """The client left before its request was there."""


class _Replay:
    """Gives the routes a body that was read, and then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()


class _Response:
    """What is sent back, and its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status: int | None = None
        self._send = send
        self._id = request_id

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self._id.encode()),
            ]
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error. The connection ends, since the body may not have been read."""
        headers = {
            "content-type": "application/json",
            "content-length": str(len(error.body)),
            "connection": "close",
            **error.headers,
        }
        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": listed})
        await self.send({"type": "http.response.body", "body": error.body})
