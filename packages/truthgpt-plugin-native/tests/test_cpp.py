"""The C++ code under sanitizers, with random models and random ways through them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from truthgpt_core.compiled_code import find_compiler

SOURCE = Path(__file__).with_name("fuzz_engine.cpp")
ENGINE = SOURCE.parents[1] / "src" / "truthgpt_plugin_native" / "cpp" / "engine.cpp"
# Optimized for debugging, which takes much less time; sanitizers look at the same code.
COMMON = ("-Og", "-g1", "-std=c++17", "-pthread", "-Wno-psabi", "-ffp-contract=off")
SANITIZERS = {
    "address,undefined": ("-fno-sanitize-recover=all", "-march=native"),
    "thread": ("-march=native",),
    # Without the vectors of x86, as on other processors.
    "undefined": ("-fno-sanitize-recover=all",),
}

CROSS, EMULATOR = "aarch64-linux-gnu-", "qemu-aarch64"
TOOLS = {f"{CROSS}g++": "g++-aarch64-linux-gnu", EMULATOR: "qemu-user"}
"""What code for ARM is tested with, and the packages of Debian and Ubuntu that have it."""
EMULATED = {"neon-dotprod": ("armv8.2-a+dotprod", "max"), "neon": ("armv8-a", "cortex-a72")}
"""For what level what it is compiled for, and the processor that runs it; the second one could not
run the first."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> None:
    """Nothing to wait for: these tests compile what they need."""


def build(sanitizer: str, folder: Path) -> Path:
    """Compile the program; `benchmarks/soak.py` does so too."""
    program = folder / "fuzz"
    flags = (*COMMON, f"-fsanitize={sanitizer}", *SANITIZERS[sanitizer])
    subprocess.run([find_compiler(), *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def missing_tools() -> str:
    """Say what code for ARM cannot be tested without; nothing if it can."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    packages = " ".join(TOOLS[name] for name in missing)
    return f"without {' and '.join(missing)} (apt install {packages})" if missing else ""


def build_emulated(level: str, folder: Path) -> list[str]:
    """Compile the program for a processor of ARM; return the command that runs it on this one."""
    program = folder / level
    target, processor = EMULATED[level]
    flags = (*COMMON, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    compiler = (f"{CROSS}g++", f"-march={target}")
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    # Leaks cannot be looked for under emulation. Sanitizers read this process's own environment.
    without_leaks = ("env", "ASAN_OPTIONS=detect_leaks=0")
    options = ("-L", f"/usr/{CROSS[:-1]}", "-cpu", processor)
    return [*without_leaks, EMULATOR, *options, str(program)]


needs_sources = pytest.mark.skipif(
    not ENGINE.exists(), reason="the sources are not beside the tests"
)


@pytest.mark.slow
@needs_sources
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_random_models_have_the_same_bits_and_no_undefined_behavior(
    sanitizer: str, tmp_path: Path
) -> None:
    """Twelve models of any shapes, kinds of weights, windows and threads; some are not finite.

    And products of whole numbers, which have to be exact.
    """
    program = build(sanitizer, tmp_path)
    done = subprocess.run([program, "1", "12"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.startswith("12 models on ")


class Emulated(NamedTuple):
    """What came of running the program, compiled for ARM, with six models."""

    level: str
    program: str
    done: subprocess.CompletedProcess[str]
    logits: Path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(level, marks=pytest.mark.xdist_group(f"emulated-{level}"))
        for level in EMULATED
    ],
)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """Run it once for each level; skipped where there is no emulator or no compiler."""
    if missing := missing_tools():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("emulated")
    command = build_emulated(request.param, folder)
    logits = folder / "logits"
    done = subprocess.run(
        [*command, "1", "6", str(logits)], capture_output=True, text=True, timeout=600
    )
    return Emulated(request.param, command[-1], done, logits)


@needs_sources
def test_models_have_the_same_bits_on_arm_and_products_are_exact(emulated: Emulated) -> None:
    """The same program, of the code that is for that processor, without undefined behavior."""
    assert emulated.done.returncode == 0, emulated.done.stdout + emulated.done.stderr[-4000:]
    assert emulated.done.stdout == f"6 models on {emulated.level}\n"


@needs_sources
def test_models_predict_on_arm_what_they_predict_with_plain_code(
    emulated: Emulated, tmp_path: Path
) -> None:
    """Attention, activations and norms, too, which add up in an order of their own."""
    plain, expected = tmp_path / "plain", tmp_path / "expected"
    subprocess.run([find_compiler(), *COMMON, str(SOURCE), "-o", str(plain)], check=True)
    subprocess.run([plain, "1", "6", str(expected)], check=True, stdout=subprocess.DEVNULL)
    logits, own = (
        torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
        for path in (expected, emulated.logits)
    )
    assert len(logits) > 10_000
    torch.testing.assert_close(own, logits, rtol=0, atol=0.02)


@needs_sources
def test_code_for_arm_has_dot_products_where_it_says_so(emulated: Emulated) -> None:
    """What the name of the level says, the compiler has made of it."""
    command = (f"{CROSS}objdump", "--disassemble", emulated.program)
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (re.search(r"\tsdot\t", code) is not None) == (emulated.level == "neon-dotprod")
    assert re.search(r"\tfmla\t", code)
