"""The commands within a chat: what begins with a slash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from truthgpt_core.cli.terminal import say
from truthgpt_core.decoding import SamplingParams
from truthgpt_core.errors import UsageError, meant_or_known
from truthgpt_core.terminal_text import columns
from truthgpt_services.chat.reading import SlashCommand
from truthgpt_services.chat.session import Session
from truthgpt_services.chat.speaker import LONGEST_ANSWER, Answer, Speaker

_NOT_SET = {"n", "logprobs", "prompt_logprobs", "logit_bias"}
_TEXTS = {"stop", "json_schema", "regex", "grammar"}
_DEFAULT = "default"

_ABOUT_MESSAGES = r"""
Enter sends a message. A line that ends in \ goes on in the next; so does all
between two triple quotes. What is pasted is one message. A message that begins
with a slash begins with two. Ctrl-C stops an answer."""


class SlashCommands:
    """Carries out the commands of a chat.

    Args:
        session: the chat.
        load_speaker: loads the model that is named.
        read_value: reads the value of an option.
    """

    def __init__(
        self,
        session: Session,
        load_speaker: Callable[[str], Speaker],
        read_value: Callable[[str], Any],
    ) -> None:
        self._session = session
        self._load_speaker = load_speaker
        self._read_value = read_value

    def run(self, command: SlashCommand) -> list[Answer]:
        """Carry out a command.

        Returns:
            The answers that it begins, if it begins any.

        Raises:
            EOFError: the command is to leave.
            UsageError: there is no such command, or it needs something else.
            TruthGPTError: it could not be done.
        """
        known = _COMMANDS.get(_ALIASES.get(command.name, command.name))
        if known is None:
            raise UsageError(
                f'There is no command "/{command.name:.80}"',
                hint=meant_or_known(
                    f"/{command.name}",
                    [f"/{name}" for name in _COMMANDS],
                    "/help lists them; a message that begins with a slash begins with two.",
                ),
            )
        name = known.usage.split()[0]
        if command.insists and command.name != "save":
            raise UsageError(f"{name} takes no exclamation mark")
        if command.argument and " " not in known.usage:
            raise UsageError(f"{name} takes nothing after it")
        if not command.argument and known.needs:
            raise UsageError(f"{name} needs more", hint=f"Write {known.usage}.")
        return known.run(self, command) or []

    def help(self, command: SlashCommand) -> None:
        """List the commands."""
        for line in columns((known.usage, known.help) for known in _COMMANDS.values()):
            say(line, err=True)
        say(_ABOUT_MESSAGES, err=True)

    def system(self, command: SlashCommand) -> None:
        """Set the system message, or show it."""
        if text := command.argument:
            self._session.begin_anew(None if text == '""' else text)
            which = "out a" if text == '""' else " this"
            say(f"The conversation begins anew, with{which} system message.", err=True)
            return
        system = self._session.speakers[0].conversation.system
        say("There is no system message." if system is None else system, err=True)

    def clear(self, command: SlashCommand) -> None:
        """Forget what was said."""
        self._session.begin_anew(self._session.speakers[0].conversation.system)
        say("The conversation begins anew.", err=True)

    def regenerate(self, command: SlashCommand) -> list[Answer]:
        """Answer the last question again."""
        return self._session.regenerate()

    def compare(self, command: SlashCommand) -> None:
        """Load another model, or go on without it."""
        if not command.argument:
            if len(self._session.speakers) == 1:
                raise UsageError("/compare needs a model", hint="Write /compare OTHER.")
            self._session.compare_no_more()
            say(f"{self._session.speakers[0].name} answers alone from here on.", err=True)
            return
        self._session.compare(self._load_speaker(command.argument))
        say("Both answer from here on; /compare alone ends that.", err=True)

    def set(self, command: SlashCommand) -> None:
        """Change an option, or list them."""
        name, _, text = command.argument.partition(" ")
        name, text = name.replace("-", "_"), text.strip()
        if not name:
            self._list_options()
            return
        if name in _NOT_SET:
            raise UsageError(f"{name} cannot be set in a chat")
        if not text:
            raise UsageError(f"/set {name} needs a value", hint=f"{_DEFAULT} is one.")
        value = text if name in _TEXTS else self._read_value(text)
        self._session.set_option(name, None if text == _DEFAULT else value)
        say(f"{name}: {self._shown(name)}", err=True)

    def save(self, command: SlashCommand) -> None:
        """Write what was said to a file."""
        self._session.save(command.argument, replace=command.insists)
        say(f"Saved as {command.argument}.", err=True)

    def load(self, command: SlashCommand) -> None:
        """Go on with what was saved."""
        self._session.load(command.argument)
        conversation = self._session.speakers[0].conversation
        count = len(conversation.messages)
        say(f"{count} message{'' if count == 1 else 's'} from {command.argument}.", err=True)
        if conversation.messages and conversation.last_answer is None:
            say("The last has no answer: /regenerate gives one.", err=True)

    def exit(self, command: SlashCommand) -> None:
        """Leave."""
        raise EOFError

    def _list_options(self) -> None:
        names = [each.name for each in fields(SamplingParams) if each.name not in _NOT_SET]
        names += sorted(self._session.options.keys() - {*names, *_NOT_SET})
        for line in columns((name, self._shown(name)) for name in names):
            say(line, err=True)

    def _shown(self, name: str) -> str:
        """Return what an option is."""
        options = self._session.options
        if name in options:
            return str(options[name])
        if name == "max_new_tokens":
            return f"{LONGEST_ANSWER} ({_DEFAULT})"
        suggested = self._session.speakers[0].engine.defaults
        if name in suggested:
            return f"{suggested[name]} (the model's)"
        value = getattr(SamplingParams(), name, None)
        return f"{'none' if value in (None, ()) else value} ({_DEFAULT})"


class _Known(NamedTuple):
    usage: str
    help: str
    run: Callable[[SlashCommands, SlashCommand], list[Answer] | None]
    needs: bool = False


_COMMANDS: Mapping[str, _Known] = {
    "help": _Known("/help", "list these commands", SlashCommands.help),
    "system": _Known(
        "/system TEXT",
        "begin anew, with this system message; alone, show it",
        SlashCommands.system,
    ),
    "clear": _Known("/clear", "begin anew, with the system message", SlashCommands.clear),
    "regenerate": _Known(
        "/regenerate", "answer the last message again, with the next seed", SlashCommands.regenerate
    ),
    "compare": _Known(
        "/compare OTHER",
        "let a second model answer, too; alone, go on without it",
        SlashCommands.compare,
    ),
    "set": _Known(
        "/set NAME VALUE",
        "change an option, such as temperature; alone, list them",
        SlashCommands.set,
    ),
    "save": _Known(
        "/save FILE",
        "write the conversation as JSON; /save! replaces a file",
        SlashCommands.save,
        needs=True,
    ),
    "load": _Known("/load FILE", "go on with one that was saved", SlashCommands.load, needs=True),
    "exit": _Known("/exit", "leave, as Ctrl-D does", SlashCommands.exit),
}
_ALIASES = {"?": "help", "quit": "exit"}

NAMES = tuple(_COMMANDS)
"""The names of the commands, without the slash."""
