"""What the user types, or a pipe brings: messages, of one line or several, and slash commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from truthgpt_core.errors import TruthGPTError, UsageError

PROMPT = "> "
MORE = "... "
"""The prompt of a line that goes on with a message."""

QUOTES = '"""'
GOES_ON = "\\"

LONGEST_LINE = 1 << 24
"""Bytes of a line at most: no model holds that many tokens."""

# One word: a path, and a comment of code, are messages.
_COMMAND = re.compile(r"/(\w+|\?)(!?)(?:\s+(.*))?", re.DOTALL)

Read = Callable[[str], str]
"""Returns the next line, without its end, after showing a prompt; `EOFError` at the end."""


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command within a chat.

    Attributes:
        name: without the slash.
        insists: whether an exclamation mark comes after the name.
        argument: the rest, without blanks around it.
    """

    name: str
    insists: bool
    argument: str


def read_entry(read: Read) -> str | SlashCommand:
    r"""Read a message or a command.

    A line that ends in a backslash goes on in the next, and so does everything between two
    triple quotes, the first of which begin a line and the last end one. A message that begins
    with two slashes has one.

    Args:
        read: returns lines.

    Returns:
        The message, which may be blank, or the command.

    Raises:
        EOFError: there is no more line.
        UsageError: the lines end within a message.
    """
    line = read(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _read_block(line.lstrip().removeprefix(QUOTES), read)
    lines = [line]
    while lines[-1].endswith(GOES_ON):
        lines[-1] = lines[-1].removesuffix(GOES_ON)
        lines.append(_read_more(read, "ends in a backslash"))
    text = "\n".join(lines)
    if found := _COMMAND.fullmatch(text):
        name, mark, argument = found.groups()
        return SlashCommand(name, bool(mark), (argument or "").strip())
    return text.removeprefix("/") if text.startswith("//") else text


def _read_block(begin: str, read: Read) -> str:
    lines = [begin]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(_read_more(read, f"began with {QUOTES}"))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    # The quotes may have lines of their own.
    if not lines[0].strip():
        del lines[0]
    if lines and not lines[-1].strip():
        del lines[-1]
    return "\n".join(lines)


def _read_more(read: Read, what: str) -> str:
    try:
        return read(MORE)
    except EOFError:
        raise UsageError(f"The message was not sent: it {what}, and no line comes after") from None


class PipedLines:
    """Lines of standard input where that is no terminal.

    Attributes:
        number: of the line that was read last.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, prompt: str) -> str:
        """Return the next line; the prompt is not shown.

        Raises:
            EOFError: there is none.
            TruthGPTError: it is not UTF-8, or too long.
        """
        line = b"" if sys.stdin is None else sys.stdin.buffer.readline(LONGEST_LINE + 1)
        if not line:
            raise EOFError
        self.number += 1
        if len(line) > LONGEST_LINE:
            raise TruthGPTError(f"It has more than {LONGEST_LINE >> 20} MiB")
        try:
            text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TruthGPTError(
                f"It is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}",
                hint="Convert it, for example with iconv -f latin1 -t utf-8.",
            ) from None
        return text.removesuffix("\n").removesuffix("\r")


class TypedLines:
    """Lines that the user types, with history and editing where Python has readline.

    Args:
        commands: names that Tab completes after a slash.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        _set_up_editing([f"/{each}" for each in commands])

    def __call__(self, prompt: str) -> str:
        """Show a prompt and return the line that is typed.

        Raises:
            EOFError: the user ended the input.
            TruthGPTError: it is not UTF-8.
        """
        if not sys.stdout.isatty():
            # Answers go to a file or a pipe, and the prompt does not.
            click.echo(prompt, nl=False, err=True)
            prompt = ""
        try:
            line = input(prompt)
            line.encode()
        except EOFError:
            click.echo(err=True)
            raise
        except UnicodeError:
            raise TruthGPTError(
                "The message was not sent: it is not UTF-8",
                hint="Set the terminal and the locale to UTF-8.",
            ) from None
        return line


def _set_up_editing(commands: Sequence[str]) -> None:
    try:
        import readline
    except ImportError:  # as on Windows, where the terminal edits lines itself
        return
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    if not is_libedit:
        # What is pasted is one message, however many lines it has.
        readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_completer_delims(" \n")
    readline.set_completer(_completer(readline, commands))


def _completer(readline: Any, commands: Sequence[str]) -> Callable[[str, int], str | None]:
    def complete(text: str, number: int) -> str | None:
        begins = text.startswith("/") and readline.get_begidx() == 0
        found = [each for each in commands if begins and each.startswith(text)]
        return f"{found[number]} " if number < len(found) else None

    return complete
