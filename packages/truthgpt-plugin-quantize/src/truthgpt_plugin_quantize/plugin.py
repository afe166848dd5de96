"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

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
    def diagnose(self) -> Iterator[Diagnosis]:
        """Say which of PyTorch's kernels is best on this CPU, and whether it computes right."""
        import torch

        from truthgpt_plugin_quantize.int8 import Int8Linear
        from truthgpt_plugin_quantize.kernels import MULTIPLE, Kernel, choose_packed

        kernel = choose_packed()
        capability = torch.backends.cpu.get_cpu_capability()
        chosen = f"PyTorch's best on this CPU ({capability}) is {kernel}"
        linear = torch.nn.Linear(MULTIPLE, 2, bias=False, dtype=torch.float32)
        torch.nn.init.constant_(linear.weight, 0.5)
        row = torch.linspace(0, 1, MULTIPLE).unsqueeze(0)
        # Within what rounding to bfloat16 costs.
        if torch.allclose(
            Int8Linear.from_linear(linear, Kernel(kernel))(row), linear(row), rtol=0.02
        ):
            yield Diagnosis.ok("int8 kernel", chosen)
        else:
            yield Diagnosis.failed(
                "int8 kernel",
                f"{chosen}, and it computes wrong numbers",
                "Use --apply quantize:kernel=dequantize.",
            )
