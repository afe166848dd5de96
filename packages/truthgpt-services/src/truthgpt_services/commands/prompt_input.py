"""The prompt of a command: an argument, standard input, a file, or a file and an argument."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import BinaryIO

import click

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.terminal_text import harmless

LARGEST = 1 << 24
"""How many bytes are read at most: no model holds that many tokens."""

SECONDS_FOR_A_WRITER = 5.0
"""How long to wait for a named pipe to be opened for writing."""

_STANDARD_INPUT = "-"


def read_prompt_text(prompt: str | None, file: str | None) -> str:
    """Return the prompt as text, without the line break at the end of a file.

    Args:
        prompt: the argument; `-`, or None with a pipe, is standard input. With a file it
            comes after the file's text and an empty line.
        file: a path, or `-`.

    Raises:
        TruthGPTError: it cannot be read, is not UTF-8, is too large or empty.
        click.UsageError: nothing was given.
    """
    if file is not None:
        text = _from_standard_input() if file == _STANDARD_INPUT else _from_file(file)
        return text if prompt is None else f"{text}\n\n{_checked(prompt)}"
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError(
            "Missing argument 'PROMPT'. Give it after MODEL, in a file with -f FILE, or through "
            "a pipe."
        )
    if prompt is None or prompt == _STANDARD_INPUT:
        return _from_standard_input()
    return _checked(prompt)


def _checked(prompt: str) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise TruthGPTError(
            "PROMPT is not UTF-8", hint="Set the terminal and the locale to UTF-8."
        ) from None
    if not prompt:
        raise click.UsageError("PROMPT is empty.")
    return prompt


def _from_standard_input() -> str:
    if sys.stdin is None:
        raise TruthGPTError("Standard input is closed")
    return _read(sys.stdin.buffer, "Standard input")


def _from_file(path: str) -> str:
    name = harmless(path)
    try:
        # Without waiting: opening a pipe without a writer takes forever.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TruthGPTError(f"{name} cannot be read: {reason}") from None
    try:
        kind = os.fstat(file).st_mode
        if stat.S_ISDIR(kind):
            raise TruthGPTError(f"{name} is a directory", hint="Name a file with the prompt.")
        if stat.S_ISFIFO(kind) and hasattr(select, "poll"):
            _wait_for_a_writer(file, name)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(file, True)
        with os.fdopen(file, "rb", closefd=False) as content:
            return _read(content, name)
    finally:
        os.close(file)


def _wait_for_a_writer(file: int, name: str) -> None:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(SECONDS_FOR_A_WRITER * 1000):
        raise TruthGPTError(f"{name} is a pipe that nothing is written to")


def _read(file: BinaryIO, name: str) -> str:
    try:
        content = file.read(LARGEST + 1)
    except OSError as error:
        raise TruthGPTError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST:
        raise TruthGPTError(f"{name} has more than {LARGEST >> 20} MiB, which no model can read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TruthGPTError(
            f"{name} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}",
            hint="Convert it, for example with iconv -f latin1 -t utf-8.",
        ) from None
    # Editors and `echo` put one there, and it is not meant as part of the prompt.
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise TruthGPTError(f"{name} is empty: there is no prompt")
    return text
