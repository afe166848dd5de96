"""How busy other programs keep this machine, which decides what differences can be told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from truthgpt_services.results.schema import Load

BUSY = 0.25
"""CPU cores; the demo's model alone makes a machine of two cores waver by less."""
BEFORE_SECONDS = 0.5

_STAT = Path("/proc/stat")
# user, nice, system, irq, softirq and steal; what waits or idles is not among them.
_AT_WORK = (0, 1, 2, 5, 6, 7)


class LoadMeter:
    """Measures the CPU cores that programs other than ours keep busy; on Linux only."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._during: list[float] = []

    def look(self) -> str:
        """Measure for half a second, before our own work begins.

        Returns:
            A sentence of warning; empty if the machine is quiet, or nothing can be known.
        """
        began = _snapshot(())
        time.sleep(BEFORE_SECONDS)
        self._before = _others(began, _snapshot(()))
        return _warning([self._before])

    def begin(self, processes: Iterable[int]) -> None:
        """Begin to measure while these processes, and this one, are at work."""
        self._processes = tuple(processes)
        self._began = _snapshot(self._processes)

    def end(self) -> None:
        """Measure until now; the processes are still there."""
        found = _others(self._began, _snapshot(self._processes))
        if found is not None:
            self._during.append(found)

    def found(self) -> Load:
        """Return what was measured so far."""
        during = sorted(self._during)
        return Load(
            before=self._before,
            median=during[len(during) // 2] if during else None,
            highest=during[-1] if during else None,
            cores=os.cpu_count() or 1,
            warning=_warning([self._before, during[len(during) // 2] if during else None]),
        )


Snapshot = tuple[float, float, float]
"""Seconds on the clock, CPU seconds of the whole machine, and those of our processes."""


def _snapshot(processes: Iterable[int]) -> Snapshot | None:
    try:
        fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
        machine = sum(int(fields[index]) for index in _AT_WORK if index < len(fields))
        ours = sum(_cpu_ticks(Path(f"/proc/{each}/stat")) for each in (os.getpid(), *processes))
    except (OSError, ValueError, IndexError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return time.monotonic(), machine / ticks, ours / ticks


def _cpu_ticks(path: Path) -> int:
    # After the name, which may hold spaces: state is the third field, utime the fourteenth.
    fields = path.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _others(began: Snapshot | None, ended: Snapshot | None) -> float | None:
    if began is None or ended is None or ended[0] <= began[0]:
        return None
    clock, machine, ours = (end - begin for begin, end in zip(began, ended, strict=True))
    return max(0.0, machine - ours) / clock


def _warning(found: Iterable[float | None]) -> str:
    highest = max((each for each in found if each is not None), default=0.0)
    if highest < BUSY:
        return ""
    return (
        f"Other programs keep {highest:.1f} of {os.cpu_count() or 1} CPU cores busy: "
        "small differences in speed cannot be told."
    )
