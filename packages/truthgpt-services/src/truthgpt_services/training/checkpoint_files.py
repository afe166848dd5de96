"""One checkpoint on disk: a directory that is complete or invisible.

It is written under a hidden name beside its own. Each file is flushed to the disk, then the
manifest with the sizes and checksums of all of them, then the directory; only then does it
take its name, and the directory above is flushed. Reading checks all of that again.

There is no pickle in it: tensors are in safetensors files, all else in JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from truthgpt_core.errors import in_one_line
from truthgpt_core.paths import UnusableFileError, open_regular, read_regular_bytes
from truthgpt_services.storage.atomic import exchange, explain_write_error
from truthgpt_services.storage.locks import share, try_alone
from truthgpt_services.training.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
MODEL = "model.safetensors"
TRAINING = "training.safetensors"
_FORMAT = 1
_BLOCK = 1 << 20
_LARGEST_MANIFEST = 1 << 20


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
        path: where it shall be; nothing may be there.
        contents: what to write; its tensors are contiguous, on the CPU, and share no memory.

    Raises:
        CheckpointError: it cannot be written; nothing of it is left.
    """
    hidden = hidden_name(path)
    # Another process may have had our number, and been killed.
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir(parents=True)
        _write_files(hidden, contents)
        hidden.rename(path)
        flush(path.parent)
    except Exception as error:
        shutil.rmtree(hidden, ignore_errors=True)
        explained = explain_write_error(error, path)
        if explained is not None:
            raise CheckpointError(
                explained.message, hint="Older checkpoints are whole. Free some space, and resume."
            ) from error
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {reason or error}",
            hint="Older checkpoints are whole.",
        ) from error


def replace_checkpoint(path: Path, contents: Contents) -> None:
    """Write a checkpoint in the place of another, in one step where the system can.

    Args:
        path: where one is.
        contents: as for `write_checkpoint`.

    Raises:
        CheckpointError: what is there is no checkpoint, or it cannot be written; then the old
            one is there.
    """
    read_manifest(path)
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    write_checkpoint(new, contents)
    if not exchange(new, path):
        remove_checkpoint(path)
        new.rename(path)
    flush(path.parent)
    shutil.rmtree(new, ignore_errors=True)


def hidden_name(path: Path) -> Path:
    """Return under which name a checkpoint is written before it is complete."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _write_files(directory: Path, contents: Contents) -> None:
    for name, tensors in ((MODEL, contents.model), (TRAINING, contents.training)):
        safetensors.torch.save_file(tensors, directory / name)
    with (directory / STATE).open("w", encoding="utf-8") as file:
        json.dump(contents.state, file, allow_nan=False)
    files = {}
    for name in (MODEL, TRAINING, STATE):
        flush(directory / name)
        size, digest = _measure(directory / name)
        files[name] = {"bytes": size, "sha256": digest}
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "step": contents.step,
        "metric": contents.metric,
        "files": files,
    }
    manifest["sha256"] = _digest_of(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    flush(directory / MANIFEST)
    flush(directory)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint, and check that it is what was written.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    try:
        manifest = json.loads(read_regular_bytes(path / MANIFEST, limit=_LARGEST_MANIFEST))
        claimed = manifest.pop("sha256")
        intact = claimed == _digest_of(manifest)
    except UnusableFileError as error:
        raise CheckpointError(error.message) from None
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path / MANIFEST} is damaged")
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has the format {manifest.get('format')!r:.40}, and this version reads "
            f"{_FORMAT}",
            hint="Use the version of truthgpt-services that wrote it.",
        )
    if wrong := _wrong_key(manifest):
        raise CheckpointError(f'{path / MANIFEST} is damaged: "{wrong}" is missing or wrong')
    return dict(manifest)


def _wrong_key(manifest: Mapping[str, Any]) -> str | None:
    """Return which key of a manifest does not have what every manifest has, or None."""
    step, metric, files = (manifest.get(key) for key in ("step", "metric", "files"))
    if type(step) is not int or step < 0:
        return "step"
    if metric is not None and type(metric) not in (int, float):
        return "metric"
    if not isinstance(files, dict) or files.keys() != {MODEL, TRAINING, STATE}:
        return "files"
    for each in files.values():
        sized = isinstance(each, dict) and type(each.get("bytes")) is int
        if not (sized and isinstance(each.get("sha256"), str)):
            return "files"
    return None


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its manifest.

    Returns:
        The manifest.

    Raises:
        CheckpointError: it names the file that is missing, truncated or damaged.
    """
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != expected["bytes"]:
                raise CheckpointError(
                    f"{file} has {size} bytes instead of {expected['bytes']}: it is truncated"
                    if size < expected["bytes"]
                    else f"{file} has {size} bytes instead of {expected['bytes']}"
                )
            if _measure(file)[1] != expected["sha256"]:
                raise CheckpointError(f"{file} is damaged: its checksum is another")
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from None
    return manifest


def read_checkpoint(path: Path) -> Contents:
    """Read a checkpoint, and check it; nobody removes it meanwhile.

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
        file = open_regular(path / MANIFEST)
    except OSError:
        # Whoever reads on will say what is wrong.
        yield
        return
    with file:
        share(file)
        yield


def remove_checkpoint(path: Path) -> bool:
    """Remove a checkpoint that nobody reads.

    Returns:
        Whether it was removed.
    """
    grave = path.with_name(f".{path.name}.removed-{os.getpid()}")
    with suppress(OSError), open_regular(path / MANIFEST) as file:
        if not try_alone(file):
            return False
        # Under its name there is never a part of a checkpoint.
        path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
        return True
    return False


def flush(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _measure(file: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open_regular(file) as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
