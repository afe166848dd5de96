"""An exporter as a third party would publish it: weights for NumPy, in one zip file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from pydantic import Field

from truthgpt_core import Exporter, Options, PlainModel, hookimpl


class NpzOptions(Options):
    compress: bool = Field(False, description="Take less room, and more time.")


class Npz(Exporter[NpzOptions]):
    name = "npz"
    summary = "weights.npz for NumPy, in float32, and config.json."
    options_type = NpzOptions

    def export(self, model: PlainModel, directory: Path, options: NpzOptions) -> None:
        method = zipfile.ZIP_DEFLATED if options.compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(directory / "weights.npz", "w", method) as archive:
            for name, tensor in model.weights():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    numpy.save(file, tensor.float().numpy())
        (directory / "config.json").write_text(json.dumps(dict(model.config)))


@hookimpl
def register_components(factories: Mapping[str, Any]) -> None:
    factories["exporter_factory"].register(Npz.name, Npz)
