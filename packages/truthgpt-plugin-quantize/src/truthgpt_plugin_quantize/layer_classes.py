"""Which class of layers computes a scheme."""

from __future__ import annotations

from truthgpt_plugin_quantize.fp8 import Fp8Linear
from truthgpt_plugin_quantize.int4 import Int4Linear
from truthgpt_plugin_quantize.int8 import Int8DynamicLinear, Int8Linear
from truthgpt_plugin_quantize.quantized import QuantizedLinear
from truthgpt_plugin_quantize.schemes import Scheme


def layer_class(scheme: Scheme) -> type[QuantizedLinear]:
    """Return the kind of layer that computes a scheme."""
    kinds = (Int8Linear, Int8DynamicLinear, Int4Linear, Fp8Linear)
    return {kind.scheme: kind for kind in kinds}[scheme.name]
