"""Errors of generating text, by what can be done about them."""

from __future__ import annotations

from truthgpt_core.errors import TruthGPTError


class GenerationError(TruthGPTError):
    """Text cannot be generated as asked."""


class RefusedError(GenerationError):
    """The request cannot be answered as it is; another one can be.

    Args:
        message: as for `TruthGPTError`.
        hint: as for `TruthGPTError`.
        said: why, in the words of another server, which may be anything; None if it was no other
            server that refused it.
    """

    def __init__(self, message: str, *, hint: str | None = None, said: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.said = said


class OverloadedError(GenerationError):
    """There is too much to do; the same request can be answered later.

    Args:
        message: as for `TruthGPTError`.
        hint: as for `TruthGPTError`.
        retry_after: seconds after which it is worth trying again; None if nobody says.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class UnavailableError(GenerationError):
    """What runs the model cannot be reached or has failed, whatever the request was."""
