"""Servers that run in this process, on a thread of their own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from truthgpt_core.application import Application as Core
from truthgpt_plugin_serve.app import Application
from truthgpt_plugin_serve.served_model import ServedModel, load
from truthgpt_plugin_serve.server import Server, bind
from truthgpt_plugin_serve.settings import Settings
from truthgpt_services import InferenceService

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
LONG: dict[str, Any] = CHAT | {"max_tokens": 400, "logit_bias": {"0": -100}, "temperature": 0}
"""A chat whose answer does not end by itself."""


@dataclass
class Running:
    """A server, and what it serves."""

    url: str
    application: Application
    server: Server

    @property
    def root(self) -> str:
        """Its address without the version of the protocol."""
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    @property
    def model(self) -> ServedModel:
        return next(iter(self.application.context.models.values()))

    @property
    def service(self) -> InferenceService:
        return self.model.service

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(self.root + path, timeout=60, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        """Send something that may not be what the server takes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {b"content-type": b"application/json", **options.pop("headers", {})}
        return httpx2.post(
            self.root + path, content=content, headers=headers, timeout=60, **options
        )

    def until_idle(self) -> None:
        """Wait until no text is generated."""
        until(lambda: (self.service.statistics.running, self.service.statistics.waiting) == (0, 0))


def until(ready: Any, seconds: float = 60) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it is not after a minute.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def serve(models: dict[str, ServedModel], settings: Settings, **options: Any) -> Any:
    """Serve models until the block ends."""
    return _serving(models, settings, options)


@contextmanager
def _serving(
    models: dict[str, ServedModel], settings: Settings, options: dict[str, Any]
) -> Iterator[Running]:
    application = Application(models, settings, **options)
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        server = Server(application, settings, "127.0.0.1", port)
        # Signals are for the main thread, which is the test's.
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            yield Running(f"http://127.0.0.1:{port}/v1", application, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def running(directory: Path, tracer: Any = None, **settings: Any) -> Iterator[Running]:
    """Serve a model with PyTorch, ready for requests."""
    made = Settings(engine="torch", device="cpu", **settings)
    model = load("tiny", str(directory), made, lambda *_: None, Core())
    with serve({"tiny": model}, made, tracer=tracer) as found:
        until(lambda: found.get("/readyz").status_code == 200)
        yield found


def raw(port: int, data: bytes, *, seconds: float = 30) -> bytes:
    """Send bytes as they are; return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found
