"""What runs in the processes of `EncodingPool`: turns texts into tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truthgpt_core.child_process import serve
from truthgpt_services.data.chat_template import Chat
from truthgpt_services.data.tokenize import TextEncoder


class Worker:
    """Answers requests; each method but `answer` is one."""

    def answer(self, request: str, arguments: dict[str, Any]) -> Any:
        """Do what is asked."""
        requests: dict[str, Callable[..., Any]] = {"load": self.load, "encode": self.encode}
        return requests[request](**arguments)

    def load(self, **saved: Any) -> None:
        """Load what `TextEncoder.save` has saved."""
        self._encoder = TextEncoder.load(**saved)

    def encode(self, texts: list[str], chats: list[int]) -> bytes:
        """Return the tokens of texts, of which some are conversations, by their numbers."""
        for number in chats:
            texts[number] = Chat(texts[number])
        return self._encoder.encode(texts).to_bytes()


if __name__ == "__main__":
    serve(Worker().answer)
