"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from truthgpt_services.training.allocation import kept_memory

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
    with kept_memory(torch.device("cpu")):
        new_pages(MEGABYTES)
        # glibc before 2.38 wants some bytes more than there were for one as large.
        assert new_pages(MEGABYTES - 1) < PAGES / 100


def test_afterwards_memory_goes_back_to_the_system() -> None:
    """It is as it was: what a tensor had is free for other programs when it is gone."""
    with kept_memory(torch.device("cpu")):
        new_pages(MEGABYTES)
    new_pages(MEGABYTES)
    assert new_pages(MEGABYTES - 1) > PAGES / 2
