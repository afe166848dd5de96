"""`truthgpt convert`: `truthgpt export --to safetensors`, by its earlier name."""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_services.commands.export import write
from truthgpt_services.models.exporters import SAFETENSORS


@click.command(short_help="Write a model from any source as a transformers directory.")
@click.argument("model")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the directory, if TruthGPT wrote it.")
def convert(model: str, directory: Path, overwrite: bool) -> None:
    """Write MODEL into DIRECTORY with its tokenizer, as transformers writes models.

    It is the same as `truthgpt export MODEL DIRECTORY`.
    """
    write(model, directory, SAFETENSORS, {}, overwrite=overwrite)
