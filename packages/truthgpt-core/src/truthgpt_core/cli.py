"""The `truthgpt` command.

Subcommands are entry points of the group `truthgpt.commands`: each names a click
command, imported when it is called and not before, so that `truthgpt --help` costs
the same however many there are.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from importlib.metadata import EntryPoint, version
from typing import Any

import click

from truthgpt_core import catalogue
from truthgpt_core.errors import TruthGPTError, did_you_mean, in_one_line

INTERRUPTED = 130


class CommandGroup(click.Group):
    """A click group whose further commands come from entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, without importing any."""
        return sorted({*self.commands, *self._entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of this name.

        Raises:
            TruthGPTError: it is installed but cannot be used or imported, or it is
                known to exist and not installed, or there is none of that name.
        """
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        from truthgpt_core import discovery

        installed = discovery.discover()
        for distribution in installed:
            entry_point = distribution.entry_points.get(discovery.COMMANDS, {}).get(cmd_name)
            if entry_point is not None:
                reason = discovery.judge(installed).get(distribution.name)
                if reason:
                    raise TruthGPTError(
                        f'The command "{cmd_name}" of {distribution.name} cannot be used: {reason}'
                    )
                return _load_command(entry_point)
        missing = catalogue.distribution_of("commands", cmd_name)
        if missing:
            raise TruthGPTError(
                f'The command "{cmd_name}" is not installed',
                hint=f"It comes with {missing}: pip install {missing}.",
            )
        known = [*self.list_commands(ctx), *catalogue.known("commands")]
        raise TruthGPTError(
            f'There is no command "{cmd_name}"',
            hint=did_you_mean(cmd_name, known) or "See truthgpt --help.",
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, those from entry points without importing them."""
        rows = []
        # Once: each call reads the metadata of everything that is installed.
        installed = self._entry_points()
        for name in sorted({*self.commands, *installed}):
            own = self.commands.get(name)
            if own is not None:
                rows.append((name, own.get_short_help_str(limit=80)))
                continue
            entry_point = installed[name]
            distribution = entry_point.dist.name if entry_point.dist else entry_point.module
            rows.append((name, catalogue.help_of("commands", name) or f"(from {distribution})"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _entry_points(self) -> dict[str, EntryPoint]:
        from truthgpt_core import discovery

        return {
            name: entry_point
            for distribution in discovery.discover()
            for name, entry_point in distribution.entry_points.get(discovery.COMMANDS, {}).items()
        }


def _load_command(entry_point: EntryPoint) -> click.Command:
    try:
        command = entry_point.load()
    except (Exception, SystemExit) as error:
        distribution = entry_point.dist.name if entry_point.dist else entry_point.module
        raise TruthGPTError(
            f'The command "{entry_point.name}" of {distribution} cannot be imported: '
            f"{in_one_line(error)}",
            hint=f"Reinstall it: pip install --force-reinstall {distribution}.",
        ) from error
    if not isinstance(command, click.Command):
        raise TruthGPTError(
            f'"{entry_point.value}", the command "{entry_point.name}", is no click command'
        )
    return command


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("truthgpt-core"), prog_name="truthgpt")
def cli() -> None:
    r"""Make open language models faster and smaller, and see whether it worked.

    Every optimization is a plugin, and is measured on this machine against the
    model it started from.

    \b
      truthgpt optimize MODEL --apply quantize,compile --output DIR
      truthgpt generate DIR "The future of AI is"
    """


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--load", is_flag=True, help="Import and activate them, to see which work.")
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with an error if one is broken; so does TRUTHGPT_STRICT=1.",
)
def plugins(as_json: bool, load: bool, strict: bool) -> None:
    """List the installed plugins and what they are good for."""
    from truthgpt_core.plugin_base import STRICT, State, installed_rows

    if load:
        from truthgpt_core.plugin_system import PluginManager

        manager = PluginManager(strict=False)
        manager.activate_all()
        rows = manager.rows()
    else:
        rows = [row for _, row in sorted(installed_rows().items())]
    if as_json:
        click.echo(json.dumps([_as_json(row) for row in rows], indent=2))
    elif rows:
        _print_table(rows)
    else:
        click.echo("No plugins are installed. Try: pip install truthgpt-plugin-quantize")
    broken = [row.name for row in rows if row.state is State.BROKEN]
    if broken and (strict or os.environ.get(STRICT) == "1"):
        raise TruthGPTError(f"Broken: {', '.join(broken)}")


def _as_json(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state.value,
        "reason": row.reason,
        "distribution": row.distribution.name if row.distribution else None,
        "version": row.version,
        "api": row.api,
        "optimizations": row.optimizations,
    }


def _print_table(rows: list[Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("plugin", "state", "distribution", "version", "optimizations"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (
            row.name,
            row.state.value,
            row.distribution.name if row.distribution else "",
            row.version,
            ", ".join(row.optimizations),
        )
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(Text(f"{row.name}: {row.reason}"))


def main() -> None:
    """Run the command; show an error of ours as one line and exit with a code that is not 0."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TruthGPTError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"the disk is full: {error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"truthgpt: {message}", err=True)
    sys.exit(code)
