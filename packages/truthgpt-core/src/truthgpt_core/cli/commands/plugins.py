"""`truthgpt plugins`: the table, one plugin, and switching plugins off and on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.errors import TruthGPTError, did_you_mean
from truthgpt_core.terminal_text import columns, harmless

if TYPE_CHECKING:
    from truthgpt_core.optimization import Optimization
    from truthgpt_core.plugin_system.plugin import PluginRow


def _load_option(command: Callable[..., Any]) -> Callable[..., Any]:
    what = "Import and activate them, to see which work, their hooks and how long it takes."
    return click.option("--load", is_flag=True, help=what)(command)


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@click.group(invoke_without_command=True)
@_json_option
@_load_option
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with an error if one is broken; so does TRUTHGPT_STRICT=1.",
)
@click.pass_context
def plugins(context: click.Context, as_json: bool, load: bool, strict: bool) -> None:
    """List the installed plugins, look at one, enable and disable them.

    TRUTHGPT_PLUGINS=a,b switches all plugins off but these, and
    TRUTHGPT_PLUGINS_BLOCK=a,b switches these off.
    """
    if context.invoked_subcommand is not None:
        return
    from truthgpt_core.plugin_system.plugin import STRICT, State

    rows = _rows(load)
    problems = _import_problems(rows) if load else {}
    if as_json:
        import json

        listed = [{**_as_json(row), "problems": problems.get(row.key, [])} for row in rows]
        click.echo(json.dumps(listed, indent=2))
    elif rows:
        _print_table(rows, load, problems)
    else:
        click.echo("No plugins are installed. Try: pip install truthgpt-plugin-quantize")
    _warn_of_strangers(rows)
    broken = [row.name for row in rows if row.state is State.BROKEN or row.key in problems]
    if broken and (strict or os.environ.get(STRICT) == "1"):
        raise TruthGPTError(f"Broken: {', '.join(broken)}")


@plugins.command()
@click.argument("name")
@_json_option
@_load_option
def show(name: str, as_json: bool, load: bool) -> None:
    """Show all that is known of the plugins of a name, or of a distribution.

    Its optimizations are imported, to list their options.
    """
    root = click.get_current_context().parent
    as_json = as_json or bool(root and root.params.get("as_json"))
    rows = _rows(load)
    found = [row for row in rows if row.goes_by(name)]
    if not found:
        raise _unknown(name, rows)
    if as_json:
        import json

        listed = [{**_in_full(row, rows), "options": _options_as_json(row)} for row in found]
        click.echo(json.dumps(listed, indent=2))
        return
    for number, row in enumerate(found):
        if number:
            click.echo()
        for key, value in _in_full(row, rows).items():
            if value not in (None, "", []):
                text = ", ".join(value) if isinstance(value, list) else value
                click.echo(harmless(f"{key.replace('_', ' '):<14} {text}"))
        _print_options(row)


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def disable(names: tuple[str, ...]) -> None:
    """Switch plugins off until they are enabled, whether or not they work.

    NAME is a plugin or, where two have one name, a distribution.
    """
    from truthgpt_core.plugin_system import switches

    rows = _rows(load=False)
    for name in names:
        if not any(row.goes_by(name) for row in rows):
            raise _unknown(name, rows)
    for name in names:
        switches.disable(name)
        click.echo(harmless(f"{name} is disabled."))
    before = {_identity(row): row.state for row in rows}
    for row in _rows(load=False):
        changed = before.get(_identity(row)) is not row.state
        if changed and not any(row.goes_by(name) for name in names):
            what = f"{row.name} is {row.state.value} now: {row.reason or 'it can be used'}."
            click.echo(harmless(what))


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def enable(names: tuple[str, ...]) -> None:
    """Switch plugins on that were disabled."""
    from truthgpt_core.plugin_system import switches
    from truthgpt_core.plugin_system.plugin import State

    disabled = switches.disabled_names()
    rows = _rows(load=False)
    for name in names:
        if name not in disabled and not any(row.goes_by(name) for row in rows):
            raise _unknown(name, rows, disabled)
    for name in names:
        was = switches.enable(name)
        click.echo(harmless(f"{name} is enabled." if was else f"{name} was not disabled."))
    for row in _rows(load=False):
        if row.state in (State.DISABLED, State.BROKEN) and any(row.goes_by(n) for n in names):
            click.echo(harmless(f"{row.name} is {row.state.value}: {row.reason}."))


def _rows(load: bool) -> list[PluginRow]:
    if load:
        from truthgpt_core.plugin_system import PluginManager

        manager = PluginManager(strict=False)
        manager.activate_all()
        return manager.rows()
    from truthgpt_core.cli import commands
    from truthgpt_core.plugin_system.table import installed_rows

    commands.leave_quickly()
    return [row for _, row in sorted(installed_rows().items())]


def _import_problems(rows: list[PluginRow]) -> dict[str, list[str]]:
    """Import what the entry points of active plugins name, and say what cannot be.

    A distribution that has commands and no plugin, and one that cannot be, gets a row.

    Returns:
        Sentences by the key of the row.
    """
    from truthgpt_core.plugin_system import discovery
    from truthgpt_core.plugin_system.activation import import_command, import_optimization
    from truthgpt_core.plugin_system.plugin import PluginError, PluginRow, State
    from truthgpt_core.plugin_system.switches import Switches
    from truthgpt_core.plugin_system.table import switched_off

    by_distribution = {row.distribution.name: row for row in rows if row.distribution}
    installed = discovery.discover()
    off = switched_off(installed, Switches.read())
    problems: dict[str, list[str]] = {}
    for distribution in installed:
        row = by_distribution.get(distribution.name)
        if distribution.name in off or (row is not None and row.state is not State.ACTIVE):
            continue
        for group, what, load in (
            (discovery.OPTIMIZATIONS, "optimization", import_optimization),
            (discovery.COMMANDS, "command", import_command),
        ):
            for name, entry_point in sorted(distribution.entry_points.get(group, {}).items()):
                try:
                    load(name, entry_point)
                except PluginError as error:
                    if row is None:
                        row = PluginRow(distribution.name, State.BROKEN, "", distribution)
                        rows.append(row)
                    problems.setdefault(row.key, []).append(f'{what} "{name}": {error}')
    return problems


def _optimizations_of(row: PluginRow) -> Iterator[tuple[str, type[Optimization[Any]] | str]]:
    """Yield the optimizations that a plugin has, each imported, or why it cannot be."""
    from truthgpt_core.plugin_system.activation import import_optimization
    from truthgpt_core.plugin_system.discovery import OPTIMIZATIONS
    from truthgpt_core.plugin_system.plugin import PluginError, State

    if row.distribution is None or row.state not in (State.FOUND, State.ACTIVE):
        return
    for name, entry_point in sorted(row.distribution.entry_points.get(OPTIMIZATIONS, {}).items()):
        try:
            yield name, import_optimization(name, entry_point)
        except PluginError as error:
            yield name, str(error)


def _print_options(row: PluginRow) -> None:
    from truthgpt_core.optimization.option_help import option_lines

    for name, kind in _optimizations_of(row):
        click.echo()
        lines = [f"{name}: {kind}"] if isinstance(kind, str) else option_lines(name, kind)
        click.echo("\n".join(map(harmless, lines)))


def _options_as_json(row: PluginRow) -> dict[str, Any]:
    from dataclasses import asdict

    from truthgpt_core.optimization.option_help import describe_options

    return {
        name: {"problem": kind}
        if isinstance(kind, str)
        else [asdict(each) for each in describe_options(kind)]
        for name, kind in _optimizations_of(row)
    }


def _identity(row: PluginRow) -> tuple[str, str]:
    return row.name, row.distribution.name if row.distribution else ""


def _as_json(row: PluginRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state.value,
        "reason": row.reason,
        "distribution": row.distribution.name if row.distribution else None,
        "version": row.version,
        "api": row.api,
        "optimizations": row.optimizations,
        "hooks": None if row.hooks is None else list(row.hooks),
        "load_seconds": row.load_seconds,
    }


def _in_full(row: PluginRow, rows: Iterable[PluginRow]) -> dict[str, Any]:
    from truthgpt_core.plugin_system import discovery
    from truthgpt_core.plugin_system.order import needs

    by_key = {row.key: row for row in rows}
    needed = needs(by_key)
    of = row.distribution
    return {
        **_as_json(row),
        "summary": of.summary if of else "",
        "python": of.python if of else "",
        "requires": [str(each) for each in of.requirements] if of else [],
        "needs": sorted(by_key[key].name for key in needed[row.key]),
        "needed_by": sorted(by_key[key].name for key in needed if row.key in needed[key]),
        "conflicts": of.names(discovery.CONFLICTS) if of else [],
        "commands": of.names(discovery.COMMANDS) if of else [],
        "aliases": of.names(discovery.ALIASES) if of else [],
        "entry_point": row.entry_point.value if row.entry_point else "",
    }


def _print_table(rows: list[PluginRow], load: bool, problems: Mapping[str, list[str]]) -> None:
    table = [["plugin", "state", "distribution", "version", "api", "optimizations"]]
    if load:
        table[0] += ["hooks", "load"]
    for row in rows:
        of = row.distribution
        cells = [row.name, row.state.value, of.name if of else "", row.version, row.api]
        cells.append(", ".join(row.optimizations))
        if load:
            cells.append(", ".join(row.hooks or ()))
            cells.append("" if row.load_seconds is None else f"{row.load_seconds * 1000:.0f} ms")
        table.append(cells)
    click.echo("\n".join(columns(table)))
    lines = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    lines += [f"{row.name}: {each}" for row in rows for each in problems.get(row.key, ())]
    if lines:
        click.echo()
    for line in lines:
        click.echo(harmless(line))


def _warn_of_strangers(rows: list[PluginRow]) -> None:
    from truthgpt_core.plugin_system.switches import Switches
    from truthgpt_core.plugin_system.table import strangers

    for line in strangers(Switches.read(), rows):
        click.echo(harmless(f"truthgpt: {line}"), err=True)


def _unknown(name: str, rows: Iterable[PluginRow], more: Iterable[str] = ()) -> TruthGPTError:
    known = [*(row.name for row in rows), *more]
    hint = did_you_mean(name, known) or (f"There is: {', '.join(sorted(set(known)))}.")
    return TruthGPTError(f'There is no plugin named "{name}"', hint=hint if known else None)
