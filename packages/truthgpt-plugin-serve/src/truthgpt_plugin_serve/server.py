"""The server's process: limits on connections, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from truthgpt_plugin_serve.app import Application
from truthgpt_plugin_serve.errors import ServeError
from truthgpt_plugin_serve.served_model import ServedModel
from truthgpt_plugin_serve.settings import Settings

logger = logging.getLogger(__name__)

_MOST_HEADER_BYTES = 32 << 10
_KEEP_ALIVE = 30
_BACKLOG = 2048
_AFTER_DRAINING = 5


class Server(uvicorn.Server):
    """A server that ends its answers before it stops.

    After SIGTERM or SIGINT new requests get 503, and answers that have begun go on until they end,
    or until `Settings.drain_timeout` is over. A second signal stops at once. Where a model
    generates no more, it stops in the same way, so that it can be started again.

    Args:
        application: what is served.
        settings: of the server.
        host: the address it listens at.
        port: 0 for any that is free.

    Attributes:
        failure: why it stopped by itself; None if it did not.
    """

    def __init__(self, application: Application, settings: Settings, host: str, port: int) -> None:
        config = uvicorn.Config(
            application,
            host=host,
            port=port,
            http=_protocol(settings.body_timeout, settings.send_timeout),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_AFTER_DRAINING,
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            backlog=_BACKLOG,
        )
        super().__init__(config)
        self._application = application
        self._settings = settings
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: str | None = None
        application.context.on_death = self._stop_without

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal says to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop; stop at once if it has begun."""
        if self._application.context.draining or self._loop is None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut)
            super().handle_exit(sig, frame)
            return
        self._application.context.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _stop_without(self, model: ServedModel) -> None:
        """Begin to stop, because a model generates no more."""
        self.failure = f"{model.name} generates no more"
        logger.critical("The server stops: %s", self.failure)
        if not self._application.context.draining:
            self._application.context.draining = True
            self._begin_to_drain()

    def _begin_to_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        logger.info("draining", extra={"fields": {"open": self._application.guard.open}})
        await self._until_idle(self._settings.drain_timeout)
        cut = self._cut()
        await self._until_idle(_AFTER_DRAINING)
        logger.info("stopping", extra={"fields": {"cut": cut}})
        self.should_exit = True

    def _cut(self) -> int:
        """End what is generated; return how much it was."""
        cut = list(self._application.context.live)
        for each in cut:
            each.cut()
        return len(cut)

    async def _until_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._application.guard.open:
                    await asyncio.sleep(0.02)


def _protocol(body_timeout: float, send_timeout: float) -> type[H11Protocol]:
    class Bounded(H11Protocol):
        """Closes connections whose request does not come, or whose response is not taken."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._is_lost = False
            self._watch: asyncio.TimerHandle | None = None
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._is_lost = True
            self._unwatch()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_client()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unwatch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # What is left may be too little to pause for, and closing waits until it is taken.
            self._watch_client()

        def _watch_client(self) -> None:
            """Give the client up if it takes nothing of what there is for too long."""
            self._unwatch()
            if not self._is_lost and (left := self.transport.get_write_buffer_size()):
                self._watch = self.loop.call_later(
                    send_timeout, self._look_at_client, self.cycle, left
                )

        def _unwatch(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

        def _look_at_client(self, cycle: Any, left: int) -> None:
            if self.cycle is not cycle:
                return  # it has taken that response, and asked for another
            # Nothing was written meanwhile: writing was paused, or there was no more to write.
            if self.transport.get_write_buffer_size() < left:
                self._watch_client()
            else:
                # Not close, which would wait for the client. Who generates is told that it left.
                self.transport.abort()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self._wait()
            super().data_received(data)

        def _wait(self) -> None:
            before = self.cycle

            def look() -> None:
                if self.cycle is before and not self.transport.is_closing():
                    self.transport.close()

            self.loop.call_later(body_timeout, look)

    return Bounded


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ServeError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # From now on clients wait, and are not refused, while models are loaded.
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ServeError(
            f"{host}:{port} cannot be listened at: {error}",
            hint="Another server may use it; --port takes another.",
        ) from None
    return listening


def raise_file_limit(wanted: int) -> None:
    """Let the process have as many connections as it may."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
