"""Turning a GGUF file into a transformers directory, once: the result is kept in the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import read_gguf_metadata

from truthgpt_core.optimization import Progress, no_progress
from truthgpt_core.paths import cache_dir, file_sha256
from truthgpt_core.sources import ResolvedModel
from truthgpt_core.terminal_text import harmless
from truthgpt_services.errors import DamagedError, ModelError
from truthgpt_services.models.loading import (
    explained,
    quiet,
    refuse_more_numbers,
    refuse_random_weights,
)
from truthgpt_services.models.sources import files_of
from truthgpt_services.storage.atomic import MARKER, StagedDirectory, explained_writing, remove
from truthgpt_services.storage.manifest import read_manifest, verify_files, write_manifest

logger = logging.getLogger(__name__)

_FORMAT = 1
_NUMBERS_IN_A_BYTE = 8
_ALWAYS_FINE = 1024


def as_directory(resolved: ResolvedModel, progress: Progress = no_progress) -> Path:
    """Return a transformers directory for a model, converting a GGUF file if need be.

    A converted model is kept in the cache under a key made of the file's content
    and of the versions that converted it. Its files are compared with their checksums each
    time, and converted again if one is damaged.

    Raises:
        ModelError: the file cannot be converted, or the model has no files on this machine.
        OutputError: the cache cannot be written.
    """
    path = files_of(resolved)
    if not resolved.is_gguf:
        return path
    key = hashlib.sha256()
    key.update(bytes.fromhex(file_sha256(path)))
    for part in (str(_FORMAT), version("transformers"), version("gguf")):
        key.update(part.encode())
    target = cache_dir("converted", f"{path.stem}-{key.hexdigest()[:16]}")
    if os.path.lexists(target):
        damage = _damage(target)
        if not damage:
            return target
        logger.warning("%s is converted again: in the cache, %s", path, damage)
        # All below it is ours, under a name that only `resolved` has.
        with suppress(OSError):
            remove(target)
    progress("Converting GGUF, once: the result is kept in the cache", 0, 0)
    with StagedDirectory(target, overwrite=True) as staged:
        with _redirect_bars(progress):
            _convert(path, staged.path)
        with explained_writing(target):
            facts = {"format": _FORMAT, "kind": "converted", "source": resolved.spec}
            write_manifest(staged.path / MARKER, facts)
        staged.commit()
    return target


def _damage(directory: Path) -> str:
    """Say what is wrong with a converted model in the cache; empty if nothing is."""
    try:
        verify_files(directory, read_manifest(directory / MARKER, _FORMAT))
    except DamagedError as error:
        return error.message
    return ""


@contextmanager
def _redirect_bars(progress: Progress) -> Iterator[None]:
    """Tell of what transformers draws a bar of, which it does whatever one asks it to leave."""

    def bar(tensors: Sequence[Any], **_: object) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            progress("Converting GGUF", number, len(tensors))
            yield tensor

    try:
        reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
        drawn = reading.tqdm
    except (ImportError, AttributeError):
        # No more than a bar is lost, or shown, where a later version has it elsewhere.
        yield
        return
    reading.tqdm = bar
    try:
        yield
    finally:
        reading.tqdm = drawn


def _convert(gguf: Path, directory: Path) -> None:
    # Alone in a folder: transformers would read the settings and the adapters that lie beside it.
    with tempfile.TemporaryDirectory(prefix="truthgpt-") as alone:
        link = Path(alone, "model.gguf")
        link.symlink_to(gguf.resolve())
        how: dict[str, Any] = {
            "gguf_file": str(link),
            "local_files_only": True,
            "trust_remote_code": False,
        }
        with explained(f"{gguf} cannot be converted"), quiet():
            _refuse_too_many(gguf)
            config = AutoConfig.from_pretrained(alone, **how)
            refuse_more_numbers(gguf, config, gguf.stat().st_size * _NUMBERS_IN_A_BYTE)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                alone, output_loading_info=True, ignore_mismatched_sizes=True, **how
            )
            model, found = loaded
            refuse_random_weights(gguf, model, found)
            tokenizer: Any = AutoTokenizer.from_pretrained(alone, **how)
    with quiet():
        # What transformers leaves on a model that it has already dequantized makes
        # save_pretrained refuse it.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        with explained_writing(directory):
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)


def _refuse_too_many(gguf: Path) -> None:
    """Refuse a file that names more layers or experts than it can have tensors for."""
    metadata, tensors = read_gguf_metadata(str(gguf))
    for key, value in metadata.items():
        counts = key.endswith("_count") and isinstance(value, int) and "." in key
        if counts and not key.startswith("general.") and value > max(len(tensors), _ALWAYS_FINE):
            raise ModelError(
                f"{gguf} cannot be converted: {harmless(key)[:80]} is {value:,}, and it has "
                f"{len(tensors):,} tensors"
            )
