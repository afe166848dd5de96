"""The C++ code under sanitizers, with random models and random ways through them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from truthgpt_core.compiled_code import find_compiler

SOURCE = Path(__file__).with_name("fuzz_engine.cpp")
ENGINE = SOURCE.parents[1] / "src" / "truthgpt_plugin_native" / "cpp" / "engine.cpp"
COMMON = ("-O1", "-g", "-std=c++17", "-pthread", "-Wno-psabi", "-ffp-contract=off")
SANITIZERS = {
    "address,undefined": ("-fno-sanitize-recover=all", "-march=native"),
    "thread": ("-march=native",),
    # Without the vectors of x86, as on other processors.
    "undefined": ("-fno-sanitize-recover=all",),
}


def build(sanitizer: str, folder: Path) -> Path:
    """Compile the program; `benchmarks/soak.py` does so too."""
    program = folder / "fuzz"
    flags = (*COMMON, f"-fsanitize={sanitizer}", *SANITIZERS[sanitizer])
    subprocess.run([find_compiler(), *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


@pytest.mark.skipif(not ENGINE.exists(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_random_models_have_the_same_bits_and_no_undefined_behavior(
    sanitizer: str, tmp_path: Path
) -> None:
    """Twelve models of any shapes, kinds of weights, windows and threads; some are not finite."""
    program = build(sanitizer, tmp_path)
    done = subprocess.run([program, "1", "12"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "12 models\n"
