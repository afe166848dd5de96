"""The machine and this Python: system, CPU, memory and disk, and what may be used of them.

A container sees all of the machine's memory and cores, and gets what its control group
(cgroup) allows. Both versions of those are read.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

from truthgpt_core.child_process import run
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import sized
from truthgpt_core.errors import in_one_line
from truthgpt_core.paths import CACHE, cache_dir
from truthgpt_core.plugin_system.discovery import CORE

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

LITTLE_MEMORY = 1_000_000_000
LITTLE_DISK = 1_000_000_000

_EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "i8mm": "I8MM",
    "sve": "SVE",
}
"""Flags of /proc/cpuinfo that decide which kernels are fast, as people call them."""

_NO_LIMIT = 2**60
"""Version 1 says a number about as large as an address if there is no limit."""
_CLASSIFIER = "Programming Language :: Python :: "


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


def examine() -> Iterator[Diagnosis]:
    """Look at the machine."""
    limits = read_limits()
    yield Diagnosis.ok("system", f"{_system()}, {platform.machine()}")
    yield diagnose_cpu(_read(CPUINFO), limits)
    yield diagnose_memory(_read(MEMINFO), limits)
    yield _disk()


def examine_python() -> Iterator[Diagnosis]:
    """Look at this Python, and the core that runs in it."""
    about = metadata(CORE)
    classifiers = about.get_all("Classifier") or ()
    yield Diagnosis.ok(CORE, about["Version"])
    yield diagnose_version(
        platform.python_version(),
        [each.removeprefix(_CLASSIFIER) for each in classifiers if each.startswith(_CLASSIFIER)],
    )
    yield Diagnosis.ok("environment", _environment())


def diagnose_version(running: str, classified: Iterable[str]) -> Diagnosis:
    """Say whether a version of Python is among those that this core is tested on.

    Args:
        running: the version: "3.11.7".
        classified: the versions that the core's classifiers name, "3 :: Only" and the like too.
    """
    detail = f"{running} ({platform.python_implementation()}), {sys.executable}"
    tested = [each for each in classified if each.startswith("3.")]
    if not tested or running.rpartition(".")[0] in tested:
        return Diagnosis.ok("Python", detail)
    return Diagnosis.warning(
        "Python", f"{detail}: not one of those that are tested", f"Use Python {tested[-1]}."
    )


def diagnose_cpu(cpuinfo: str, limits: Limits) -> Diagnosis:
    """Describe the CPU and how many cores this process may use.

    Args:
        cpuinfo: what /proc/cpuinfo says; empty if there is none.
        limits: what the control group allows.
    """
    extensions = vector_extensions(cpuinfo)
    known = "unknown vector extensions" if extensions is None else ", ".join(extensions)
    detail = f"{_cpu_name(cpuinfo)}, {_cores(limits)}, {known or 'no vector extensions'}"
    if extensions == [] and platform.machine() in ("x86_64", "AMD64"):
        return Diagnosis.warning(
            "CPU",
            f"{detail}: models run slowly without AVX2",
            "A virtual machine may hide what its CPU can do: give it the CPU type of its host.",
        )
    return Diagnosis.ok("CPU", detail)


def diagnose_memory(meminfo: str, limits: Limits) -> Diagnosis:
    """Describe the memory that this process may use.

    Args:
        meminfo: what /proc/meminfo says; empty if there is none.
        limits: what the control group allows.
    """
    sizes = {
        key: int(kilobytes) * 1024
        for key, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    }
    total, available = sizes.get("MemTotal") or _physical_memory(), sizes.get("MemAvailable")
    limited = limits.memory is not None and (total is None or limits.memory < total)
    if limited:
        left = limits.memory_left
        available = min(each for each in (available, left) if each is not None)
        total = limits.memory
    parts = [
        f"{sized(total)}{', the limit of this container' if limited else ''}"
        if total
        else "unknown",
        *([] if available is None else [f"{sized(available)} available"]),
    ]
    detail = ", ".join(parts)
    if available is not None and available < LITTLE_MEMORY:
        return Diagnosis.warning(
            "memory", detail, "End other programs, or use a machine with more memory."
        )
    return Diagnosis.ok("memory", detail)


def vector_extensions(cpuinfo: str) -> list[str] | None:
    """Return the vector extensions that matter, of those that every core has.

    Args:
        cpuinfo: what /proc/cpuinfo says.

    Returns:
        None if it does not say.
    """
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if not lines:
        return None
    common = set.intersection(*(set(line.split()) for line in lines))
    return [name for flag, name in _EXTENSIONS.items() if flag in common]


def read_limits(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Limits:
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


def _cores(limits: Limits) -> str:
    usable = affinity()
    there = os.cpu_count() or usable
    counted = f"{usable} core" + ("s" if usable != 1 else "")
    if usable < there:
        counted = f"{usable} of {there} cores"
    if limits.cores is not None and limits.cores < usable:
        return f"{counted}, limited to the time of {limits.cores:g}"
    return counted


def _cpu_name(cpuinfo: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if match:
        return match[1].strip()
    if sys.platform == "darwin":
        with suppress(OSError):
            ended = run(["sysctl", "-n", "machdep.cpu.brand_string"], 10)
            if name := ended.out.decode(errors="replace").strip():
                return name
    return platform.processor() or platform.machine()


def _system() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _disk() -> Diagnosis:
    try:
        place = cache_dir()
        there = next((each for each in (place, *place.parents) if os.path.lexists(each)), place)
        free = shutil.disk_usage(there).free
    except (OSError, RuntimeError) as error:
        return Diagnosis.failed("disk", in_one_line(error), f"{CACHE} names another place.")
    detail = f"{sized(free)} free for the cache, in {place}"
    if free < LITTLE_DISK:
        return Diagnosis.warning(
            "disk",
            detail,
            f"Free some: all of {place} may be deleted. {CACHE} names another place for it.",
        )
    return Diagnosis.ok("disk", detail)


def _environment() -> str:
    if sys.prefix != sys.base_prefix:
        return f"virtual environment {sys.prefix}"
    if os.environ.get("CONDA_PREFIX") == sys.prefix:
        return f"conda environment {sys.prefix}"
    return "no virtual environment: packages are shared with all that this Python runs"


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's group and of all that it is in, as far as there are."""
    for line in _read(membership).splitlines():
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
        text = _read(folder / name).strip()
        if text.isdecimal():
            return int(text)
    return None


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _read(folder / "cpu.cfs_quota_us").strip()
        period = _read(folder / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None  # "max" and "-1" mean that there is none


def _reclaimable(folder: Path) -> int:
    """What counts as used and is only a copy of files, given back when it is needed."""
    counters = dict(
        line.split() for line in _read(folder / "memory.stat").splitlines() if line.count(" ") == 1
    )
    text = counters.get("total_inactive_file", counters.get("inactive_file", "0"))
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
