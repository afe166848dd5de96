"""What tests of commands share: a tiny chat model, and a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from truthgpt_services.models.loading import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SECONDS = 120
"""How long a test waits for what has to come."""


@pytest.fixture(scope="session")
def chatty(once, tiny):
    """The tiny model with a chat template."""

    def fill(directory):
        shutil.copytree(tiny, directory, dirs_exist_ok=True)
        tokenizer = load_tokenizer(directory)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(directory)

    return once("chatty", fill)


@pytest.fixture(scope="session")
def talkative(once, chatty):
    """The same with a context that no answer fills while a test runs."""

    def fill(directory):
        shutil.copytree(chatty, directory, dirs_exist_ok=True)
        config = json.loads((directory / "config.json").read_text())
        config["max_position_embeddings"] = 20_000
        (directory / "config.json").write_text(json.dumps(config))

    return once("talkative", fill)


class Terminal:
    """A terminal that `truthgpt` runs in, with a user who types."""

    def __init__(self, arguments: tuple[object, ...]) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(80)
        code = (
            "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "from truthgpt_core.cli.main import main; main()"
        )
        environment = {name: each for name, each in os.environ.items() if name != "COLUMNS"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment | {"TERM": "xterm"},
        )
        os.close(theirs)
        self._seen = b""
        self._read = 0

    def resize(self, width: int) -> None:
        """Give it so many columns."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def type(self, text: str) -> None:
        """Type text; control characters are keys."""
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until a text is on the screen; return what came up to it since the last call."""
        wanted = text.encode()
        self._wait(lambda: wanted in self._seen[self._read :], text)
        begin, self._read = self._read, self._seen.index(wanted, self._read) + len(wanted)
        return self._seen[begin : self._read].decode(errors="replace")

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more bytes are on the screen."""
        self._wait(lambda: len(self._seen) - self._read >= count, f"{count} bytes")

    def leave(self) -> int:
        """Wait until the command ends; return its exit code."""
        self._wait(lambda: self._process.poll() is not None, "the end")
        return self._process.wait()

    def close(self) -> None:
        """End the command, if it runs."""
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        end = monotonic() + SECONDS
        while not ready():
            assert monotonic() < end, f"{what!r} did not come: {self._seen!r}"
            if select.select([self._ours], [], [], 0.05)[0]:
                try:
                    self._seen += os.read(self._ours, 1 << 16)
                except OSError:  # the command has ended
                    self._process.wait(SECONDS)
                    assert ready(), f"{what!r} did not come: {self._seen!r}"


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Run the `truthgpt` command in a terminal of 80 columns."""
    opened: list[Terminal] = []

    def run(*arguments: object) -> Terminal:
        opened.append(Terminal(arguments))
        return opened[-1]

    yield run
    for each in opened:
        each.close()
