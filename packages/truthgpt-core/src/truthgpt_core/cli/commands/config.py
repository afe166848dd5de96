"""`truthgpt config`: what a training configuration comes to, and what may stand in one."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import click

from truthgpt_core.cli.commands.activating import activate_plugins
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import expanded, write_file
from truthgpt_core.terminal_text import columns


@click.group()
def config() -> None:
    """Show a training configuration as it is understood, or its JSON Schema."""


@config.command(short_help="Print each value in force, and where it comes from.")
@click.argument("file")
@click.option(
    "--set",
    "-s",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set a value, written as in YAML; may be repeated, the later goes before the earlier.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print each value of the training configuration FILE, and where it comes from.

    That is a place in a file, a variable of the environment, "override N" for the Nth --set, or
    the default. Values are printed as in JSON.

    Priority, from the lowest: defaults, FILE, variables named TRUTHGPT_CONFIG__section__key,
    --set.

    \b
      truthgpt config show train.yaml
      truthgpt config show train.yaml --set training.epochs=3 --set data.source=text
    """  # noqa: D301 - click wants the character, not its escape
    plugins = activate_plugins()
    from truthgpt_core.config import ConfigManager, render_resolved

    loaded = ConfigManager.load_config(
        file, overrides, factories=plugins.factories, sections=plugins.sections
    )
    rows = [row._replace(origin=_from_here(row.origin)) for row in render_resolved(loaded)]
    if as_json:
        found = [{**row._asdict(), "value": _finite(row.value)} for row in rows]
        click.echo(json.dumps(found, indent=2))
        return
    for line in columns((row.path, _format_value(row.value), row.origin) for row in rows):
        click.echo(line)


@config.command(short_help="Print the JSON Schema that editors complete from.")
@click.option("--output", "-o", metavar="FILE", help="Write it to FILE, whole or not at all.")
def schema(output: str | None) -> None:
    """Print the JSON Schema of training configurations, with the sections of plugins.

    Editors check files against it, complete their keys and show what each is for. Write it
    beside the files, and again when plugins come or go:

    \b
      truthgpt config schema -o train.schema.json

    and begin each file with this line, which the language server for YAML reads (VS Code's
    YAML extension, Neovim, Helix, Emacs, ...):

    \b
      # yaml-language-server: $schema=train.schema.json
    """  # noqa: D301 - click wants the character, not its escape
    plugins = activate_plugins()
    from truthgpt_core.config import json_schema

    found = json_schema(factories=plugins.factories, sections=plugins.sections)
    text = json.dumps(found, indent=2)
    if output is None:
        click.echo(text)
    else:
        _write(output, f"{text}\n")


def _from_here(origin: str) -> str:
    """Return an origin with its file, if it has one, named from here where that is shorter."""
    file, *place = origin.rsplit(":", 2)
    return ":".join([_shortest(file), *place])


@cache
def _shortest(path: str) -> str:
    # It is another file if `..` follows a link, and there is no way to one on another drive.
    with suppress(OSError, ValueError):
        relative = os.path.relpath(path)
        if len(relative) < len(path) and Path(relative).samefile(path):
            return relative
    return path


def _finite(value: object) -> object:
    """Return YAML's name of a number that JSON has no way to write, or the value itself."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"


def _format_value(value: object) -> str:
    finite = _finite(value)
    return json.dumps(value, ensure_ascii=False) if finite is value else str(finite)


def _write(output: str, text: str) -> None:
    # A link stays one: what it names is written.
    target = Path(os.path.realpath(expanded(output)))
    if target.exists() and not target.is_file():
        raise TruthGPTError(f"{output} is not a file")
    try:
        write_file(target, text)
    except OSError as error:
        raise TruthGPTError(f"{output} cannot be written: {error.strerror}") from error
