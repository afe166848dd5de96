"""The parent's side of a probe: start it, and say what was found and what became of it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import Finding
from truthgpt_core.doctor.probing import SEPARATOR
from truthgpt_core.doctor.processes import Ended, TimedProcess, last_line
from truthgpt_core.errors import in_one_line

_FIXES = {
    signal.SIGKILL.value if sys.platform != "win32" else 9: (
        "Most likely there is too little memory: end other programs and try again."
    ),
    signal.SIGILL.value: "It was built for another CPU: install a build for this one.",
}


@dataclass(frozen=True, slots=True)
class Death:
    """Why a probe did not come to its end.

    Attributes:
        how: in a few words, with what it was doing: "importing torch: killed by SIGSEGV".
        fix: what may help, if how it died says so; may be empty.
    """

    how: str
    fix: str = ""

    def as_diagnosis(self, subject: str, fix: str = "") -> Diagnosis:
        """Return it as a failure.

        Args:
            subject: what was looked at.
            fix: what may help if nothing better is known.
        """
        return Diagnosis.failed(subject, self.how, self.fix or fix)


@dataclass
class Answer:
    """What a probe said.

    Attributes:
        findings: in the order in which it found them.
        told: what else it told, by name; the last of each name.
        death: why it did not come to its end; None if it did.
    """

    findings: list[Finding] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    death: Death | None = None


class Child:
    """A probe in a process of its own, which begins at once; a context manager that ends it.

    Args:
        probe: the name of a module of this package.
        seconds: how long it may take, from now.
        request: for the probe, in JSON types.
    """

    def __init__(self, probe: str, seconds: float, **request: Any) -> None:
        self._seconds = seconds
        self._process: TimedProcess | None = None
        self._error = ""
        module = f"{__package__}.{probe}"
        text = json.dumps({"seconds": seconds, **request})
        try:
            # -P: what happens to lie in the current directory is not what is installed.
            self._process = TimedProcess(
                [sys.executable, "-P", "-m", "truthgpt_core.child_process", module, text], seconds
            )
        except OSError as error:
            self._error = in_one_line(error)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.__exit__(kind, error, traceback)

    def answer(self) -> Answer:
        """Wait for its end and return what it said; whatever it does, this does not raise."""
        if self._process is None:
            return Answer(death=Death(f"a process cannot be started: {self._error}"))
        ended = self._process.wait()
        answer = Answer()
        unreadable = False
        for text in _texts(ended.out):
            try:
                what, value = json.loads(text)
                if what == "finding":
                    answer.findings.append(Finding.from_json(value))
                else:
                    answer.told[what] = value
            except (ValueError, TypeError, KeyError, RecursionError):
                unreadable = True
        answer.death = self._death(ended, answer.told, unreadable=unreadable)
        return answer

    def _death(self, ended: Ended, told: dict[str, Any], *, unreadable: bool) -> Death | None:
        doing = f"{told['doing']}: " if "doing" in told else ""
        if "raised" in told:
            return Death(f"{doing}{told['raised']}")
        if unreadable:
            return Death(f"{doing}its answer cannot be read")
        if "done" in told:
            return None  # however it ended after that
        if ended.code is None:
            return Death(
                f"{doing}no answer within {self._seconds:g} s",
                f"If this machine is slow, try again with --timeout {3 * self._seconds:g}.",
            )
        line = last_line(ended.said) if ended.code in (-signal.SIGABRT, *range(1, 256)) else ""
        said = f": {line}" if line else ""
        return Death(f"{doing}{ended.how}{said}", _FIXES.get(-ended.code, ""))


def ask(probe: str, seconds: float, **request: Any) -> Answer:
    """Run a probe and wait for what it says; see `Child`."""
    with Child(probe, seconds, **request) as child:
        return child.answer()


def _texts(out: bytes) -> Iterator[str]:
    _, *records = out.decode(errors="replace").split(SEPARATOR)
    for record in records:
        text, end, _ = record.partition("\n")
        if end:  # what has none was cut off by the end of the process
            yield text
