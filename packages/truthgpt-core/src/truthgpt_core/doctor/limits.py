"""What this process may use of the machine: cores, and what a container allows.

A container sees all of the machine's memory and cores, and gets what its control group
(cgroup) allows. Both versions of those are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_NO_LIMIT = 2**60
"""Version 1 says a number about as large as an address if there is no limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control group allows.

    Attributes:
        memory: bytes; None if there is no limit.
        memory_left: how many of them are not in use; None with `memory`.
        cores: how many cores' worth of time; None if there is no limit.
    """

    memory: int | None = None
    memory_left: int | None = None
    cores: float | None = None


def read_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Limits:
    """Read what the control group of this process and those around it allow.

    Args:
        root: where control groups are mounted.
        membership: the file that says which ones this process is in.
    """
    memory: int | None = None
    left: int | None = None
    cores: float | None = None
    for folder in _folders(root, membership, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT and (memory is None or limit < memory):
            used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
            memory, left = limit, max(0, limit - used + _reclaimable(folder))
    for folder in _folders(root, membership, "cpu"):
        quota = _quota(folder)
        if quota is not None and (cores is None or quota < cores):
            cores = quota
    return Limits(memory, left, cores)


def affinity() -> int:
    """How many cores the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores(limits: Limits | None = None) -> int:
    """How many threads can compute at the same time in this process.

    Args:
        limits: what the control group allows; read unless given.
    """
    quota = (read_limits() if limits is None else limits).cores
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's group and of all that it is in, as far as there are."""
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        # Inside a container the path may be the one that it has outside.
        folder = top / group.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _number(folder: Path, *names: str) -> int | None:
    for name in names:
        text = _text(folder / name).strip()
        if text.isdecimal():
            return int(text)
    return None


def _quota(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None  # "max" and "-1" mean that there is none


def _reclaimable(folder: Path) -> int:
    """What counts as used and is only a copy of files, given back when it is needed."""
    said = dict(
        line.split() for line in _text(folder / "memory.stat").splitlines() if line.count(" ") == 1
    )
    text = said.get("total_inactive_file", said.get("inactive_file", "0"))
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
