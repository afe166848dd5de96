"""Exporters: finding one by name, and the one that is built in. Nothing here imports torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.errors import UsageError
from truthgpt_core.optimization import Options
from truthgpt_core.optimization.options import wrong_options
from truthgpt_core.sources import Exporter, PlainModel
from truthgpt_services.errors import (
    ModelError,
    naming_the_plugin,
    origin_of,
    refuse_unknown_component,
)
from truthgpt_services.models.model_files import INDEX, ONE_FILE
from truthgpt_services.storage.atomic import MARKER, StagedDirectory, explain_write_error

SAFETENSORS = "safetensors"
_FORMAT = 1
_GB = 10**9


class SafetensorsOptions(Options):
    """How large the files are."""

    max_shard_gb: float = Field(
        5.0, gt=0, description="Gigabytes that one file of weights may have; a tensor is in one."
    )


class SafetensorsExporter(Exporter[SafetensorsOptions]):
    """A directory as transformers writes it, which loads without TruthGPT."""

    name = SAFETENSORS
    summary = "A directory as transformers writes it, which loads without TruthGPT."
    options_type = SafetensorsOptions

    def export(self, model: PlainModel, directory: Path, options: SafetensorsOptions) -> None:
        """Write the small files as they are, and each tensor when it is read."""
        import torch

        from truthgpt_services.models.safetensors_files import SafetensorsWriter

        shutil.copytree(model.directory, directory, dirs_exist_ok=True)
        files = _files(model, int(options.max_shard_gb * _GB))
        places = {name: file for file, names in files.items() for name in names}
        tensors = {
            name: (getattr(torch, info.dtype), info.shape) for name, info in model.tensors.items()
        }
        with ExitStack() as stack:
            writers = {
                file: stack.enter_context(
                    SafetensorsWriter(directory / file, {name: tensors[name] for name in names})
                )
                for file, names in files.items()
            }
            for name, tensor in model.weights():
                writers[places[name]].write(name, tensor)
        if len(files) > 1:
            size = sum(info.nbytes for info in model.tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(model: PlainModel, largest: int) -> dict[str, list[str]]:
    """Return which tensors are in which file, as transformers names them."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in model.tensors.items():
        if shards[-1] and size + info.nbytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    if len(shards) == 1:
        return {ONE_FILE: shards[0]}
    stem = ONE_FILE.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05}-of-{len(shards):05}.safetensors": names
        for number, names in enumerate(shards, 1)
    }


def find_exporter(name: str, exporters: DynamicFactory[Exporter[Any]]) -> type[Exporter[Any]]:
    """Return an exporter by its name.

    Args:
        name: what the user typed.
        exporters: the factory `exporter_factory`.

    Raises:
        UsageError: there is none of that name; it says which there are.
        FactoryError: its plugin cannot be imported.
    """
    refuse_unknown_component("exporter", name, exporters)
    return exporters.get_class(name)


def make_exporter(
    name: str, options: Mapping[str, Any], exporters: DynamicFactory[Exporter[Any]]
) -> tuple[Exporter[Any], Options]:
    """Make an exporter and check its options.

    Args:
        name: as for `find_exporter`.
        options: by name, as text or in their types.
        exporters: as for `find_exporter`.

    Raises:
        UsageError: there is none of that name, or an option is unknown or has a wrong value.
        FactoryError: its plugin cannot be imported, or it cannot be made.
    """
    kind = find_exporter(name, exporters)
    try:
        chosen = kind.options_type(**options)
    except ValidationError as error:
        raise UsageError(wrong_options(name, kind.options_type, error)) from None
    return exporters.create(name), chosen


def export(
    exporter: Exporter[Any], options: Options, model: PlainModel, target: StagedDirectory
) -> None:
    """Let an exporter write a model, and mark the directory as one that is ours and whole.

    Raises:
        ModelError: the exporter failed, or wrote nothing.
        OutputError: the disk is full.
    """
    with naming_the_plugin(exporter, "exporter"):
        try:
            exporter.export(model, target.path, options)
            empty = not any(target.path.iterdir())
            marker = {"format": _FORMAT, "kind": "exported", "source": model.name}
            (target.path / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        except OSError as error:
            raise explain_write_error(error, target.target) or error from error
    if empty:
        raise ModelError(f'The exporter "{exporter.name}" ({origin_of(exporter)}) wrote nothing')
