"""Memory that one step frees is kept for the next one, and not given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1
DEFAULT_MMAP_MAX = 65536
# Where glibc's own adjusting of the two ends, once a large tensor has been freed.
SETTLED = {M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def retain_freed_memory(device: torch.device) -> Iterator[None]:
    """Keep memory that is freed, for as long as a run trains on a CPU.

    A step allocates the same gigabytes as the one before. glibc maps large tensors anew each
    time, and the system clears every page of them, 300,000 in a step of a small model; what that
    costs is up to the system (`benchmarks/train.py --only kept`). Where the C library is another,
    nothing is done.

    Args:
        device: where the run trains.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        for parameter, value in SETTLED.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> Any:
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - raises where the library is another
        return library
    return None
