"""All that `truthgpt doctor` looks at, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.doctor import compilers, interpreter, machine, settings
from truthgpt_core.doctor.children import Answer, Child, ask
from truthgpt_core.doctor.findings import Area, Finding
from truthgpt_core.doctor.torch_probe import REINSTALL

_DO_WITHOUT = "Reinstall or update it, or do without it: truthgpt plugins disable {name}."
_TORCH_FIRST = "Mend torch first: {name} may do nothing wrong."
_DISABLE = "Disable one after the other: truthgpt plugins disable NAME."
_INSTALL = "pip install truthgpt-plugin-quantize truthgpt-plugin-compile"


def examine(config: Path | None, seconds: float) -> Generator[Finding]:
    """Look at everything, and yield findings as they are made, area by area.

    Closing the iterator ends what runs for it.

    Args:
        config: a training configuration to read; none if None.
        seconds: how long each process that is started for it may take.
    """
    with Child("torch_probe", seconds) as child:
        yield from _in(Area.MACHINE, machine.examine())
        yield from _in(Area.PYTHON, interpreter.examine())
        compiled = list(_in(Area.COMPILERS, compilers.examine(seconds)))
        torch = child.answer()
    yield from _about_torch(torch)
    yield from compiled
    yield from _only(Area.COMPILERS, torch.findings)
    devices: list[str] = torch.told.get("devices", ["cpu"])
    fix = _DO_WITHOUT if torch.death is None else _TORCH_FIRST
    plugins, active = examine_plugins(devices, seconds, fix)
    for area in (Area.PLUGINS, Area.OPTIMIZATIONS):
        yield from _only(area, plugins)
    yield from _in(Area.CONFIG, settings.examine())
    if config is not None:
        read = ask("config_probe", seconds, path=str(config), plugins=active)
        yield from read.findings
        if read.death is not None:
            yield Finding.of(Area.CONFIG, read.death.as_diagnosis("configuration"))


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
    together = ask("plugin_probe", seconds, only=None, devices=devices)
    names: list[str] = together.told.get("found", [])
    if together.death is None:
        none = [] if names else [Diagnosis.warning("plugins", "none is installed", _INSTALL)]
        return [*together.findings, *_in(Area.PLUGINS, none)], together.told.get("active", [])
    if not names:
        return list(_in(Area.PLUGINS, [together.death.as_diagnosis("plugins")])), []
    findings: list[Finding] = []
    active: list[str] = []
    deaths: list[Diagnosis] = []
    for name in dict.fromkeys(names):
        alone = ask("plugin_probe", seconds, only=name, devices=devices)
        if alone.death is None:
            findings += alone.findings
            active += alone.told.get("active", [])
        else:
            # That it was active before it died is no news.
            findings += (each for each in alone.findings if each.subject != name)
            fixes = " ".join(filter(None, (alone.death.fix, fix.format(name=name))))
            deaths.append(Diagnosis.failed(name, alone.death.how, fixes))
    if not deaths:
        what = f"{together.death.how}; each alone works"
        deaths.append(Diagnosis.failed("plugins together", what, together.death.fix or _DISABLE))
    # What several need was looked at with each of them.
    return list(dict.fromkeys([*findings, *_in(Area.PLUGINS, deaths)])), active


def _about_torch(torch: Answer) -> Iterator[Finding]:
    yield from _only(Area.TORCH, torch.findings)
    if torch.death is not None:
        yield Finding.of(Area.TORCH, torch.death.as_diagnosis("torch", REINSTALL))
    yield from _only(Area.ACCELERATORS, torch.findings)


def _in(area: Area, diagnoses: Iterable[Diagnosis]) -> Iterator[Finding]:
    return (Finding.of(area, diagnosis) for diagnosis in diagnoses)


def _only(area: Area, findings: Iterable[Finding]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.area is area)
