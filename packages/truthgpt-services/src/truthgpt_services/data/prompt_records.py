"""Prompts to generate for: JSON Lines that are checked before work starts, and read as a stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from truthgpt_core.decoding import SAMPLING_OPTIONS, SamplingParams
from truthgpt_core.errors import TruthGPTError, did_you_mean, meant_or_known
from truthgpt_core.paths import display_path, open_regular
from truthgpt_services.data.chat_template import Chat, Message
from truthgpt_services.errors import DataError

LONGEST_LINE = 1 << 24
"""Bytes of a line at most: no model holds that many tokens."""

_SKIPPED_AT_ONCE = 1 << 16
_LONGEST_ID = 512
_LISTED = 5
"""Lines that cannot be used that an error lists at most."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORM = 'A record is {"prompt": "..."} or {"messages": [...]}, with "id" and "options" if wanted.'
_KEYS = ("prompt", "messages", "id", "options")
_ONE_TEXT = ("n", "logprobs", "prompt_logprobs")
"""Options whose results have no place in an answer."""
_OPTIONS = tuple(name for name in SAMPLING_OPTIONS if name not in _ONE_TEXT)

_OPENAI_KEYS = ("custom_id", "method", "url", "body")
_OPENAI_URLS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_OPENAI_OPTIONS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
} | {
    name: name
    for name in (
        *("temperature", "top_p", "seed", "stop", "logit_bias"),
        *("presence_penalty", "frequency_penalty"),
    )
}


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt to generate for.

    Attributes:
        index: which record of the file it is, from 0. Empty lines do not count.
        line: where it is, from 1.
        prompt: a text, or the messages of a conversation.
        id: what its author calls it; None if it has no name.
        options: of `SamplingParams`, for this record alone.
        raw: whether a text is continued as it is, and not asked through the chat template.
    """

    index: int
    line: int
    prompt: str | list[Message]
    id: str | int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file of prompts holds.

    Attributes:
        records: how many there are.
        sha256: of all bytes, in hexadecimal.
    """

    records: int
    sha256: str


