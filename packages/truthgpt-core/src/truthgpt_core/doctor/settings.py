"""What the user set: the cache directory and environment variables."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.paths import CACHE, SETTINGS, UnusableFileError, cache_dir
from truthgpt_core.plugin_system.plugin import STRICT
from truthgpt_core.plugin_system.switches import ALLOW, BLOCK

PREFIX = "TRUTHGPT_"
VALUES = "TRUTHGPT_CONFIG__"
"""What variables that set a value of a configuration begin with."""

KNOWN = frozenset({CACHE, SETTINGS, STRICT, ALLOW, BLOCK})
"""All other variables that TruthGPT reads."""


def examine() -> Iterator[Diagnosis]:
    """Look at the cache directory and the environment."""
    try:
        yield diagnose_cache(cache_dir())
    except UnusableFileError as error:
        # Of a home directory that cannot be found.
        yield Diagnosis.failed(
            "cache", f"{CACHE}: {error.strerror}", f"Set {CACHE} to a whole path."
        )
    yield from diagnose_environment(os.environ)


def diagnose_cache(place: Path) -> Diagnosis:
    """Say whether the cache can be written; what is tried leaves nothing behind.

    Args:
        place: the cache directory, which need not exist.
    """
    fix = f"Give yourself the right to write there, or set {CACHE} to another directory."
    existing = next((each for each in (place, *place.parents) if os.path.lexists(each)), place)
    if not os.path.isdir(existing):  # noqa: PTH112 - Path.is_dir raises where it may not look
        return Diagnosis.failed(
            "cache",
            f"{place} cannot be a directory: {existing} is none",
            f"Remove {existing}, or set {CACHE} to another directory.",
        )
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        why = error.strerror or str(error)
        return Diagnosis.failed("cache", f"{existing} cannot be written: {why}", fix)
    return Diagnosis.ok("cache", f"{place} can be {'written' if existing == place else 'made'}")


def diagnose_environment(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Look at the variables that begin as those of TruthGPT do.

    Args:
        environment: the variables.
    """
    ours = sorted(name for name in environment if name.startswith(PREFIX))
    problems = [found for name in ours for found in _problems(name, environment[name])]
    yield from problems
    if not problems:
        yield Diagnosis.ok("environment", f"{', '.join(ours) or f'no {PREFIX} variable'} set")


def _problems(name: str, value: str) -> Iterator[Diagnosis]:
    if name.startswith(VALUES):
        return
    if name not in KNOWN:
        yield Diagnosis.warning(name, "TruthGPT reads no variable of this name", _meant(name))
    elif name == STRICT and value not in ("", "0", "1"):
        yield Diagnosis.warning(name, f"it is {value!r}, and only 1 turns it on", f"Set {name}=1.")


def _meant(name: str) -> str:
    if name.startswith(VALUES.removesuffix("_")):
        return f"Values of a configuration begin with {VALUES}, with two underscores."
    # All begin alike: compared whole, every name would resemble every other.
    words = {known.removeprefix(PREFIX): known for known in KNOWN}
    close = difflib.get_close_matches(name.removeprefix(PREFIX).upper(), words, n=1)
    if close:
        return f"Did you mean {words[close[0]]}?"
    return f"Unset it, unless a plugin reads it. Known are {', '.join(sorted(KNOWN))}."
