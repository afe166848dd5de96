"""Where weights lie in memory: large pages for what is read all the time, none for what is not.

On Linux alone; elsewhere they stay where they are.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_MEMINFO = Path("/proc/meminfo")
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+).*$"
    r"(?:\n\w+:.*$)*?\nAnonymous: +(\d+) kB$(?:\n\w+:.*$)*?\nVmFlags:(.*)$",
    re.MULTILINE,
)
_LARGE = 2**21
_DONTNEED = 4  # of madvise(2)


class _Mapping(NamedTuple):
    begin: int
    end: int
    is_of_file: bool
    is_changed: bool
    """Whether some of its pages are no longer those of the file."""
    is_large: bool
    """Whether large pages were asked for."""


def move_to_large_pages(model: nn.Module) -> None:
    """Move a model's matrices of floating-point numbers to memory that has large pages.

    A processor looks up where each page lies, and reads weights faster if there are few. Where
    half of the memory that is free would not hold them, they stay.

    Args:
        model: its parameters stay the same objects, with the same values.
    """
    found = {
        parameter.data_ptr(): parameter
        for parameter in model.parameters()
        if parameter.dim() == 2 and parameter.is_contiguous() and not parameter.is_inference()
    }
    if sum(each.nbytes for each in found.values()) < _LARGE or sys.platform != "linux":
        return
    mappings = list(_mappings())
    unchanged = _unchanged(mappings)
    large = [each for each in mappings if each.is_large]
    moved = [
        each
        for address, each in found.items()
        if not any(mapping.begin <= address < mapping.end for mapping in large)
    ]
    sizes = [-(-each.nbytes // 64) * 64 for each in moved]
    if not moved or 2 * sum(sizes) > _available():
        return
    memory = mmap.mmap(-1, sum(sizes) + _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _LARGE
    for each, size in zip(moved, sizes, strict=True):
        there = torch.frombuffer(memory, dtype=each.dtype, count=each.numel(), offset=begin)
        before = each.data
        each.data = there.view(each.shape).copy_(before)
        _let_go(before, unchanged)
        begin += size


def let_go(tensors: Iterable[Tensor]) -> None:
    """Take what was read from files out of this process; it comes back if it is read again.

    Args:
        tensors: that will hardly be read again. Those that were changed, or are not of a file,
            stay.
    """
    if sys.platform == "linux":
        unchanged = _unchanged(_mappings())
        for tensor in tensors:
            _let_go(tensor, unchanged)


def _unchanged(mappings: Iterable[_Mapping]) -> list[_Mapping]:
    return [each for each in mappings if each.is_of_file and not each.is_changed]


def _let_go(tensor: Tensor, unchanged: Iterable[_Mapping]) -> None:
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and any(each.begin <= begin and end <= each.end for each in unchanged):
        _libc().madvise(begin, end - begin, _DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _available() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _mappings() -> Iterator[_Mapping]:
    """Yield what the memory of this process consists of."""
    try:
        about = _SMAPS.read_text()
    except OSError:
        return
    for each in _MAPPING.finditer(about):
        begin, end, inode, anonymous, flags = each.groups()
        of_file, changed = inode != "0", anonymous != "0"
        yield _Mapping(int(begin, 16), int(end, 16), of_file, changed, "hg" in flags.split())
