"""What `truthgpt doctor` finds, a line each, and how a process that looks tells of it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from truthgpt_core.child_process import send
from truthgpt_core.diagnosis import Diagnosis, Status
from truthgpt_core.terminal_text import harmless

_LONGEST = 2000


class Area(enum.StrEnum):
    """What a finding is about, in the order in which findings are shown."""

    MACHINE = "machine"
    PYTHON = "python"
    TORCH = "torch"
    ACCELERATORS = "accelerators"
    COMPILERS = "compilers"
    PLUGINS = "plugins"
    OPTIMIZATIONS = "optimizations"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnosis and the area it belongs to; all text is one printable line.

    Attributes:
        area: what it is about.
        subject: as in `Diagnosis`.
        status: as in `Diagnosis`.
        detail: as in `Diagnosis`.
        fix: as in `Diagnosis`.
    """

    area: Area
    subject: str
    status: Status
    detail: str
    fix: str

    @classmethod
    def of(cls, area: Area, diagnosis: Diagnosis) -> Finding:
        """Take over a diagnosis.

        Raises:
            ValueError: its status is none; plugins are not all typed.
        """
        return cls(
            area,
            printable(diagnosis.subject),
            Status(diagnosis.status),
            printable(diagnosis.detail),
            printable(diagnosis.fix),
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """Read what `as_json` gave.

        Raises:
            KeyError: something is missing.
            ValueError: the area or the status is unknown.
        """
        texts = (printable(value[key]) for key in ("subject", "detail", "fix"))
        subject, detail, fix = texts
        return cls(Area(value["area"]), subject, Status(value["status"]), detail, fix)

    def as_json(self) -> dict[str, str]:
        """Return it in JSON types, by the names of its attributes."""
        return {key: str(value) for key, value in asdict(self).items()}


def doing(what: str) -> None:
    """Say what a probe does next, in case it is the last thing: "importing torch"."""
    send("doing", what)


def found(area: Area, diagnoses: Iterable[Diagnosis]) -> int:
    """Tell what a probe finds, each as soon as it is there, and return how many there were.

    Raises:
        ValueError: the status of one is none.
    """
    count = 0
    for diagnosis in diagnoses:
        count += 1
        send("finding", Finding.of(area, diagnosis).as_json())
    return count


def printable(value: object) -> str:
    """Return anything as one line, not too long, that does nothing to a terminal."""
    text = " ".join(str(value).split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return harmless(text)


def sized(amount: float) -> str:
    """Return a number of bytes in the unit that suits it, decimal as disks and reports have it."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
