"""`truthgpt convert`: any model source as an ordinary transformers directory."""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_core.cli.terminal import say


@click.command(short_help="Write a model from any source as a transformers directory.")
@click.argument("model")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the directory, if TruthGPT wrote it.")
def convert(model: str, directory: Path, overwrite: bool) -> None:
    """Write MODEL into DIRECTORY with its tokenizer, as transformers writes models.

    MODEL is a directory, a .gguf file, package:PACKAGE/FILE or a hub id.
    """
    from truthgpt_core.application import get_application
    from truthgpt_services.commands.progress import shown_progress

    with shown_progress() as progress:
        progress(f"Converting {model}", 0, 0)
        models = get_application().get_service("model_service")
        models.progress = progress
        models.convert(model, directory, overwrite=overwrite)
    say(f"Wrote {directory}")
