"""The child's side of a probe: a process that looks at something that may kill it.

What it answers goes, a JSON text at a time, to what was its standard output, each between
a record separator and a line feed (RFC 7464). Whatever else is printed, before or after,
is not taken for an answer: `print` and libraries get standard error instead.

Answers are sent at once, so that what was found before a crash is known after it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import Area, Finding
from truthgpt_core.errors import TruthGPTError, in_one_line

SEPARATOR = "\x1e"

_GRACE = 10.0


class Report:
    """Where a probe writes down what it finds.

    Args:
        answers: what `children` reads.
    """

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers

    def doing(self, what: str) -> None:
        """Say what comes now, in case it is the last thing: "importing torch"."""
        self.tell("doing", what)

    def found(self, area: Area, diagnoses: Iterable[Diagnosis]) -> int:
        """Write down findings, each as soon as it is there, and return how many there were.

        Raises:
            ValueError: the status of one is none.
        """
        count = 0
        for diagnosis in diagnoses:
            self.tell("finding", Finding.of(area, diagnosis).as_json())
            count += 1
        return count

    def tell(self, what: str, value: Any) -> None:
        """Tell the parent something else, in JSON types."""
        self._answers.write(f"{SEPARATOR}{json.dumps([what, value])}\n")
        self._answers.flush()


def serve(probe: Callable[[Report, Mapping[str, Any]], None]) -> None:
    """Run a probe with the request on the command line; the whole of its process."""
    request = json.loads(sys.argv[1])
    # Should the parent be killed, nobody else would end what hangs.
    faulthandler.dump_traceback_later(request["seconds"] + _GRACE, exit=True)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report = Report(answers)
    try:
        probe(report, request)
    except BaseException as error:  # noqa: BLE001 - told to the parent, and logged
        traceback.print_exc()
        ours = isinstance(error, TruthGPTError)
        report.tell("raised", str(error) if ours else in_one_line(error))
    else:
        report.tell("done", True)
    answers.close()
