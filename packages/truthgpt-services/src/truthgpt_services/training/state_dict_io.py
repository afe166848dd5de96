"""Nested values as JSON and tensors, and back, exactly: what optimizers and schedules are made of.

JSON has neither tuples nor tensors nor keys that are numbers. Each of them becomes an object
with one key that begins with a dollar sign.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import torch

from truthgpt_services.training.errors import CheckpointError


def encode(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Turn a value into what JSON can hold.

    Args:
        value: None, a bool, number, string, bytes, tensor, or a list, tuple or mapping of such.
        tensors: where tensors are put, by their path.
        path: of the value, for tensors and errors.

    Returns:
        The value for JSON; floats keep every bit.

    Raises:
        CheckpointError: there is something else in it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach()
        return {"$tensor": path}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list):
        return [encode(each, tensors, f"{path}.{at}") for at, each in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [encode(each, tensors, f"{path}.{at}") for at, each in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(each, tensors, f"{path}.{key}") for key, each in value.items()}
        return {
            "$items": [
                [encode(key, tensors, path), encode(each, tensors, f"{path}.{key}")]
                for key, each in value.items()
            ]
        }
    raise CheckpointError(
        f"{path} is of the type {type(value).__name__}, which a checkpoint cannot hold",
        hint="It holds numbers, strings, tensors, and lists, tuples and mappings of them.",
    )


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what `encode` was given.

    Args:
        value: what it returned.
        tensors: those that it took out.
    """
    if isinstance(value, list):
        return [decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        match key:
            case "$float":
                return float(inner)
            case "$tensor":
                return tensors[inner]
            case "$bytes":
                return base64.b64decode(inner)
            case "$tuple":
                return tuple(decode(each, tensors) for each in inner)
            case "$items":
                return {decode(each, tensors): decode(of, tensors) for each, of in inner}
    return {key: decode(each, tensors) for key, each in value.items()}
