"""What the processes of the tests' cluster import: workers, and an ASGI application."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from truthgpt_core.errors import TruthGPTError


def make_doubler(settings: dict[str, Any]) -> Any:
    """Double numbers; die once at one of them, or refuse one."""

    def double(task: int) -> dict[str, Any]:
        mark = Path(settings.get("folder", "."), "died")
        if task == settings.get("die_at") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == settings.get("refuse"):
            raise TruthGPTError(f"{task} is refused", hint="Take another.")
        time.sleep(settings.get("seconds", 0))
        return {"double": 2 * task, "process": os.getpid()}

    return double


def refuse(settings: dict[str, Any]) -> Any:
    """Fail as a model does that is not there."""
    raise TruthGPTError("There is no such model", hint="Name another.")


class App:
    """Says who it is, slowly or as a stream, and falls ill or dies when it is asked to."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.well = True
        self.began = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.began = True
            await send({"type": "lifespan.startup.complete"})
            await receive()
            Path(self.settings["folder"], f"ended-{os.getpid()}").touch()
            await send({"type": "lifespan.shutdown.complete"})
            return
        path, body = scope["path"], (await receive()).get("body", b"")
        status, content = 200, {"process": os.getpid(), "began": self.began}
        if path == "/stream":
            await self.stream(receive, send)
            return
        if path == "/ill":
            self.well = False
        elif path == "/livez":
            status = 200 if self.well else 500
        elif path == "/slow":
            await asyncio.sleep(0.2)
        elif path == "/error":
            raise RuntimeError("a fault of the application")
        elif path == "/echo":
            names = {"x-mine"}
            status, content = (
                418,
                {
                    "method": scope["method"],
                    "query": scope["query_string"].decode(),
                    "body": body.decode(),
                    "headers": [
                        [name.decode(), value.decode()]
                        for name, value in scope["headers"]
                        if name.decode() in names
                    ],
                },
            )
        headers = [(b"content-type", b"application/json"), (b"x-app", b"yes")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})

    async def stream(self, receive: Any, send: Any) -> None:
        """Send events until the client goes."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while True:
                line = f"data: {os.getpid()}\n\n".encode()
                await send({"type": "http.response.body", "body": line, "more_body": True})
                await asyncio.sleep(0.05)
        finally:
            Path(self.settings["folder"], "stream-ended").touch()
