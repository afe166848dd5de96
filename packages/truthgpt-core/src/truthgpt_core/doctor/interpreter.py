"""This Python, and the core that runs in it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import metadata

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.plugin_system.discovery import CORE

_CLASSIFIER = "Programming Language :: Python :: "


def examine() -> Iterator[Diagnosis]:
    """Look at this Python."""
    about = metadata(CORE)
    classifiers = about.get_all("Classifier") or ()
    yield Diagnosis.ok(CORE, about["Version"])
    yield diagnose_version(
        platform.python_version(),
        [each.removeprefix(_CLASSIFIER) for each in classifiers if each.startswith(_CLASSIFIER)],
    )
    yield Diagnosis.ok("environment", _environment())


def diagnose_version(running: str, classified: Iterable[str]) -> Diagnosis:
    """Say whether a version of Python is among those that this core is tested on.

    Args:
        running: the version: "3.11.7".
        classified: the versions that the core's classifiers name, "3 :: Only" and the like too.
    """
    detail = f"{running} ({platform.python_implementation()}), {sys.executable}"
    tested = [each for each in classified if each.startswith("3.")]
    if not tested or running.rpartition(".")[0] in tested:
        return Diagnosis.ok("Python", detail)
    return Diagnosis.warning(
        "Python", f"{detail}: not one of those that are tested", f"Use Python {tested[-1]}."
    )


def _environment() -> str:
    if sys.prefix != sys.base_prefix:
        return f"virtual environment {sys.prefix}"
    if os.environ.get("CONDA_PREFIX") == sys.prefix:
        return f"conda environment {sys.prefix}"
    return "no virtual environment: packages are shared with all that this Python runs"
