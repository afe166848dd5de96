"""The code for processors that can do less than this one, which runs it as well."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference_products import random_matrix, rounded, weights_of

from truthgpt_core.compiled_code import find_compiler
from truthgpt_plugin_native import library
from truthgpt_plugin_native.compiling import FLAGS, LEVELS
from truthgpt_plugin_native.products import multiply

SOURCE = Path(__file__).parents[1] / "src" / "truthgpt_plugin_native" / "cpp" / "engine.cpp"
MACHINES = {"avx512-vnni": "cascadelake", "avx2": "haswell", "x86-64": "x86-64"}
"""What g++ and clang++ call a processor that can do what a level needs."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> None:
    """Nothing to wait for: these tests compile what they need."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(f"level-{name}")) for name in MACHINES
    ],
)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ctypes.CDLL]:
    """A level, compiled here; skipped where the processor cannot run it."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists() or not SOURCE.exists():
        pytest.skip("for Linux on x86-64, and the sources")
    if not LEVELS[request.param][1] <= set(cpuinfo.read_text().split()):
        pytest.skip("this processor cannot run it")
    made = tmp_path_factory.mktemp("level") / "engine.so"
    # Optimized for debugging it is compiled sooner.
    flags = ["-Og" if each == "-O3" else each for each in FLAGS]
    subprocess.run(
        [
            *(find_compiler(), *flags, f"-march={MACHINES[request.param]}"),
            *(str(SOURCE), "-o", str(made)),
        ],
        check=True,
    )
    return request.param, library._declare(ctypes.CDLL(str(made)))


@pytest.fixture
def level(compiled: tuple[str, ctypes.CDLL]) -> Iterator[str]:
    """Products are those of a level."""
    name, loaded = compiled
    library.team.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load", lambda: loaded)
        yield name
    library.team.cache_clear()


def test_the_code_says_its_level(level: str) -> None:
    """Reports and servers tell by it whether logits are to be the same."""
    assert library.load().engine_kernel().decode() == level


def test_products_are_right_at_every_level(level: str) -> None:
    """Of 8 and 4 bits, groups and whole rows, with some rows of activations and with many."""
    torch.manual_seed(0)
    for blocks, group, packed in ((3, 1, False), (3, 3, False), (18, 2, False), (10, 2, True)):
        matrix = random_matrix(37, blocks, group, packed=packed)
        for count in (1, 5, 300):
            x = torch.randn(count, blocks * 32)
            out = multiply(x, matrix)
            exact = rounded(x) @ weights_of(matrix).T
            bound = 2e-3 * (x.double().abs() @ weights_of(matrix).abs().T)
            assert ((out.double() - exact).abs() <= bound).all(), level
            assert torch.equal(multiply(x[:1], matrix)[0], out[0])
