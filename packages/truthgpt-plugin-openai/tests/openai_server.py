"""A small server with the OpenAI protocol, over an inference service of TruthGPT."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from truthgpt_services import InferenceService

Respond = Callable[["Handler"], None]

_OPTIONS = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop",
}


class Handler(BaseHTTPRequestHandler):
    """Answers with what the server was made with."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body: Any = json.loads(self.rfile.read(length)) if length else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, self.body))
        self.server.respond(self)

    def reply(self, status: int, body: Any, **headers: str) -> None:
        """Send a whole response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Send a chunk."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send_text(self, text: str, reason: str | None = None) -> None:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.path.endswith("/chat/completions"):
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        self.send(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    def end_stream(self) -> None:
        self.send(b"data: [DONE]\n\n")
        self.send(b"")

    def log_message(self, *args: object) -> None:
        """Print nothing."""


class Server(ThreadingHTTPServer):
    """Remembers what it was asked."""

    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave at any time."""


@contextmanager
def serving(respond: Respond) -> Iterator[Server]:
    """Answer with a function until the block ends."""
    with Server(respond) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def with_models(respond: Respond, *models: str) -> Respond:
    """Answer requests for the list of models, and leave others to `respond`."""

    def answer(handler: Handler) -> None:
        if handler.path == "/v1/models":
            handler.reply(200, {"object": "list", "data": [{"id": name} for name in models]})
        else:
            respond(handler)

    return answer


def over(service: InferenceService) -> Respond:
    """Answer with what a service generates."""

    def answer(handler: Handler) -> None:
        body = handler.body
        prompt = body.get("messages") or body.get("prompt")
        options = {_OPTIONS[name]: value for name, value in body.items() if name in _OPTIONS}
        stream = service.stream(prompt, options)
        handler.begin_stream()
        for piece in stream:
            handler.send_text(piece)
        reason = "length" if stream.finish_reason == "length" else "stop"
        handler.send_text("", reason)
        handler.end_stream()

    return with_models(answer, "tiny")