class PromptFile:
    """A file of prompts, one record a line.

    A record is `{"prompt": "..."}` or `{"messages": [...]}`, with `id` and `options` if wanted; or
    a request as in files for OpenAI's batch API, `{"custom_id": ..., "url": ..., "body": {...}}`.
    One line is in memory at a time, however large the file is.

    Args:
        path: a regular file. It is read more than once, so a pipe is refused.
        options: of `SamplingParams`, that hold where a record has no others.
        raw: texts are continued as they are.

    Raises:
        UnusableFileError: it is not a regular file.
        DataError: it cannot be read.
    """

    def __init__(
        self, path: Path, options: Mapping[str, Any] | None = None, *, raw: bool = False
    ) -> None:
        self.path = path
        self._name = display_path(path)
        self._options = dict(options or {})
        self._raw = raw
        self._open().close()

    def check(self, progress: Callable[[int, int], None] = lambda done, size: None) -> Contents:
        """See that every line can be used.

        Args:
            progress: called now and then with the bytes that were read and how many there are.

        Raises:
            DataError: lines cannot be used, of which it lists the first; or there is none.
        """
        wrong: list[str] = []
        records = done = 0
        digest = hashlib.sha256()
        with self._open() as file:
            size = self.path.stat().st_size
            for number, line, read in _lines(file, digest):
                done += read
                if number % 1000 == 0:
                    progress(done, size)
                try:
                    self._record(records, number, line)
                except TruthGPTError as error:
                    wrong.append(f"{self._name}:{number}: {error}")
                    if len(wrong) == _LISTED:
                        break
                records += 1
        if wrong:
            more = f"\nOnly the first {_LISTED} are listed" if len(wrong) == _LISTED else ""
            raise DataError("\n".join(wrong) + more, hint="Nothing was generated.")
        if not records:
            raise DataError(f"{self._name} has no record", hint=_FORM)
        return Contents(records, digest.hexdigest())

    def records(
        self, contents: Contents, is_done: Callable[[int], bool] = lambda index: False
    ) -> Iterator[PromptRecord]:
        """Yield the records.

        Args:
            contents: what `check` returned.
            is_done: whether the record of this index is left out.

        Raises:
            DataError: the file has changed since it was checked. This may come after records of
                the changed file.
        """
        index = 0
        digest = hashlib.sha256()
        with self._open() as file:
            for number, line, _ in _lines(file, digest):
                if index >= contents.records:
                    break
                if not is_done(index):
                    try:
                        record = self._record(index, number, line)
                    except TruthGPTError:
                        self._refuse_change()
                    yield record
                index += 1
        if digest.hexdigest() != contents.sha256:
            self._refuse_change()

    def _refuse_change(self) -> NoReturn:
        raise DataError(
            f"{self._name} was changed while it was read",
            hint="Put it back as it was to go on, or begin anew with another --output.",
        ) from None

    def _open(self) -> BinaryIO:
        try:
            return open_regular(self.path)
        except TruthGPTError:
            raise
        except OSError as error:
            raise DataError(f"{self._name} cannot be read: {error.strerror or error}") from None

    def _record(self, index: int, number: int, line: bytes | None) -> PromptRecord:
        if line is None:
            raise DataError(f"it has more than {LONGEST_LINE >> 20} MiB")
        found = _object(line)
        read = _of_openai if "body" in found or "custom_id" in found else _of_ours
        record = read(found, index, number)
        if self._raw and not isinstance(record.prompt, str):
            raise DataError("--raw continues texts, and this is a conversation")
        # One that is out of range, or does not go with an option of the command.
        SamplingParams(**(self._options | dict(record.options)))
        return replace(record, raw=True) if self._raw else record


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse generation options that no record of a batch can have.

    Args:
        options: by name.

    Raises:
        DataError: one is unknown, or would give more than one text.
    """
    for name in options:
        if name in _ONE_TEXT:
            raise DataError(f"{name} has no place in a batch, which gives one text for each record")
        if name not in _OPTIONS:
            raise DataError(
                f'there is no option "{name:.80}"',
                hint=did_you_mean(name, _OPTIONS) or f"Known: {', '.join(_OPTIONS)}.",
            )


def _lines(file: BinaryIO, digest: Any) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield the number of each line that is not empty, the line (None: too long) and its bytes."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        digest.update(line)
        read, too_long = len(line), len(line) > LONGEST_LINE
        while too_long and line and not line.endswith(b"\n"):
            line = file.readline(_SKIPPED_AT_ONCE)
            digest.update(line)
            read += len(line)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if too_long:
            yield number, None, read
        elif line.strip():
            yield number, line, read


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"it is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
        ) from None
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError("it is not a JSON object", hint=_FORM)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("it has half a character, which is not Unicode text") from None
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _of_ours(found: dict[str, Any], index: int, number: int) -> PromptRecord:
    _refuse_unknown(found, _KEYS, _FORM)
    if ("prompt" in found) == ("messages" in found):
        which = "both" if "prompt" in found else "neither"
        raise DataError(f'it has {which} of "prompt" and "messages"', hint=_FORM)
    options = found.get("options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise DataError('"options" is not an object', hint='For example {"temperature": 0.5}.')
    refuse_options(options)
    return PromptRecord(index, number, _prompt(found), _id(found.get("id"), "id"), options)


def _of_openai(found: dict[str, Any], index: int, number: int) -> PromptRecord:
    _refuse_unknown(found, _OPENAI_KEYS, "A request has custom_id, method, url and body.")
    body, url = found.get("body"), found.get("url", "/v1/chat/completions")
    if not isinstance(body, dict):
        raise DataError('"body" is not an object')
    key = _OPENAI_URLS.get(url) if isinstance(url, str) else None
    if key is None:
        raise DataError(f'"url" is {url!r:.80}', hint=f"Known: {', '.join(_OPENAI_URLS)}.")
    if key not in body:
        raise DataError(f'"body" has no "{key}"')
    options: dict[str, Any] = {}
    for name, value in body.items():
        if name in (key, "model") or value is None:
            continue
        if name not in _OPENAI_OPTIONS:
            known = [key, "model", *_OPENAI_OPTIONS]
            raise DataError(
                f'"body" has "{name:.80}", which a batch does not know',
                hint=meant_or_known(name, known, f"Known: {', '.join(known)}."),
            )
        options[_OPENAI_OPTIONS[name]] = value
    name_of = _id(found.get("custom_id"), "custom_id")
    return PromptRecord(index, number, _prompt(body), name_of, options, raw=key == "prompt")


def _refuse_unknown(found: dict[str, Any], known: tuple[str, ...], form: str) -> None:
    for name in found:
        if name not in known:
            raise DataError(f'it has "{name:.80}"', hint=meant_or_known(name, known, form))


def _prompt(found: dict[str, Any]) -> str | list[Message]:
    if "messages" in found:
        return Chat.of(found["messages"], '"messages"').messages
    prompt = found["prompt"]
    if not isinstance(prompt, str) or not prompt:
        raise DataError('"prompt" is not a text, or an empty one')
    return prompt


def _id(given: object, name: str) -> str | int | None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if not isinstance(given, str) or len(given) > _LONGEST_ID:
        raise DataError(
            f'"{name}" is {given!r:.80}: it must be an integer or a text of up to {_LONGEST_ID} '
            "characters"
        )
    return given
