"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin


class QuantizePlugin(Plugin):
    """Brings the optimization `quantize`, which its entry point names."""

    @property
    def name(self) -> str:
        """Its name."""
        return "quantize"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-quantize")

    @hookimpl
    def make_decode_step(self, model: Any, cache: Any) -> Callable[[Any, Any], Any] | None:
        """Take one token through the whole model in one call of compiled code, where it can be."""
        if not any(getattr(each, "kernel", None) == "native" for each in model.modules()):
            return None
        from truthgpt_plugin_quantize.decode_step import native_step

        return native_step(model, cache)

    @hookimpl
    def diagnose(self) -> Iterator[Diagnosis]:
        """Say which kernel `kernel=auto` takes on this CPU, and whether it computes right."""
        import torch

        from truthgpt_plugin_quantize.int8 import Int8Linear
        from truthgpt_plugin_quantize.kernels import MULTIPLE, choose_kernel

        kernel = choose_kernel()
        capability = torch.backends.cpu.get_cpu_capability()
        chosen = f"auto takes {kernel} on this CPU ({capability})"
        linear = torch.nn.Linear(MULTIPLE, 2, bias=False, dtype=torch.float32)
        torch.nn.init.constant_(linear.weight, 0.5)
        row = torch.linspace(0, 1, MULTIPLE).unsqueeze(0)
        # Within what rounding to bfloat16 costs.
        if torch.allclose(Int8Linear.from_linear(linear, kernel)(row), linear(row), rtol=0.02):
            yield Diagnosis.ok("int8 kernel", chosen)
        else:
            yield Diagnosis.failed(
                "int8 kernel",
                f"{chosen}, and it computes wrong numbers",
                "Use --apply quantize:kernel=dequantize.",
            )
