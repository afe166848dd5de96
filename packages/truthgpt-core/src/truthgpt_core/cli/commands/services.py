"""`truthgpt services`: what the plugins register, and who needs whom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from truthgpt_core.cli.commands.activating import activate_plugins
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.terminal_text import columns

if TYPE_CHECKING:
    from truthgpt_core.service_registry import ServiceHealth


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--health", is_flag=True, help="Say how each service is instead; none is built.")
def services(as_json: bool, health: bool) -> None:
    """Draw the services that the plugins register, and who needs whom.

    Prints a Mermaid flowchart, for a file or a block of Markdown: singletons are rectangles,
    transient services stadiums.

    Ends with an error if the services cannot be built: one needs what is not registered, or they
    need each other in a cycle. The graph is printed all the same.

    \b
      truthgpt services > services.mmd
    """  # noqa: D301 - click wants the character, not its escape
    container = activate_plugins().container
    registry = container.registry
    if not any(one.plugin for one in registry.describe()):
        click.echo("truthgpt: no plugin registers a service", err=True)
    unwell: list[str] = []
    if health:
        found = container.health()
        unwell = [name for name, one in found.items() if not one.ok]
        if as_json:
            listed = [{"name": name, **dataclasses.asdict(one)} for name, one in found.items()]
            click.echo(json.dumps(listed, indent=2))
        else:
            _print_health(found)
    elif as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in registry.describe()], indent=2))
    else:
        click.echo(registry.graph(), nl=False)  # which writes all but letters as entities
    registry.validate()
    if unwell:
        raise TruthGPTError(f"Not well: {', '.join(unwell)}")


def _print_health(found: Mapping[str, ServiceHealth]) -> None:
    rows = [("service", "lifetime", "built", "health")] if found else []
    for name, one in found.items():
        state = "" if not one.built else "well" if one.ok else "not well"
        message = f"{state}: {one.message}" if one.message else state
        rows.append((name, one.lifetime, "yes" if one.built else "no", message))
    for line in columns(rows):
        click.echo(line)
