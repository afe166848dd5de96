"""Finding out what is installed, and judging it, from metadata alone: no plugin is imported here.

Entry-point groups:

- `truthgpt.plugins` names the plugins. The value is a module with hook
  implementations, or a `Plugin` subclass in one.
- `truthgpt.optimizations` names the optimizations a distribution has, and
  `truthgpt.optimizations.aliases` gives more names to the same objects.
- `truthgpt.commands` names subcommands of `truthgpt`: click commands.

The API version that a plugin was written for is its distribution's
`Requires-Dist: truthgpt-core>=X.Y`: pip already enforces it, every author already
writes it, and there is no second number to forget.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.metadata import version as installed_version

PLUGINS = "truthgpt.plugins"
COMMANDS = "truthgpt.commands"
OPTIMIZATIONS = "truthgpt.optimizations"
ALIASES = "truthgpt.optimizations.aliases"
GROUPS = frozenset({PLUGINS, COMMANDS, OPTIMIZATIONS, ALIASES})

CORE = "truthgpt-core"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Installed:
    """One distribution that declares something for TruthGPT.

    Attributes:
        name: the distribution's name as it writes it.
        version: its version.
        entry_points: by group, then by name.
        problem: what is wrong with its metadata; empty if it can be read.
    """

    name: str
    version: str
    entry_points: dict[str, dict[str, EntryPoint]]
    _distribution: Distribution = field(repr=False, compare=False)
    problem: str = ""

    @cached_property
    def api(self) -> str:
        """What it requires of the core, as a version specifier; empty if it does not say."""
        return ",".join(spec for name, spec in self._requirements if name == CORE and spec)

    @cached_property
    def requires(self) -> frozenset[str]:
        """Normalized names of the distributions that it always requires."""
        return frozenset(name for name, _ in self._requirements)

    @cached_property
    def summary(self) -> str:
        """Its one-line description."""
        return "" if self.problem else _field(self._distribution, "Summary")

    def names(self, group: str) -> list[str]:
        """The names that it declares in an entry-point group."""
        return sorted(self.entry_points.get(group, ()))

    @cached_property
    def _requirements(self) -> list[tuple[str, str]]:
        if self.problem:
            return []
        from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
        from packaging.requirements import InvalidRequirement, Requirement

        found = []
        for text in self._distribution.requires or ():
            try:
                requirement = Requirement(text)
                applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
                continue  # pip has already complained to the person who installed it
            if applies:
                found.append((normalized(requirement.name), str(requirement.specifier)))
        return found


def normalized(distribution: str) -> str:
    """Return a distribution's name as PEP 503 normalizes it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def discover() -> list[Installed]:
    """List the installed distributions that declare something for TruthGPT, by name.

    Where a distribution is found several times on `sys.path`, the first counts,
    as it does for imports. One whose metadata cannot be read is listed with its problem.
    """
    found: dict[str, Installed | None] = {}
    folders: set[str] = set()
    for distribution in distributions():
        folder = normalized(_folder_name(distribution))
        if folder and folder in folders:
            continue
        folders.add(folder)
        # Reading one small file for each distribution is all that a scan costs;
        # metadata is parsed only of those that turn out to be ours.
        try:
            text = distribution.read_text("entry_points.txt")
        except (OSError, UnicodeDecodeError):
            continue  # nothing says that it is one of ours
        if not text or "truthgpt." not in text:
            continue
        installed = _read(distribution)
        found.setdefault(normalized(installed.name), installed if _is_ours(installed) else None)
    return [installed for _, installed in sorted(found.items()) if installed is not None]


def _read(distribution: Distribution) -> Installed:
    groups: dict[str, dict[str, EntryPoint]] = defaultdict(dict)
    name = version = problem = ""
    try:
        # A file that is missing, empty or damaged shows here in as many ways.
        name, version = _field(distribution, "Name"), _field(distribution, "Version")
    except Exception:
        logger.debug("Reading the metadata of %r failed", distribution, exc_info=True)
    if not name or not version:
        problem = "its METADATA does not say its name and version: reinstall it"
    try:
        for entry_point in distribution.entry_points:
            if entry_point.group in GROUPS:
                groups[entry_point.group][entry_point.name] = entry_point
    except Exception:
        logger.debug("Reading the entry points of %r failed", distribution, exc_info=True)
        groups.clear()
        problem = problem or "its entry_points.txt cannot be read: reinstall it"
    name = name or _folder_name(distribution) or "unknown"
    return Installed(name, version, dict(groups), distribution, problem)


