"""What `truthgpt doctor` finds: a plugin's `diagnose` hook returns these."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at.

    Attributes:
        subject: what was looked at, in a few words: "C++ compiler".
        status: how it is.
        detail: what was found, in one line.
        fix: what the user could do about it; empty if there is nothing to mend.
    """

    subject: str
    status: Status
    detail: str
    fix: str = ""

    @classmethod
    def ok(cls, subject: str, detail: str) -> Diagnosis:
        """It works."""
        return cls(subject, Status.OK, detail)

    @classmethod
    def warning(cls, subject: str, detail: str, fix: str = "") -> Diagnosis:
        """Something will not work or is slow, and the user may not care."""
        return cls(subject, Status.WARNING, detail, fix)

    @classmethod
    def failed(cls, subject: str, detail: str, fix: str = "") -> Diagnosis:
        """It does not work."""
        return cls(subject, Status.FAILED, detail, fix)
