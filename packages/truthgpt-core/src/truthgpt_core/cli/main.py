"""The `truthgpt` command.

Subcommands are entry points of the group `truthgpt.commands`: each names a click
command, imported when it is called and not before, so that `truthgpt --help` costs
the same however many there are.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import TYPE_CHECKING

import click

from truthgpt_core.cli import commands, terminal
from truthgpt_core.errors import TruthGPTError, did_you_mean, in_one_line, is_debugging
from truthgpt_core.plugin_system import catalogue

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from truthgpt_core.plugin_system.discovery import Installed

INTERRUPTED = 130
OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's 700 make it look for garbage all the time while modules, which stay, are imported."""


class CommandGroup(click.Group):
    """A click group whose further commands come from entry points."""

    context_class = terminal.Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, without importing any."""
        return sorted({*commands.OWN, *self._installed()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of this name.

        Raises:
            TruthGPTError: it is installed but cannot be used or imported, or it is
                known to exist and not installed, or there is none of that name.
        """
        if cmd_name in commands.OWN:
            return commands.load(cmd_name)
        from truthgpt_core.plugin_system import discovery, table

        installed = discovery.discover()
        for distribution in installed:
            entry_point = distribution.entry_points.get(discovery.COMMANDS, {}).get(cmd_name)
            if entry_point is not None:
                rows = table.installed_rows(installed).values()
                reason = table.why_unusable(distribution.name, rows)
                if reason:
                    raise TruthGPTError(
                        f'The command "{cmd_name}" of {distribution.name} cannot be used: {reason}'
                    )
                return _load_command(entry_point, distribution.name)
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
        commands.leave_quickly()
        rows = []
        # Once: each call reads the metadata of everything that is installed.
        installed = self._installed()
        for name in sorted({*commands.OWN, *installed}):
            known = commands.OWN.get(name) or catalogue.help_of("commands", name)
            rows.append((name, known or _line_about(installed[name])))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _installed(self) -> dict[str, Installed]:
        """Return which distribution each command comes from."""
        from truthgpt_core.plugin_system import discovery
        from truthgpt_core.plugin_system.switches import Switches
        from truthgpt_core.plugin_system.table import switched_off

        installed = discovery.discover()
        off = switched_off(installed, Switches.read())
        return {
            name: distribution
            for distribution in installed
            if distribution.name not in off
            for name in distribution.entry_points.get(discovery.COMMANDS, ())
        }


def _line_about(distribution: Installed) -> str:
    # Its own line of help is in its code, which is not imported to list commands.
    return f"{distribution.summary} (from {distribution.name})".lstrip()


def _load_command(entry_point: EntryPoint, distribution: str) -> click.Command:
    from truthgpt_core.plugin_system.code import PluginCode

    def refusal(error: BaseException) -> TruthGPTError:
        return TruthGPTError(
            f'The command "{entry_point.name}" of {distribution} cannot be imported: '
            f"{in_one_line(error)}",
            hint=f"Reinstall it: pip install --force-reinstall {distribution}.",
        )

    with PluginCode(refusal):
        command = entry_point.load()
    if not isinstance(command, click.Command):
        raise TruthGPTError(
            f'"{entry_point.value}", the command "{entry_point.name}", is not a click command'
        )
    return command


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="truthgpt-core", prog_name="truthgpt")
def cli() -> None:
    """Make open language models faster and smaller, and see whether it worked.

    Every optimization is a plugin, and is measured on this machine against the
    model it started from.

    \b
      truthgpt optimize MODEL --apply quantize,compile --output DIR
      truthgpt generate DIR "What is the capital of France?"
    """  # noqa: D301 - click wants the character, not its escape


def main() -> None:
    """Run the command; show an error of ours as one line and exit with a code that is not 0."""
    from truthgpt_core.installed_metadata import tolerate_damage
    from truthgpt_core.plugin_system import code

    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    tolerate_damage()
    code.stdout_is_ours = True
    try:
        with terminal.safe_diagnostics():
            _run()
    finally:
        code.stdout_is_ours = False


def _run() -> None:
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        terminal.say_click_error(error)
        sys.exit(error.exit_code)
    except TruthGPTError as error:
        if is_debugging():
            import traceback

            traceback.print_exc()
        _fail(str(error), error.exit_code)
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
    terminal.say(f"truthgpt: {message}", err=True)
    sys.exit(code)
