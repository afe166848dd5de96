"""The kernels, each in a process of its own, because a wrong one would kill it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_matmul import KERNELS

from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.layer_classes import layer_class
from truthgpt_plugin_quantize.quantized import QuantizedLinear
from truthgpt_plugin_quantize.schemes import NAMES, Scheme

SCRIPT = Path(__file__).with_name("kernel_examples.py")


@pytest.mark.campaign(cases=5)
@pytest.mark.parametrize(
    ("scheme", "kernel", "capability"),
    [
        *(("int8", kernel, None) for kernel in KERNELS),
        *(("int8", kernel, "default") for kernel in KERNELS),
        ("int4", "native", None),
        ("int4", "dequantize", None),
        ("int8-dynamic", "native", None),
        ("int8-dynamic", "dequantize", None),
        ("fp8", "dequantize", None),
    ],
)
def test_computes_what_the_stored_numbers_say(
    scheme: str,
    kernel: str,
    capability: str | None,
    tmp_path: Path,
) -> None:
    """Any shape, dtype and layout comes out within rounding of float64, with and without SIMD."""
    under_way = tmp_path / "example"
    environment = dict(os.environ)
    if capability is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    process = subprocess.run(
        [sys.executable, str(SCRIPT), scheme, kernel, str(under_way)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    example = under_way.read_text() if under_way.exists() else "none: it did not begin"
    if process.returncode < 0:
        pytest.fail(f"killed by signal {-process.returncode}; the example under way was {example}")
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.strip() == "done"


def made_of(scheme: str) -> QuantizedLinear:
    """Return a layer of 192 to 40."""
    made = Scheme(scheme).with_group(32)
    linear = torch.nn.Linear(192, 40)
    return layer_class(made).from_linear(linear, KERNELS["native"], made.group_size or 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 31, 40, 191])
@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("scheme", NAMES)
def test_what_is_not_finite_is_not_hidden(scheme: str, rows: int, at: int, bad: float) -> None:
    """A NaN or infinity leaves no number in its own row's answers, and touches no other row."""
    layer = made_of(scheme)
    x = torch.randn(rows, 192)
    before = layer(x)
    x[1, at] = bad
    after = layer(x)
    assert not after[1].isfinite().any()
    assert torch.equal(after[::2], before[::2])


@pytest.mark.parametrize("scheme", NAMES)
def test_another_default_dtype_changes_nothing(scheme: str) -> None:
    """Loading a model sets the default dtype for a while; answers do not depend on it."""
    layer = made_of(scheme)
    x = torch.randn(3, 192)
    before = layer(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        after = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(after, before)


def test_sums_beyond_float16_are_not_infinite() -> None:
    """float16 activations of real models, in the thousands, do not overflow before scaling."""
    linear = torch.nn.Linear(64, 4, bias=False, dtype=torch.float16)
    torch.nn.init.constant_(linear.weight, 0.01)
    for kernel in KERNELS:
        for rows in (1, 9):
            out = Int8Linear.from_linear(linear, KERNELS[kernel])(
                torch.full((rows, 64), 2000.0).half()
            )
            assert out.flatten().tolist() == pytest.approx([1280.0] * 4 * rows, rel=0.02), kernel


def test_scales_below_float16_are_not_lost() -> None:
    """A float16 layer with small weights keeps its accuracy: scales are never float16."""
    linear = torch.nn.Linear(64, 4, bias=False)
    torch.nn.init.constant_(linear.weight, 3e-6)
    x = torch.full((1, 64), 1000.0)
    out = Int8Linear.from_linear(linear, KERNELS["packed"])(x.half())
    assert out.flatten().tolist() == pytest.approx([64 * 1000.0 * 3e-6] * 4, rel=1e-3)
