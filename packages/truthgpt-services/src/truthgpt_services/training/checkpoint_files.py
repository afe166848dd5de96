"""One checkpoint on disk: a directory that is complete or invisible.

It is written as `truthgpt_services.storage.atomic` has it, with a manifest of sizes and checksums,
which reading compares again.

There is no pickle in it: tensors are in safetensors files, all else in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from truthgpt_core.errors import in_one_line
from truthgpt_core.paths import read_regular_bytes
from truthgpt_services.errors import DamagedError
from truthgpt_services.storage import manifest as manifests
from truthgpt_services.storage.atomic import (
    explain_write_error,
    publish,
    share_as_umask_says,
    staging,
)
from truthgpt_services.storage.locks import hold
from truthgpt_services.training.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
MODEL = "model.safetensors"
TRAINING = "training.safetensors"
_FORMAT = 1


@dataclass
class Contents:
    """What is in a checkpoint.

    Attributes:
        step: steps of the optimizer that led to it.
        state: values for JSON, as `trees.encode` returns them.
        model: the weights, by name.
        training: tensors that the state refers to.
        metric: the validation loss, if it was evaluated at this step.
    """

    step: int
    state: dict[str, Any]
    model: dict[str, torch.Tensor] = field(default_factory=dict)
    training: dict[str, torch.Tensor] = field(default_factory=dict)
    metric: float | None = None


def write_checkpoint(path: Path, contents: Contents) -> None:
    """Write a checkpoint, so that it is there as a whole or not at all.

    Args:
        path: where it shall be. A checkpoint that is there is replaced, in one step where the
            system can.
        contents: what to write; its tensors are contiguous, on the CPU, and share no memory.

    Raises:
        CheckpointError: something else is there, or it cannot be written; then nothing of it is
            left, and what was there still is.
    """
    replace = path.exists()
    if replace:
        read_manifest(path)
    try:
        with staging(path) as directory:
            for name, tensors in ((MODEL, contents.model), (TRAINING, contents.training)):
                safetensors.torch.save_file(tensors, directory / name)
            with (directory / STATE).open("w", encoding="utf-8") as file:
                json.dump(contents.state, file, allow_nan=False)
            facts = {"format": _FORMAT, "step": contents.step, "metric": contents.metric}
            manifests.write_manifest(directory / MANIFEST, facts)
            share_as_umask_says(directory, like=MANIFEST)
            publish(directory, path, replace=replace)
    except Exception as error:
        explained = explain_write_error(error, path)
        if explained is not None:
            raise CheckpointError(
                explained.message, hint="Older checkpoints are whole. Free some space, and resume."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {reason or error}",
            hint="Older checkpoints are whole.",
        ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint, and check that it is what was written.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    try:
        manifest = manifests.read_manifest(path / MANIFEST, _FORMAT)
    except DamagedError as error:
        raise CheckpointError(error.message, hint=error.hint) from None
    step, metric = manifest.get("step"), manifest.get("metric")
    wrong = ""
    if type(step) is not int or step < 0:
        wrong = "step"
    elif metric is not None and type(metric) not in (int, float):
        wrong = "metric"
    elif manifest["files"].keys() != {MODEL, TRAINING, STATE}:
        wrong = "files"
    if wrong:
        raise CheckpointError(f'{path / MANIFEST} is damaged: "{wrong}" is missing or wrong')
    return manifest


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its manifest.

    Returns:
        The manifest.

    Raises:
        CheckpointError: it names the file that is missing, truncated or damaged.
    """
    manifest = read_manifest(path)
    try:
        manifests.verify_files(path, manifest)
    except DamagedError as error:
        raise CheckpointError(error.message) from None
    return manifest


def read_checkpoint(path: Path) -> Contents:
    """Read a checkpoint, and check it; no process removes it meanwhile.

    Raises:
        CheckpointError: it is not whole.
    """
    with in_use(path):
        manifest = verify_checkpoint(path)
        try:
            state = json.loads(read_regular_bytes(path / STATE))
            if not isinstance(state, dict):
                raise ValueError("it holds no object")
            return Contents(
                step=manifest["step"],
                state=state,
                model=safetensors.torch.load_file(path / MODEL),
                training=safetensors.torch.load_file(path / TRAINING),
                metric=manifest["metric"],
            )
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {in_one_line(error)}") from error


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keep every process from removing a checkpoint while the block runs."""
    try:
        held = hold(path / MANIFEST)
    except OSError:
        # Whoever reads on will say what is wrong.
        yield
        return
    with held:
        yield
