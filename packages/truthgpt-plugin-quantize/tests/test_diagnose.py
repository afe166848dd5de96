"""What the plugin says to `truthgpt doctor`."""

from __future__ import annotations

import pytest
import torch

from truthgpt_core.diagnosis import Status
from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.plugin import QuantizePlugin


def test_names_the_kernel_that_is_taken_here(alone: OptimizationContext) -> None:
    """It is what `apply` chooses on this machine where no plugin multiplies integers."""
    (said,) = QuantizePlugin().diagnose()
    chosen = Quantize().apply(torch.nn.Sequential(torch.nn.Linear(32, 8)), alone)
    assert said.status is Status.OK
    assert said.detail.endswith(f" is {chosen.settings['kernel']}")


def test_a_kernel_that_computes_wrong_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is tried, and wrong numbers come with a way around it."""
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: x[..., : self.out_features] * 0)
    (said,) = QuantizePlugin().diagnose()
    assert said.status is Status.FAILED
    assert "kernel=dequantize" in said.fix
