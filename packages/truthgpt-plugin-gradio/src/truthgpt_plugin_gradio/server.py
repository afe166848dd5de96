"""The web application around the page, and serving it."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads it then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import click
import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from truthgpt_plugin_gradio import panels
from truthgpt_plugin_gradio.answers import Answering
from truthgpt_plugin_gradio.errors import DemoError
from truthgpt_plugin_gradio.models import DemoModel
from truthgpt_plugin_gradio.page import make_page

LOCAL_HOSTS = ("127.0.0.1", "localhost")
"""Names by which only this machine can call the page."""

# gradio's own script evaluates templates. Nothing comes from, or goes to, another host.
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    b"connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    b"form-action 'self'; frame-ancestors 'self'"
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_FIXED_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class _OnlyThisHost:
    """Lets pages of an application load nothing from elsewhere."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, with_policy)


def make_app(
    models: Sequence[DemoModel], run: Path | None = None, *, hosts: Sequence[str] = LOCAL_HOSTS
) -> FastAPI:
    """Make the application, which any ASGI server can serve.

    Args:
        models: what `load_models` returned.
        run: what `find_run` returned.
        hosts: the names by which browsers may call it, so that no other page can through a name
            of its own that leads here; `*` for any.
    """
    answering = Answering()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = make_page(models, answering, run)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        css=panels.style(),
        theme=gr.themes.Base(font=_FONTS, font_mono=_FIXED_FONTS),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,
    )
    app.add_middleware(_OnlyThisHost)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    gradio_app: Any = app.routes[-1].app  # type: ignore[attr-defined] # which was mounted last

    def leave() -> None:
        answering.stop_all()
        gradio_app.stop_event.set()

    app.state.leave = leave
    return app


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take the address of a page before anything is loaded for it.

    Args:
        host: a name or an address of this machine.
        port: 0 for one that is free.

    Raises:
        DemoError: it cannot be taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        taken = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DemoError(
            f"The page cannot be served at {host}, port {port}: {reason}",
            hint="--port 0 takes a port that is free.",
        ) from None
    with taken:
        yield taken


def serve(app: FastAPI, where: socket.socket) -> None:
    """Serve an application until it is interrupted, and say at which address.

    Args:
        app: what `make_app` returned.
        where: what `listening` took.
    """
    host, port = where.getsockname()[:2]
    click.echo(f"http://{f'[{host}]' if ':' in host else host}:{port} has the page. Ctrl-C ends it")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):
        _Server(config, app.state.leave).run(sockets=[where])


class _Server(uvicorn.Server):
    """A server that does not wait for tabs that are open: each keeps a request without an end."""

    def __init__(self, config: uvicorn.Config, leave: Callable[[], None]) -> None:
        super().__init__(config)
        self._leave = leave

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests, and then the server."""
        self._leave()
        await super().shutdown(sockets)
