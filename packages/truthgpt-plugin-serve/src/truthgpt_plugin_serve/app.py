"""The application: routes over the models that are served."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from truthgpt_core.errors import did_you_mean
from truthgpt_plugin_serve.chat import Chat
from truthgpt_plugin_serve.check import check_models
from truthgpt_plugin_serve.completions import Completion
from truthgpt_plugin_serve.context import Context, Record
from truthgpt_plugin_serve.errors import ApiError, failed
from truthgpt_plugin_serve.fields import ChatRequest, CompletionRequest, ResponsesRequest
from truthgpt_plugin_serve.guard import Guard
from truthgpt_plugin_serve.keys import KeyRing
from truthgpt_plugin_serve.responses import Response as ModelResponse
from truthgpt_plugin_serve.served_model import ServedModel
from truthgpt_plugin_serve.settings import Settings
from truthgpt_plugin_serve.tracing import Tracer

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")

_EVENTS = "text/event-stream"
_NO_BUFFER = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Application:
    """A server's application, in the interface ASGI.

    Args:
        models: those that are served, by name.
        settings: of the server.
        tracer: writes spans; None for none.

    Attributes:
        context: what the routes share.
        guard: the application that servers are given.

    Raises:
        ServeError: the API keys cannot be read.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: Settings,
        tracer: Tracer | None = None,
    ) -> None:
        self.context = Context(models, settings)
        keys = None if settings.keys is None else KeyRing(settings.keys)
        self.guard = Guard(_routes(self.context), self.context, keys, tracer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request, or the start and the end of the server."""
        await self.guard(scope, receive, send)


def _routes(context: Context) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def died(model: ServedModel) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(context.model_died, model)

        for model in context.models.values():
            model.start(partial(died, model))
        checking = asyncio.create_task(check_models(context))
        try:
            yield
        finally:
            checking.cancel()
            with suppress(asyncio.CancelledError):
                await checking
            for model in context.models.values():
                await asyncio.to_thread(model.stop)
            context.close()

    app = FastAPI(
        title="TruthGPT",
        version=version("truthgpt-plugin-serve"),
        lifespan=lifespan,
        redoc_url=None,
        # Its pages take their scripts from other hosts.
        docs_url=None,
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    _add_health(app, context)
    _add_models(app, context)
    _add_generation(app, context)
    return app


def _add_health(app: FastAPI, context: Context) -> None:
    @app.get("/livez", response_class=PlainTextResponse)
    async def livez() -> PlainTextResponse:
        """Whether the process works; if not, it should be started again."""
        dead = [each.name for each in context.models.values() if not each.is_alive]
        return PlainTextResponse("not alive" if dead else "ok", 503 if dead else 200)

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> PlainTextResponse:
        """Whether requests are answered."""
        if context.draining:
            return PlainTextResponse("about to stop", 503)
        reasons = [
            f"{each.name}: {why}"
            for each in context.models.values()
            if (why := each.why_refused) is not None
        ]
        return PlainTextResponse("\n".join(reasons) or "ok", 503 if reasons else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and histograms, as Prometheus reads them."""
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_models(app: FastAPI, context: Context) -> None:
    def described(model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "truthgpt",
            "max_model_len": model.engine.context_length,
            "truthgpt": {
                "engine": model.engine.name,
                "ready": model.why_refused is None,
                "check": model.check,
            },
        }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models that are served, and what comparing them with their reports said."""
        return {"object": "list", "data": [described(each) for each in context.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """One of them."""
        return described(context.named(name))


def _add_generation(app: FastAPI, context: Context) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        """What the model says next in a conversation."""
        return await _answer(http, request, Chat, context, _data)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        """How texts go on."""
        return await _answer(http, request, Completion, context, _data)

    @app.post("/v1/responses", response_model=None)
    async def responses(request: ResponsesRequest, http: Request) -> Response:
        """What the model says to an input. Nothing is stored."""
        return await _answer(http, request, ModelResponse, context, _named)


class _Answering(Protocol):
    """What a route makes of a request: an answer, whole or as events."""

    async def whole(self) -> dict[str, Any]:
        """Return the answer, when all of it is known."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer as it comes."""

    def close(self) -> None:
        """Want no more of it."""


async def _answer(
    http: Request,
    request: Any,
    kind: Any,
    context: Context,
    write: Callable[[AsyncIterator[dict[str, Any]]], AsyncGenerator[bytes]],
) -> Response:
    """Answer a request, until the client is gone.

    Args:
        http: what the client sent.
        request: the same, as it was read.
        kind: its `begin` returns an `_Answering`.
        context: what the routes share.
        write: writes the events of a stream.
    """
    record: Record = http.scope["state"]["record"]
    if request.user is not None:
        record.log["user"] = request.user[:200]

    async def answer() -> Response:
        made: _Answering = await kind.begin(request, context, record)
        if request.stream:
            return _Stream(write(made.events()), made.close)
        try:
            return JSONResponse(await made.whole())
        finally:
            made.close()

    return await _unless_gone(http, answer())


async def _unless_gone(http: Request, work: Coroutine[Any, Any, _Made]) -> _Made:
    """Return what work returns; end it as soon as the client is gone."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HTTPException(499, "The client left")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await working


class _Stream(StreamingResponse):
    """Server-sent events; at its end no more is generated, whether or not it has begun."""

    def __init__(self, events: AsyncGenerator[bytes], close: Callable[[], None]) -> None:
        super().__init__(events, media_type=_EVENTS, headers=_NO_BUFFER)
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _data(chunks: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """Write chunks as server-sent events; it is too late for a status, so an error is one too."""
    try:
        async for chunk in chunks:
            yield b"data: %s\n\n" % _json(chunk)
    except ApiError as error:
        yield b"data: %s\n\n" % error.body
    except Exception:
        logger.exception("A stream failed")
        yield b"data: %s\n\n" % failed().body
    yield b"data: [DONE]\n\n"


async def _named(events: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    async for each in events:
        yield b"event: %s\ndata: %s\n\n" % (each["type"].encode(), _json(each))


def _json(given: Any) -> bytes:
    return json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()


def _refusal(error: ApiError) -> Response:
    return Response(error.body, error.status, error.headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"There is no route {request.method} {request.url.path[:200]}"
    elif error.status_code == 405:
        message = f"{request.url.path[:200]} does not take {request.method}"
    api = ApiError(error.status_code, message, headers=error.headers)
    return _refusal(api)


async def _invalid(request: Request, error: Exception) -> Response:
    """Say of the first field that is wrong which it is, and what it may be."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    # Of several kinds of value, each of which was tried, the deepest is the one that was meant.
    first = max(found, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"])))
    where = [str(part) for part in first["loc"][1:]]
    name = ".".join(where)
    if first["type"] == "json_invalid":
        name, message = "", "The body is not JSON"
    elif first["type"] == "extra_forbidden":
        known = (ChatRequest, CompletionRequest, ResponsesRequest)
        names = {field for each in known for field in each.model_fields}
        hint = did_you_mean(where[-1], names) if len(where) == 1 else None
        message = f"{name:.200} is not supported" + (f". {hint}" if hint else "")
    else:
        message = f"{name or 'The body'}: {first['msg']}"
    api = ApiError(400, message[:1000], code=first["type"], param=name[:200] or None)
    return _refusal(api)
