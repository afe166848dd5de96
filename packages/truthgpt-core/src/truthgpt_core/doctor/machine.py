"""The machine: system, CPU, memory and disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import sized
from truthgpt_core.doctor.limits import Limits, affinity, read_limits
from truthgpt_core.errors import in_one_line
from truthgpt_core.paths import CACHE, cache_dir

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")

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


def examine() -> Iterator[Diagnosis]:
    """Look at the machine."""
    limits = read_limits()
    yield Diagnosis.ok("system", f"{_system()}, {platform.machine()}")
    yield diagnose_cpu(_read(CPUINFO), limits)
    yield diagnose_memory(_read(MEMINFO), limits)
    yield _disk()


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
    said = {
        key: int(kilobytes) * 1024
        for key, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    }
    total, available = said.get("MemTotal") or _physical_memory(), said.get("MemAvailable")
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
        try:
            asked = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return platform.machine()
        if asked.stdout.strip():
            return asked.stdout.strip()
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


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
