"""Finding out what is installed, from metadata alone: no plugin is imported here.

Entry-point groups:

- `truthgpt.plugins` names the plugins. The value is a module with hook
  implementations, or a `Plugin` subclass in one.
- `truthgpt.optimizations` names the optimizations a distribution has, and
  `truthgpt.optimizations.aliases` gives more names to the same objects.
- `truthgpt.commands` names subcommands of `truthgpt`: click commands.
- `truthgpt.plugins.conflicts` names plugins that those of the distribution cannot be
  used beside. The value is one of its own modules; it is never imported.

The API version that a plugin was written for is its distribution's
`Requires-Dist: truthgpt-core>=X.Y`: pip already enforces it, every author already
writes it, and there is no second number to forget. `judging` reads it.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distributions
from importlib.metadata import distribution as find_distribution
from typing import NamedTuple

from truthgpt_core.installed_metadata import DamagedMetadataError, entry_points, read_text

PLUGINS = "truthgpt.plugins"
COMMANDS = "truthgpt.commands"
OPTIMIZATIONS = "truthgpt.optimizations"
ALIASES = "truthgpt.optimizations.aliases"
CONFLICTS = "truthgpt.plugins.conflicts"
_METADATA_FILES = ("METADATA", "PKG-INFO", "")

GROUPS = frozenset({PLUGINS, COMMANDS, OPTIMIZATIONS, ALIASES, CONFLICTS})

CORE = "truthgpt-core"
CORE_COMMANDS = frozenset({"config", "doctor", "plugins", "services"})
"""The commands of the core, whose names no distribution can take."""

logger = logging.getLogger(__name__)


class Requirement(NamedTuple):
    """One distribution that another requires.

    Attributes:
        key: its normalized name.
        name: its name as it was written.
        versions: which versions will do, as a version specifier; empty if any.
    """

    key: str
    name: str
    versions: str

    def __str__(self) -> str:
        return f"{self.name}{self.versions}"


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
    _fields: Mapping[str, Sequence[str]] = field(repr=False, compare=False)
    problem: str = ""

    @cached_property
    def api(self) -> str:
        """What it requires of the core, as a version specifier; empty if it does not say."""
        return ",".join(each.versions for each in self.requirements if each.key == CORE)

    @cached_property
    def requires(self) -> frozenset[str]:
        """Normalized names of the distributions that it always requires."""
        return frozenset(each.key for each in self.requirements)

    @cached_property
    def requirements(self) -> tuple[Requirement, ...]:
        """What it always requires, in its order; what cannot be read is left out."""
        if self.problem:
            return ()
        # An egg-info directory has them in a file of their own, which `requires` reads.
        texts = self._fields.get("requires-dist") or self._distribution.requires or ()
        return tuple(each for text in texts if (each := _requirement(text)) is not None)

    @cached_property
    def python(self) -> str:
        """The versions of Python that it is for, as a version specifier; empty if any."""
        return _first(self._fields, "requires-python")

    @cached_property
    def summary(self) -> str:
        """Its one-line description."""
        return _first(self._fields, "summary")

    def names(self, group: str) -> list[str]:
        """The names that it declares in an entry-point group."""
        return sorted(self.entry_points.get(group, ()))


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
        damage = ""
        try:
            text = read_text(distribution, "entry_points.txt")
            if not text or "truthgpt." not in text:
                continue
        except DamagedMetadataError as error:
            # Nothing says that it is ours, and it breaks whatever reads all entry points.
            damage = str(error)
        installed = _read(distribution, damage)
        found.setdefault(normalized(installed.name), installed if _is_ours(installed) else None)
    return [installed for _, installed in sorted(found.items()) if installed is not None]


def installed_version(name: str) -> str | None:
    """Return the version of a distribution, whatever it is for; None if it is not installed.

    Args:
        name: its name, normalized or not.
    """
    try:
        distribution = find_distribution(name)
        # Reading it from METADATA would parse the whole description too.
        return _folder_parts(distribution)[1] or distribution.version or None
    except PackageNotFoundError:
        return None
    except Exception:
        logger.debug("Reading the version of %r failed", name, exc_info=True)
        return ""


def _read(distribution: Distribution, damage: str) -> Installed:
    groups: dict[str, dict[str, EntryPoint]] = defaultdict(dict)
    name = version = problem = ""
    fields: Mapping[str, Sequence[str]] = {}
    try:
        # A file that is missing, empty or damaged shows here in as many ways.
        fields = _read_fields(distribution)
        name, version = _first(fields, "name"), _first(fields, "version")
    except Exception:
        logger.debug("Reading the metadata of %r failed", distribution, exc_info=True)
    if not name or not version:
        problem = "its METADATA does not say its name and version: reinstall it"
    problem = problem or damage
    try:
        for entry_point in () if damage else entry_points(distribution):
            if entry_point.group in GROUPS:
                groups[entry_point.group][entry_point.name] = entry_point
    except Exception:
        logger.debug("Reading the entry points of %r failed", distribution, exc_info=True)
        groups.clear()
        problem = problem or "its entry_points.txt cannot be read: reinstall it"
    name = name or _folder_name(distribution) or "unknown"
    return Installed(name, version, dict(groups), distribution, fields, problem)


def _read_fields(distribution: Distribution) -> Mapping[str, Sequence[str]]:
    """Read the fields of a distribution's metadata: their values by name in lower case.

    `Distribution.metadata` parses the description as well, which is most of it, each time,
    and with a parser that takes longer than all else that a table of plugins needs.
    """
    text = next(filter(None, map(partial(read_text, distribution), _METADATA_FILES)), "")
    fields: dict[str, list[str]] = defaultdict(list)
    values: list[str] = []
    for line in text.partition("\n\n")[0].split("\n"):
        if line[:1] in (" ", "\t") and values:  # a line that goes on
            values[-1] += "\n" + line
            continue
        name, _, value = line.partition(":")
        values = fields[name.lower()]
        values.append(value.strip())
    return fields


def _first(fields: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(fields.get(name, ())), "")


# NAME>=1,<2 with no marker, or with one that names an extra: nearly all that there are.
_PLAIN = re.compile(
    r"""([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)[ ]*((?:[<>=!~][^;@()\[\]]*)?)
    (;[ ]*extra[ ]*==[ ]*["'][A-Za-z0-9._-]+["'])?""",
    re.VERBOSE,
)


@cache  # plugins require much the same
def _requirement(text: str) -> Requirement | None:
    """Read one line of `Requires-Dist`; None if it is not always required, or cannot be read."""
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        return _parsed(text)
    # The parser of requirements takes longer to import than all plugins take to be found.
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    name, versions, extra = plain.groups()
    if extra:
        return None
    try:
        return Requirement(normalized(name), name, str(SpecifierSet(versions)))
    except InvalidSpecifier:
        return None  # pip has already complained to the user who installed it


def _parsed(text: str) -> Requirement | None:
    from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    try:
        parsed = Parsed(text)
        applies = parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
        return None  # pip has already complained to the user who installed it
    if not applies:
        return None
    return Requirement(normalized(parsed.name), parsed.name, str(parsed.specifier))


def _is_ours(installed: Installed) -> bool:
    return bool(installed.entry_points or installed.problem)


def _folder_name(distribution: Distribution) -> str:
    return _folder_parts(distribution)[0]


def _folder_parts(distribution: Distribution) -> tuple[str, str]:
    """Return the name and version that the folder of a distribution's metadata says."""
    # There is no public way to ask where a distribution's metadata is.
    folder = getattr(getattr(distribution, "_path", None), "name", "")
    stem, _, kind = str(folder).rpartition(".")
    if kind == "dist-info":  # NAME-VERSION.dist-info
        name, _, version = stem.rpartition("-")
        return name, version
    return stem.partition("-")[0], ""  # NAME.egg-info or NAME-VERSION-PYTHON.egg-info
