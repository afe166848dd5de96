"""Which of the installed distributions can be used, said from their metadata alone.

What is judged: whether the metadata can be read, the version of the core it was written
for, of Python and of everything else it requires, names that two have, plugins that
cannot be used side by side, and plugins that require each other. That a plugin needs
one which cannot be used itself is found when plugins are put in order (`plugin_order`).
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import cache

from truthgpt_core.plugin_system.cycles import find_cycles
from truthgpt_core.plugin_system.discovery import (
    ALIASES,
    COMMANDS,
    CONFLICTS,
    CORE,
    CORE_COMMANDS,
    OPTIMIZATIONS,
    PLUGINS,
    Installed,
    installed_version,
    normalized,
)


def judge(installed: Iterable[Installed], off: Collection[str] = ()) -> dict[str, str]:
    """Say which distributions cannot be used, and why, without importing any.

    Args:
        installed: all that declare something for TruthGPT.
        off: names of those among them whose plugins are switched off; they are not
            judged, and are in no plugin's way.

    Returns:
        Reasons by distribution name; one that is not there has nothing against it.
    """
    everything = [each for each in installed if each.name not in off]
    reasons: dict[str, str] = {}
    versions: dict[str, str | None] = {normalized(each.name): each.version for each in everything}
    for distribution in everything:
        reason = (
            distribution.problem
            or _api_reason(distribution, versions)
            or _python_reason(distribution)
            or _requirement_reason(distribution, versions)
            or _plugin_reason(distribution)
            or _command_reason(distribution)
        )
        if reason:
            reasons[distribution.name] = reason
    for group in (PLUGINS, OPTIMIZATIONS, ALIASES, COMMANDS):
        for name, owners in _owners(everything, group):
            names = ", ".join(owner.name for owner in owners)
            for owner in owners:
                reasons.setdefault(
                    owner.name,
                    f'{names} all have a {group.removeprefix("truthgpt.")} entry named "{name}": '
                    "uninstall or disable all but one",
                )
    for distribution, name, other in _conflicts(everything):
        reasons.setdefault(
            distribution.name,
            f'it cannot be used beside plugin "{name}" of {other.name}: '
            "uninstall or disable one of them",
        )
    for cycle in _cycles(everything):
        names = " -> ".join(distribution.name for distribution in [*cycle, cycle[0]])
        for distribution in cycle:
            reasons.setdefault(distribution.name, f"plugins require each other: {names}")
    return reasons


@cache  # plugins require much the same
def satisfies(version: str, versions: str) -> bool:
    """Return whether a version is one that a specifier allows; one that is not a version is.

    Args:
        version: such as "1.0".
        versions: such as ">=1,<2"; empty allows all.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(versions).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True  # pip has already complained to the user who installed it


def _api_reason(distribution: Installed, versions: dict[str, str | None]) -> str:
    if normalized(distribution.name) == CORE:
        return ""
    if CORE not in distribution.requires:
        return f"its metadata does not say which {CORE} it was written for"
    have = _version(CORE, versions) or ""
    if satisfies(have, distribution.api):
        return ""
    return f"it was written for {CORE}{distribution.api}, and {have} is installed"


def _python_reason(distribution: Installed) -> str:
    if not distribution.python or satisfies(platform.python_version(), distribution.python):
        return ""
    return f"it is for Python {distribution.python}, and this is {platform.python_version()}"


def _requirement_reason(distribution: Installed, versions: dict[str, str | None]) -> str:
    for requirement in distribution.requirements:
        if requirement.key == CORE:
            continue
        have = _version(requirement.key, versions)
        if have is None:
            return f"it requires {requirement}, which is not installed: pip install '{requirement}'"
        if requirement.versions and not satisfies(have, requirement.versions):
            return (
                f"it requires {requirement}, and {have} is installed: pip install '{requirement}'"
            )
    return ""


def _version(key: str, versions: dict[str, str | None]) -> str | None:
    if key not in versions:
        versions[key] = installed_version(key)
    return versions[key]


def _plugin_reason(distribution: Installed) -> str:
    if distribution.names(OPTIMIZATIONS) and not distribution.names(PLUGINS):
        return f'it has optimizations but no entry in the group "{PLUGINS}"'
    return ""


def _command_reason(distribution: Installed) -> str:
    taken = [name for name in distribution.names(COMMANDS) if name in CORE_COMMANDS]
    return f'truthgpt has a command named "{taken[0]}" itself' if taken else ""


def _owners(installed: Iterable[Installed], group: str) -> Iterator[tuple[str, list[Installed]]]:
    owners: dict[str, list[Installed]] = defaultdict(list)
    groups = (OPTIMIZATIONS, ALIASES) if group in (OPTIMIZATIONS, ALIASES) else (group,)
    for distribution in installed:
        for name in {name for each in groups for name in distribution.names(each)}:
            owners[name].append(distribution)
    return ((name, those) for name, those in sorted(owners.items()) if len(those) > 1)


def _conflicts(installed: list[Installed]) -> Iterator[tuple[Installed, str, Installed]]:
    # Only the one that says so is refused: else any plugin could take any other out.
    for distribution in installed:
        for name in distribution.names(CONFLICTS):
            for other in installed:
                if other is not distribution and name in other.names(PLUGINS):
                    yield distribution, name, other


def _cycles(installed: Iterable[Installed]) -> Iterator[list[Installed]]:
    plugins = {normalized(each.name): each for each in installed if each.names(PLUGINS)}
    for cycle in find_cycles({name: each.requires for name, each in plugins.items()}):
        yield [plugins[name] for name in cycle]
