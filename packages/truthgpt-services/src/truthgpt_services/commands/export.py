"""`truthgpt export`: a model from any source in a format that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from truthgpt_core.cli.terminal import say
from truthgpt_services.commands.values import named_options
from truthgpt_services.models.exporters import SAFETENSORS


@click.command(short_help="Write a model in a format that other programs read.")
@click.argument("model", required=False)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to",
    "exporter",
    metavar="NAME",
    default=SAFETENSORS,
    show_default=True,
    help="The format. help lists all of them, and NAME:help the options of one.",
)
@click.option(
    "--option",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the format; may be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace the directory, if TruthGPT wrote it.")
def export(
    model: str | None,
    directory: Path | None,
    exporter: str,
    given: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write MODEL into DIRECTORY in a format that other programs read.

    MODEL is a directory, one that `truthgpt optimize` made included, a .gguf file,
    package:PACKAGE/FILE or a hub id. What TruthGPT has optimized is written in ordinary weights:
    quantized layers are dequantized one after the other.

    \b
      truthgpt export MODEL DIRECTORY
      truthgpt export --to help
      truthgpt export --to safetensors:help
    """  # noqa: D301 - click wants the character, not its escape
    name, _, rest = exporter.partition(":")
    if exporter == "help" or rest == "help":
        say("\n".join(_help("" if exporter == "help" else name)))
        return
    if rest:
        raise click.UsageError(f"Write --to {name}, and --option {rest}.")
    if model is None or directory is None:
        raise click.UsageError("Name a model and a directory, as truthgpt export MODEL DIRECTORY.")
    write(model, directory, exporter, named_options(given), overwrite=overwrite)


def write(
    model: str, directory: Path, exporter: str, options: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Export a model and show the progress.

    Args:
        model: what the user typed.
        directory: to write.
        exporter: its name.
        options: of the exporter.
        overwrite: replace the directory, if TruthGPT wrote it.
    """
    from truthgpt_core.application import get_application
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.models.exporters import make_exporter

    application = get_application()
    application.plugins.activate_all()
    # A slip of the keyboard is answered before torch is imported.
    make_exporter(exporter, options, application.factories["exporter_factory"])
    with display_progress() as progress:
        progress(f"Exporting {model}", 0, 0)
        models = application.get_service("model_service")
        models.progress = progress
        models.export(model, directory, exporter, options, overwrite=overwrite)
    say(f"Wrote {directory}")


def _help(name: str) -> list[str]:
    """Return the lines about one exporter, or about all of them."""
    from truthgpt_core.application import get_application
    from truthgpt_core.optimization.option_help import option_lines
    from truthgpt_core.terminal_text import columns
    from truthgpt_services.models.exporters import find_exporter

    application = get_application()
    application.plugins.activate_all()
    factory = application.factories["exporter_factory"]
    if name:
        return option_lines(name, find_exporter(name, factory), written="--option ")
    kinds = [(each, find_exporter(each, factory)) for each in factory.names()]
    return list(columns([[each, getattr(kind, "summary", "")] for each, kind in kinds]))
