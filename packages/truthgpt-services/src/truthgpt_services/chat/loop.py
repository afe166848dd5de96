"""The loop of a chat: read a message, show the answers, again."""

from __future__ import annotations

from truthgpt_core.cli.terminal import say
from truthgpt_core.errors import TruthGPTError
from truthgpt_services.chat.display import show
from truthgpt_services.chat.reading import PipedLines, TypedLines, read_entry
from truthgpt_services.chat.session import Session
from truthgpt_services.chat.slash_commands import NAMES, SlashCommands


def talk(session: Session, commands: SlashCommands) -> None:
    """Talk with the user at the terminal, until the user leaves.

    What goes wrong is one line, and the conversation goes on.

    Args:
        session: the chat.
        commands: what begins with a slash.
    """
    read = TypedLines(NAMES)
    while True:
        try:
            _answer_one(session, commands, read, interactive=True)
        except EOFError:
            return
        except KeyboardInterrupt:
            say("\nCtrl-D or /exit leaves.", err=True)
        except TruthGPTError as error:
            say(f"truthgpt: {error}", err=True)


def answer_lines(session: Session, commands: SlashCommands) -> None:
    """Answer the messages of standard input, one after the other, until it ends.

    Raises:
        TruthGPTError: one cannot be answered; the error says in which line it is.
        KeyboardInterrupt: the user stopped it.
    """
    lines = PipedLines()
    while True:
        try:
            _answer_one(session, commands, lines, interactive=False)
        except EOFError:
            return
        except TruthGPTError as error:
            error.message = f"Line {lines.number} of standard input: {error.message}"
            raise


def _answer_one(
    session: Session, commands: SlashCommands, read: PipedLines | TypedLines, *, interactive: bool
) -> None:
    entry = read_entry(read)
    if isinstance(entry, str):
        answers = session.ask(entry) if entry.strip() else []
    else:
        answers = commands.run(entry)
    if not answers:
        return
    try:
        show(answers, interactive=interactive)
    finally:
        # Also what was said before an error, or a second Ctrl-C.
        if not session.keep(answers) and interactive:
            say("The conversation is as it was before.", err=True)
    if interactive:
        say("", err=True)
