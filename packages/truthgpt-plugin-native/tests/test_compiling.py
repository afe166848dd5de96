"""Which library a wheel's user gets, and what happens where it does not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_plugin_native import library
from truthgpt_plugin_native.compiling import LEVELS, choose_level

ALL = sorted(frozenset().union(*(needed for _, needed in LEVELS.values())))


@given(able=st.sets(st.sampled_from([*ALL, "sse2", "amx_int8"])))
def test_no_processor_gets_what_it_cannot_run(able: set[str]) -> None:
    """The library that is chosen needs nothing that the processor lacks, and none above it fits."""
    chosen = choose_level(able)
    assert LEVELS[chosen][1] <= able
    above = list(LEVELS)[: list(LEVELS).index(chosen)]
    assert not [name for name in above if LEVELS[name][1] <= able]


def test_a_processor_that_can_do_all_gets_the_first() -> None:
    """And one that can do nothing gets the last."""
    assert choose_level(ALL) == next(iter(LEVELS))
    assert choose_level([]) == list(LEVELS)[-1]


def test_a_library_that_cannot_be_loaded_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where another C library is: the code is there all the same."""
    broken = tmp_path / "avx2.so"
    broken.write_bytes(b"for another system")
    monkeypatch.setattr(library, "packaged", lambda: broken)
    library.load.cache_clear()
    try:
        assert library.load().engine_new
    finally:
        library.load.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process in this way")
def test_threads_that_cannot_be_started_are_an_error() -> None:
    """Where memory does not suffice for that many threads, the process goes on without."""
    script = """
import resource
from truthgpt_plugin_native import library
library.load()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
try:
    library.team(1000, 0)
except library.NativeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1000 threads cannot be started\n"), done.stderr
