"""What `truthgpt doctor` says of the compiled code."""

from __future__ import annotations

import torch

from truthgpt_core.compiled_code import NativeError
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_native import library
from truthgpt_plugin_native.products import multiply

_COLUMNS = 64


def diagnose() -> Diagnosis:
    """Load the code, or compile it, and multiply with it what it has to be right about."""
    try:
        library.load()
    except NativeError as error:
        return Diagnosis.failed("engine", error.message, error.hint or "")
    integers = torch.arange(3 * _COLUMNS, dtype=torch.int8).view(3, _COLUMNS)
    row = torch.arange(_COLUMNS, dtype=torch.float32) - _COLUMNS / 2
    row[::4] = 127.0  # the largest of each four: all others are whole numbers of its steps
    product = multiply(row.unsqueeze(0), StoredMatrix(integers, torch.ones(3)))
    if torch.equal(product[0], integers.float() @ row):
        found = library.packaged()
        origin = "was compiled on this machine" if found is None else f"is that for {found.stem}"
        return Diagnosis.ok("engine", f"the code {origin}, and multiplies right")
    return Diagnosis.failed(
        "engine",
        "the compiled code multiplies wrong",
        "Set TRUTHGPT_PLUGINS_BLOCK=native, and report it with this machine's processor.",
    )
