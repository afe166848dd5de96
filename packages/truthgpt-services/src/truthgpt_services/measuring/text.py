"""The text that quality is measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from truthgpt_core.paths import display_path, expanded, read_regular_bytes
from truthgpt_services.errors import ModelError

DEFAULT_NAME = "pydoc_data.topics"


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """A text with a name that the user can check.

    Attributes:
        name: a path, or `pydoc_data.topics`, the language reference in every Python.
        text: all of it.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def evaluation_text(path: Path | None) -> EvaluationText:
    """Read the text to measure on, or take the one that every Python has.

    Raises:
        ModelError: it cannot be read, or is empty.
    """
    if path is None:
        topics: dict[str, str] = import_module(DEFAULT_NAME).topics
        return EvaluationText(DEFAULT_NAME, "\n\n".join(topics[key] for key in sorted(topics)))
    try:
        text = read_regular_bytes(expanded(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"The text {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}",
            hint="Convert it to UTF-8.",
        ) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelError(f"The text {display_path(path)} cannot be read: {why}") from error
    if not text.strip():
        raise ModelError(f"The text {path} is empty")
    return EvaluationText(str(path), text)
