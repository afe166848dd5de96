"""The probe of a configuration file: read it as a command does, with the plugins' sections.

Run as a process of its own, because plugins are activated for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from truthgpt_core.config import ConfigError, ConfigManager, render_resolved
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor.findings import Area
from truthgpt_core.doctor.probing import Report, serve
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.plugin_system import PluginManager

if TYPE_CHECKING:
    from truthgpt_core.config.components import Factories


def probe(report: Report, request: Mapping[str, Any]) -> None:
    """Read the file at `path`, after activating those of `plugins` that can be."""
    manager = PluginManager(strict=False)
    for name in request["plugins"]:
        report.doing(f"activating {name}")
        try:
            manager.activate(name)
        except TruthGPTError:
            continue  # what is wrong with it is said elsewhere
    report.doing(f"reading {request['path']}")
    report.found(Area.CONFIG, diagnose_file(request["path"], manager.factories))


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


if __name__ == "__main__":
    serve(probe)
