"""The probe of plugins, and of a configuration file, which is read with their sections.

Run as a process of its own, because it activates plugins as any command does: all together, or
one of them alone. Each is asked about this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import pluggy

from truthgpt_core import hookspecs
from truthgpt_core.child_process import send, serve
from truthgpt_core.config import ConfigError, ConfigManager, render_resolved
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import Area, Finding, doing, found
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_core.optimization import Optimization, OptimizationError, Verdict
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.plugin_system.plugin import PluginRow
from truthgpt_core.plugin_system.switches import Switches
from truthgpt_core.plugin_system.table import strangers

if TYPE_CHECKING:
    from truthgpt_core.config.components import Factories

MOST = 100
"""So many diagnoses of one plugin are shown; the user reads no more, and some never end."""

_FIXES = {
    "broken": "Reinstall or update {dist}, or do without it: truthgpt plugins disable {name}.",
    "found": "See truthgpt plugins show {name}.",
}


def probe_plugins(only: str | None, devices: list[str]) -> None:
    """Activate all plugins, or the one named `only`; tell `found` and `active` names."""
    manager = PluginManager(strict=False)
    doing("listing plugins")
    send("found", [row.name for row in manager.rows()])
    found(Area.PLUGINS, _misnamed(manager))
    if only is None:
        doing("activating plugins")
        manager.activate_all()
    else:
        doing("activating it")
        _activate(manager, only)
    rows = [row for row in manager.rows() if only in (None, row.name)]
    send("active", [row.name for row in rows if row.state == "active"])
    found(Area.PLUGINS, map(describe, rows))
    for name, diagnose in _diagnosers(manager):
        if only in (None, name):
            doing(f"diagnose of {name}")
            found(Area.PLUGINS, what_it_says(name, diagnose))
    for name in _optimizations(manager, rows):
        for device in devices:
            doing(f"check of {name} on {device}")
            found(Area.OPTIMIZATIONS, [_check(manager, name, device)])


def probe_config(path: str, plugins: list[str]) -> None:
    """Read a configuration file, after activating those of some plugins that can be."""
    manager = PluginManager(strict=False)
    for name in plugins:
        doing(f"activating {name}")
        _activate(manager, name)
    doing(f"reading {path}")
    found(Area.CONFIG, diagnose_file(path, manager.factories))


def diagnose_file(path: str, factories: Factories) -> Iterator[Diagnosis]:
    """Say what is wrong with a configuration file, a line for each thing.

    Args:
        path: the file.
        factories: what names of components are checked against.
    """
    try:
        values = list(render_resolved(ConfigManager.load_config(path, factories=factories)))
    except ConfigError as error:
        for problem in error.problems:
            detail = str(replace(problem, hint=None))
            yield Diagnosis.failed("configuration", detail, problem.hint or "")
    else:
        yield Diagnosis.ok("configuration", f"{path}: {len(values)} values, nothing wrong")


def describe(row: PluginRow) -> Diagnosis:
    """Say what has become of a plugin.

    Args:
        row: its row, after activation.
    """
    state = str(row.state)
    origin = row.distribution.name if row.distribution else row.file or "registered by hand"
    named = f"{origin} {row.version}".rstrip()
    detail = f"{named}: {row.reason or state}"
    fix = _FIXES.get(state, "").format(dist=origin, name=row.name)
    if state == "active":
        return Diagnosis.ok(row.name, named)
    if state in ("disabled", "inactive"):
        return Diagnosis.ok(row.name, detail)
    if state == "broken":
        return Diagnosis.failed(row.name, detail, fix)
    return Diagnosis.warning(row.name, detail, fix)


def what_it_says(plugin: str, diagnose: Any) -> Iterator[Diagnosis]:
    """Yield what a plugin's `diagnose` hook returns, whatever it does.

    Args:
        plugin: its name.
        diagnose: the hook, for this plugin alone.
    """
    fix = f"This is a mistake in plugin {plugin}: tell its authors."
    subject = f"{plugin}: diagnose"
    try:
        result = diagnose()
        if result is None:
            return
        if not isinstance(result, Iterable):
            detail = f"it returned {type(result).__name__}, not a list of Diagnosis"
            yield Diagnosis.failed(subject, detail, fix)
            return
        count = 0
        for count, each in enumerate(islice(result, MOST + 1)):
            if count == MOST:
                yield Diagnosis.warning(subject, f"it says more than {MOST} things", fix)
            elif not isinstance(each, Diagnosis):
                detail = f"it returned {type(each).__name__} where Diagnosis belongs"
                yield Diagnosis.failed(subject, detail, fix)
            else:
                # Made whole here, so that one that is not is this plugin's failure.
                whole = Finding.of(Area.PLUGINS, each)
                named = f"{plugin}: {whole.subject}"
                yield Diagnosis(named, whole.status, whole.detail, whole.fix)
    except BaseException as error:  # noqa: BLE001 - shown to the user
        yield Diagnosis.failed(subject, f"it raised {in_one_line(error)}", fix)


def _misnamed(manager: PluginManager) -> Iterator[Diagnosis]:
    for line in strangers(Switches.read(), manager.rows()):
        yield Diagnosis.warning("environment", line, "Name a plugin or a distribution.")


def _activate(manager: PluginManager, name: str) -> None:
    try:
        manager.activate(name)
    except TruthGPTError:
        return  # its row says why


def _diagnosers(manager: PluginManager) -> Iterator[tuple[str, Any]]:
    """Yield for each plugin that implements `diagnose` its name, and the hook for it alone.

    Called together, one that raises would hide what the others say.
    """
    implementations = cast(Any, manager.hooks).diagnose.get_hookimpls()
    wrappers = [each for each in implementations if each.wrapper or each.hookwrapper]
    for implementation in implementations:
        if implementation in wrappers:
            continue
        alone = pluggy.PluginManager(hookspecs.PROJECT)
        alone.add_hookspecs(hookspecs)
        for each in (implementation, *wrappers):
            alone.register(each.plugin, name=each.plugin_name)
        yield implementation.plugin_name, _first_of(alone.hook.diagnose)


def _first_of(hook: Any) -> Any:
    def diagnose() -> Any:
        # One implementation, so one answer, unless it was None.
        return next(iter(hook()), None)

    return diagnose


def _optimizations(manager: PluginManager, rows: list[PluginRow]) -> list[str]:
    """Name the optimizations of active plugins, and those that no distribution declares."""
    there = list(manager.factories["optimization_factory"].names())
    declared = {name for row in manager.rows() for name in row.optimizations}
    active = {name for row in rows if row.state == "active" for name in row.optimizations}
    return [name for name in there if name in active or name not in declared]


def _check(manager: PluginManager, name: str, device: str) -> Diagnosis:
    subject = f"{name} on {device}"
    fix = "This is a mistake in the plugin that has it: tell its authors."
    try:
        kind: type[Optimization[Any]] = manager.factories["optimization_factory"].get_class(name)
        optimization = kind()
    except OptimizationError as error:
        # Without options it cannot be made, so it has to be asked with them.
        return Diagnosis.ok(subject, f"not asked: {error}")
    except TruthGPTError as error:
        return Diagnosis.failed(subject, str(error.__cause__ or error), fix)
    except BaseException as error:  # noqa: BLE001 - shown to the user
        return Diagnosis.failed(subject, f"making it raised {in_one_line(error)}", fix)
    try:
        verdict: object = optimization.check(device)
        if not isinstance(verdict, Verdict):
            detail = f"its check returned {type(verdict).__name__}, not a Verdict"
            return Diagnosis.failed(subject, detail, fix)
        if verdict.ok:
            return Diagnosis.ok(subject, "can be applied")
        return Diagnosis.warning(subject, verdict.reason, verdict.fix)
    except BaseException as error:  # noqa: BLE001 - shown to the user
        return Diagnosis.failed(subject, f"its check raised {in_one_line(error)}", fix)


if __name__ == "__main__":
    probes: dict[str, Callable[..., None]] = {"plugins": probe_plugins, "config": probe_config}
    serve(lambda request, arguments: probes[request](**arguments))