def _field(distribution: Distribution, name: str) -> str:
    # Asking for what is not there is deprecated.
    metadata = distribution.metadata
    return metadata[name] if name in metadata else ""  # noqa: SIM401  # it promises no `get`


def _is_ours(installed: Installed) -> bool:
    return bool(installed.entry_points or installed.problem)


def _folder_name(distribution: Distribution) -> str:
    # There is no public way to ask where a distribution's metadata is.
    folder = getattr(getattr(distribution, "_path", None), "name", "")
    stem, _, kind = str(folder).rpartition(".")
    # NAME-VERSION.dist-info, NAME.egg-info or NAME-VERSION-PYTHON.egg-info.
    return stem.rpartition("-")[0] if kind == "dist-info" else stem.partition("-")[0]


def judge(installed: Iterable[Installed]) -> dict[str, str]:
    """Say which distributions cannot be used, and why, without importing any.

    Returns:
        Reasons by distribution name; one that is not there has nothing against it.
    """
    everything = list(installed)
    reasons: dict[str, str] = {}
    for distribution in everything:
        reason = distribution.problem or _api_reason(distribution) or _plugin_reason(distribution)
        if reason:
            reasons[distribution.name] = reason
    for group in (PLUGINS, OPTIMIZATIONS, ALIASES, COMMANDS):
        for name, owners in _owners(everything, group):
            names = ", ".join(owner.name for owner in owners)
            for owner in owners:
                reasons.setdefault(
                    owner.name,
                    f'{names} all have a {group.removeprefix("truthgpt.")} entry named "{name}": '
                    "uninstall all but one",
                )
    for cycle in _cycles(everything):
        names = " -> ".join(distribution.name for distribution in [*cycle, cycle[0]])
        for distribution in cycle:
            reasons.setdefault(distribution.name, f"plugins require each other: {names}")
    return reasons


def _cycles(installed: Iterable[Installed]) -> Iterator[list[Installed]]:
    """Find distributions with plugins that require each other, each one followed by its need."""
    from graphlib import CycleError, TopologicalSorter

    plugins = {normalized(each.name): each for each in installed if each.names(PLUGINS)}
    while True:
        # What requires itself requires nothing that is missing.
        needs = {name: plugins[name].requires & plugins.keys() - {name} for name in sorted(plugins)}
        try:
            TopologicalSorter({name: sorted(needed) for name, needed in needs.items()}).prepare()
        except CycleError as error:
            cycle = error.args[1][:0:-1]
            yield [plugins.pop(name) for name in cycle]
        else:
            return


def _owners(installed: Iterable[Installed], group: str) -> Iterator[tuple[str, list[Installed]]]:
    owners: dict[str, list[Installed]] = defaultdict(list)
    groups = (OPTIMIZATIONS, ALIASES) if group in (OPTIMIZATIONS, ALIASES) else (group,)
    for distribution in installed:
        for name in {name for each in groups for name in distribution.names(each)}:
            owners[name].append(distribution)
    return ((name, those) for name, those in sorted(owners.items()) if len(those) > 1)


def _api_reason(distribution: Installed) -> str:
    if normalized(distribution.name) == CORE:
        return ""
    if not distribution.api and CORE not in distribution.requires:
        return f"its metadata does not say which {CORE} it was written for"
    from packaging.specifiers import SpecifierSet

    have = installed_version(CORE)
    if SpecifierSet(distribution.api).contains(have, prereleases=True):
        return ""
    return f"it was written for {CORE}{distribution.api}, and {have} is installed"


def _plugin_reason(distribution: Installed) -> str:
    if distribution.names(OPTIMIZATIONS) and not distribution.names(PLUGINS):
        return f'it has optimizations but no entry in the group "{PLUGINS}"'
    return ""
