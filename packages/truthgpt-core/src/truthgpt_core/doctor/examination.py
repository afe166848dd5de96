"""All that `truthgpt doctor` looks at, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from truthgpt_core.child_process import ChildError, ChildProcess
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor import compilers, machine, settings
from truthgpt_core.doctor.findings import Area, Finding
from truthgpt_core.doctor.torch_probe import REINSTALL
from truthgpt_core.errors import TruthGPTError

_DO_WITHOUT = "Reinstall or update it, or do without it: truthgpt plugins disable {name}."
_TORCH_FIRST = "Mend torch first: {name} may do nothing wrong."
_DISABLE = "Disable one after the other: truthgpt plugins disable NAME."
_INSTALL = "pip install truthgpt-plugin-quantize truthgpt-plugin-compile"


class Probe:
    """A module that looks at what may crash or hang, in a process of its own, from now on.

    Args:
        module: its name in this package.
        request: what it is asked.
        seconds: how long it may take, from now.
        arguments: for the request, in JSON types.

    Attributes:
        findings: in the order in which it found them.
        values: what else it reported, by name; the last of each name.
        failure: why it did not come to its end, with what it was doing; empty if it did.
        fix: what may help, if the failure says so.
    """

    def __init__(self, module: str, request: str, seconds: float, **arguments: Any) -> None:
        self.findings: list[Finding] = []
        self.values: dict[str, Any] = {}
        self.failure = self.fix = ""
        self._process: ChildProcess | None = None
        slow = f"If this machine is slow, try again with --timeout {3 * seconds:g}."
        try:
            self._process = ChildProcess(
                f"{__package__}.{module}", f"The {request} probe", seconds=seconds, slow=slow
            )
            self._process.ask(request, **arguments)
        except ChildError as error:
            self._fail(error.how, error.hint)

    def wait(self) -> Probe:
        """Wait until it has come to its end; whatever it does, this does not raise."""
        try:
            if self._process is not None and not self.failure:
                self._process.answer(self._hear)
        except ChildError as error:
            self._fail(error.how, error.hint)
        except TruthGPTError as error:
            self._fail(str(error), None)
        except (ValueError, TypeError, KeyError):
            self._fail("its answer cannot be read", None)
        finally:
            self.close()
        return self

    def close(self) -> None:
        """End it, wherever it is."""
        if self._process is not None:
            self._process.end(at_once=True)

    def _hear(self, kind: str, value: Any) -> None:
        if kind == "finding":
            self.findings.append(Finding.from_json(value))
        else:
            self.values[kind] = value

    def _fail(self, how: str, fix: str | None) -> None:
        self.failure = f"{self.values['doing']}: {how}" if "doing" in self.values else how
        self.fix = fix or ""


def examine(config: Path | None, seconds: float) -> Generator[Finding]:
    """Look at everything, and yield findings as they are made, area by area.

    Closing the iterator ends what runs for it.

    Args:
        config: a training configuration to read; none if None.
        seconds: how long each process that is started for it may take.
    """
    with closing(Probe("torch_probe", "torch", seconds)) as torch:
        yield from _in(Area.MACHINE, machine.examine())
        yield from _in(Area.PYTHON, machine.examine_python())
        compiled = list(_in(Area.COMPILERS, compilers.examine(seconds)))
        torch.wait()
    yield from _about_torch(torch)
    yield from compiled
    yield from _only(Area.COMPILERS, torch.findings)
    devices: list[str] = torch.values.get("devices", ["cpu"])
    fix = _TORCH_FIRST if torch.failure else _DO_WITHOUT
    plugins, active = examine_plugins(devices, seconds, fix)
    for area in (Area.PLUGINS, Area.OPTIMIZATIONS):
        yield from _only(area, plugins)
    yield from _in(Area.CONFIG, settings.examine())
    if config is not None:
        read = Probe("plugin_probe", "config", seconds, path=str(config), plugins=active).wait()
        yield from read.findings
        if read.failure:
            failed = Diagnosis.failed("configuration", read.failure, read.fix)
            yield Finding.of(Area.CONFIG, failed)


def examine_plugins(
    devices: list[str], seconds: float, fix: str
) -> tuple[list[Finding], list[str]]:
    """Look at plugins as they are used, all in one process; if it dies, at each alone.

    Args:
        devices: where optimizations are asked whether they can work, in torch's notation.
        seconds: how long each process may take.
        fix: what may help one that dies, with `{name}` where its name belongs.

    Returns:
        What was found, and the names of the plugins that work.
    """

    def ask(only: str | None) -> Probe:
        return Probe("plugin_probe", "plugins", seconds, only=only, devices=devices).wait()

    together = ask(None)
    names: list[str] = together.values.get("found", [])
    if not together.failure:
        none = [] if names else [Diagnosis.warning("plugins", "none is installed", _INSTALL)]
        return [*together.findings, *_in(Area.PLUGINS, none)], together.values.get("active", [])
    if not names:
        failed = Diagnosis.failed("plugins", together.failure, together.fix)
        return list(_in(Area.PLUGINS, [failed])), []
    findings: list[Finding] = []
    active: list[str] = []
    deaths: list[Diagnosis] = []
    for name in dict.fromkeys(names):
        alone = ask(name)
        if not alone.failure:
            findings += alone.findings
            active += alone.values.get("active", [])
        else:
            # That it was active before it died is no news.
            findings += (each for each in alone.findings if each.subject != name)
            fixes = f"{alone.fix} {fix.format(name=name)}".strip()
            deaths.append(Diagnosis.failed(name, alone.failure, fixes))
    if not deaths:
        what = f"{together.failure}; each alone works"
        deaths.append(Diagnosis.failed("plugins together", what, together.fix or _DISABLE))
    # What several need was looked at with each of them.
    return list(dict.fromkeys([*findings, *_in(Area.PLUGINS, deaths)])), active


def _about_torch(torch: Probe) -> Iterator[Finding]:
    yield from _only(Area.TORCH, torch.findings)
    if torch.failure:
        failed = Diagnosis.failed("torch", torch.failure, torch.fix or REINSTALL)
        yield Finding.of(Area.TORCH, failed)
    yield from _only(Area.ACCELERATORS, torch.findings)


def _in(area: Area, diagnoses: Iterable[Diagnosis]) -> Iterator[Finding]:
    return (Finding.of(area, diagnosis) for diagnosis in diagnoses)


def _only(area: Area, findings: Iterable[Finding]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.area is area)
