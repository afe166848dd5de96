"""How much memory a process has used at most.

On Linux the kernel keeps the highest resident size of a process and can be told
to begin anew, so that what loading took does not count for what running takes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")


def reset_peak(device: torch.device) -> None:
    """Begin anew; where the system cannot, the peak stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if _CLEAR_REFS.exists():
        # 5 resets the peak and nothing else: see proc(5).
        _CLEAR_REFS.write_text("5")


def peak(device: torch.device) -> int:
    """Highest bytes since the last reset: allocated on a GPU, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def available(device: torch.device) -> int | None:
    """Bytes that one more process can take without the system running out; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return None
