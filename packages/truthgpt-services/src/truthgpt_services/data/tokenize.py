"""Turning texts into tokens, in this process or in a worker."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_services.data.chat_template import Chat, ChatEncoder
from truthgpt_services.errors import DataError

_SAMPLE = "The tokens of a text, 1 + 2 = 3;\n\tçà et là, слово, 日本語 🙂"


@dataclass(frozen=True)
class Encoded:
    """The tokens of some texts.

    Args:
        ids: all tokens, text after text.
        lengths: how many of them each text has.
        loss: for each token, whether there is loss on it; None if there is on all.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    loss: NDArray[np.bool_] | None

    def to_bytes(self) -> bytes:
        """Return them as bytes, for another process."""
        file = io.BytesIO()
        np.savez(file, **{name: array for name, array in vars(self).items() if array is not None})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Encoded:
        """Read what `to_bytes` returned."""
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
        return cls(arrays["ids"], arrays["lengths"], arrays.get("loss"))


class TextEncoder:
    """Turns texts and conversations into tokens.

    Args:
        tokenizer: of transformers.
        end_of_text: end each text with the end-of-sequence token, if the tokenizer has one
            and does not do so itself. Conversations are as the chat template has them.
    """

    def __init__(self, tokenizer: Any, *, end_of_text: bool = True) -> None:
        self.tokenizer = tokenizer
        self._end: int | None = tokenizer.eos_token_id if end_of_text else None
        self._chats: ChatEncoder | None = None
        largest = max(tokenizer.get_vocab().values(), default=0)
        self.dtype = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)

    def save(self, folder: Path) -> dict[str, Any]:
        """Save it in a folder for another process; return what `load` takes there.

        Raises:
            DataError: what the tokenizer is cannot be saved.
        """
        kind = type(self.tokenizer)
        try:
            own = [name for name, of in vars(self.tokenizer).items() if inspect.isroutine(of)]
            if own:
                raise ValueError(f"it has a method of its own, {own[0]}")
            self.tokenizer.save_pretrained(folder)
        except Exception as error:  # whatever a tokenizer raises
            raise _not_sent(in_one_line(error)) from error
        return {
            "folder": str(folder),
            "kind": [kind.__module__, kind.__qualname__],
            "end_of_text": self._end is not None,
            "expected": self._mark,
        }

    @classmethod
    def load(cls, folder: str, kind: list[str], end_of_text: bool, expected: Any) -> TextEncoder:
        """Load what `save` has saved.

        Raises:
            DataError: it cannot be loaded, or makes other tokens than it did.
        """
        try:
            of: Any = attrgetter(kind[1])(importlib.import_module(kind[0]))
            loaded = cls(of.from_pretrained(folder, local_files_only=True), end_of_text=end_of_text)
        except Exception as error:  # whatever a tokenizer raises
            raise _not_sent(in_one_line(error)) from error
        if loaded._mark != expected:
            raise _not_sent("what is loaded there makes other tokens")
        return loaded

    @property
    def _mark(self) -> Any:
        """What shows that two encoders make the same tokens."""
        if getattr(self.tokenizer, "is_fast", False):
            return self.key
        # The files of others tell where they come from.
        return self._tokens([_SAMPLE])

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the tokens of some texts.

        Raises:
            DataError: the tokenizer or its chat template refuses one.
        """
        plain = [number for number, text in enumerate(texts) if not isinstance(text, Chat)]
        ids: list[list[int]] = [[]] * len(texts)
        losses: dict[int, list[bool]] = {}
        if plain:
            for number, tokens in zip(plain, self._tokens([texts[n] for n in plain]), strict=True):
                ids[number] = tokens
        chats = {number: text for number, text in enumerate(texts) if isinstance(text, Chat)}
        if chats:
            self._chats = self._chats or ChatEncoder(self.tokenizer)
            encoded = self._chats.encode(list(chats.values()))
            for number, (tokens, loss) in zip(chats, encoded, strict=True):
                ids[number], losses[number] = tokens, loss
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        flat = np.fromiter(chain.from_iterable(ids), self.dtype, total)
        if not losses:
            return Encoded(flat, lengths, None)
        marks = (losses.get(n) or [True] * len(tokens) for n, tokens in enumerate(ids))
        return Encoded(flat, lengths, np.fromiter(chain.from_iterable(marks), np.bool_, total))

    @cached_property
    def key(self) -> str:
        """A hash of all that decides which tokens a text becomes."""
        parts = [version("transformers"), version("tokenizers"), str(self._end), str(self.dtype)]
        tokenizer = self.tokenizer
        if getattr(tokenizer, "is_fast", False):
            content = tokenizer.backend_tokenizer.to_str()
            # What comes before is truncation and padding, set and unset by each call. In a
            # string of JSON the quotation marks would be escaped.
            before, mark, rest = content.partition('"added_tokens":')
            parts += [rest if mark else before, str(tokenizer.special_tokens_map)]
            parts.append(str(tokenizer.chat_template))
        else:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).rglob("*")):
                    if file.is_file():
                        parts += [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        try:
            ids: list[list[int]] = self.tokenizer(
                texts, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
        except TruthGPTError:
            raise
        except BaseException as error:  # whatever a tokenizer raises; a panic is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(f"The tokenizer cannot read a text: {in_one_line(error)}") from error
        if self._end is not None:
            for tokens in ids:
                if tokens and tokens[-1] != self._end:
                    tokens.append(self._end)
        return ids


def _not_sent(why: str) -> DataError:
    return DataError(
        f"The tokenizer cannot be sent to another process: {why}",
        hint="Tokenize in this one: tokenizing_processes=1.",
    )
