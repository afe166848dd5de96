"""Serving a page from the process that tests it, and where that process connects to."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgpt_plugin_gradio import DemoModel

HOSTS: set[str] = set()
"""Names and addresses that this process looked up or connected to."""


def _note(event: str, details: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        HOSTS.add(str(details[0]))
    elif event == "socket.connect" and isinstance(details[1], tuple):
        HOSTS.add(str(details[1][0]))


# From before gradio is imported.
sys.addaudithook(_note)


@contextmanager
def served(models: list[DemoModel], **options: Any) -> Iterator[str]:
    """Serve a page of models in a thread; return its address."""
    import uvicorn

    from truthgpt_plugin_gradio import listening, make_app

    app = make_app(models, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with listening("127.0.0.1", 0) as where:
        thread = threading.Thread(target=server.run, args=([where],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{where.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
