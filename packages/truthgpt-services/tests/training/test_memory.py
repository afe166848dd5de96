"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from truthgpt_services.training.memory import retain_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is done with glibc only")

MEGABYTES = 200
PAGES = MEGABYTES * 2**20 // resource.getpagesize()


def new_pages(megabytes: int) -> int:
    """How many pages the system has to give for a tensor."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_while_training() -> None:
    """Of a tensor that fits where another was hardly a page is new."""
    with retain_freed_memory(torch.device("cpu")):
        # Smaller each time: glibc before 2.38 wants some bytes more than there were for one as
        # large. The second may find room whose pages went back to the system before.
        new_pages(MEGABYTES)
        new_pages(MEGABYTES - 1)
        assert new_pages(MEGABYTES - 2) < PAGES / 100


def resident_pages() -> int:
    """How many pages of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="is told by Linux only")
def test_afterwards_memory_goes_back_to_the_system() -> None:
    """It is as it was: what the run kept, and what a tensor had, is free for other programs."""
    with retain_freed_memory(torch.device("cpu")):
        new_pages(MEGABYTES)
        kept = resident_pages()
    assert kept - resident_pages() > PAGES / 2
    # Larger than any room that is left in the heap, whose pages would stay.
    new_pages(4 * MEGABYTES)
    assert new_pages(4 * MEGABYTES - 1) > PAGES / 2
