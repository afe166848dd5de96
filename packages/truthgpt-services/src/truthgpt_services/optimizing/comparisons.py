"""Finished comparisons of a run that was interrupted, for the same command to go on with.

A comparison is one step that was measured beside the baseline and judged. It is kept in the cache
directory under a key of all that its outcome depends on, and removed when a run comes to its end:
the same command measures again then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from truthgpt_core.paths import cache_dir, file_sha256
from truthgpt_services.results.io import json_text
from truthgpt_services.results.schema import Load, Quality, Step, Variant
from truthgpt_services.storage.lru import FileCache

FORMAT = 1
DAYS = 7
"""After these a comparison is measured again: a machine changes in ways that no key has."""

_MAX_BYTES = 16_000_000
_READ_WHOLE = 16_000_000
# They choose kernels and threads, or what plugins do.
_VARIABLES = ("CUDA", "GOMP", "KMP", "MKL", "OMP", "OPENBLAS", "PYTORCH", "TORCH", "TRUTHGPT")


class Turns(BaseModel):
    """What one process of a model has measured; see `measuring.speed.Launch`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompts: list[float]
    slices: list[float]


class Comparison(BaseModel):
    """A step that was measured and judged, with all that a report needs of it.

    Attributes:
        format: of this record.
        key: that it was kept under.
        created: when it was measured, ISO 8601, UTC.
        step: what became of the step.
        variant: the model with it.
        baseline: the quality of the baseline.
        launches: for each model that took turns, by name, what each of its processes measured.
        peaks: the highest memory of each of them, in bytes.
        notes: what the step noted while the model ran, by what they are about.
        weights: `digest` of the saved model's weight files.
        load: what other programs did meanwhile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    key: str
    created: str
    step: Step
    variant: Variant
    baseline: Quality
    launches: dict[str, list[Turns]]
    peaks: dict[str, int]
    notes: dict[str, str]
    weights: str
    load: Load


class Comparisons:
    """The finished comparisons of one command.

    Args:
        given: all that every comparison of the command depends on, in JSON types.
        folder: where to keep them; below the cache directory if None.
    """

    def __init__(self, given: Mapping[str, Any], folder: Path | None = None) -> None:
        self._given = given
        self._files = FileCache(
            folder or cache_dir("comparisons"),
            ".json",
            max_bytes=_MAX_BYTES,
            max_age=DAYS * 86400,
            flush=True,
        )
        self._seen: set[str] = set()

    def key(self, steps: Sequence[Mapping[str, Any]]) -> str:
        """Return the key of the comparison of a model with these steps, the last one judged."""
        parts = {"format": FORMAT, "given": self._given, "steps": steps}
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()

    def get(self, key: str) -> Comparison | None:
        """Return a comparison; None if it is not there, is too old, or is not whole."""
        text = self._files.get(key)
        if text is None:
            return None
        try:
            found = Comparison.model_validate(json.loads(text))
        except (ValidationError, ValueError, RecursionError):
            return None
        if found.format != FORMAT or found.key != key:
            return None
        self._seen.add(key)
        return found

    def put(self, comparison: Comparison) -> None:
        """Keep a comparison; a directory that cannot be written keeps none."""
        text = json_text(comparison.model_dump(mode="json"))
        with suppress(OSError):
            self._files.put(comparison.key, text)
            self._seen.add(comparison.key)

    def forget(self) -> None:
        """Remove what this command has used or kept: its run has come to its end."""
        for key in self._seen:
            self._files.remove(key)


def digest(directory: Path, pattern: str = "*.safetensors") -> str:
    """Return a checksum over the files of a directory that match, with their names."""
    found = hashlib.sha256()
    for path in sorted(directory.glob(pattern)):
        found.update(f"{path.name}\0{file_sha256(path)}\0".encode(errors="backslashreplace"))
    return found.hexdigest()


def identity(model: Path) -> list[list[Any]]:
    """Return what tells the files of a model from those of another.

    Small files are read. Of weights, which it would take minutes to read, it is what the system
    has of them: nothing that writes into a file leaves the time of its last change as it was.

    Args:
        model: its directory, or its only file.
    """
    found: list[list[Any]] = []
    for path in sorted(model.iterdir()) if model.is_dir() else [model]:
        if not path.is_file():
            continue
        facts = path.stat()
        if facts.st_size <= _READ_WHOLE:
            found.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
        else:
            times = [facts.st_mtime_ns, facts.st_ctime_ns]
            found.append([path.name, facts.st_size, facts.st_dev, facts.st_ino, *times])
    return found


def sources(modules: Iterable[str]) -> dict[str, str]:
    """Return a checksum of the files of each package or module, which an edit in place changes.

    Args:
        modules: top-level names, of what is installed; none is imported.
    """
    found = {}
    for name in sorted(set(modules)):
        module = sys.modules.get(name)
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        roots = [] if spec is None else list(spec.submodule_search_locations or ())
        files = [path for root in roots for path in Path(root).rglob("*") if path.is_file()]
        if spec is not None and not roots and spec.origin:
            files = [Path(spec.origin)]
        content = hashlib.sha256()
        for path in sorted(files):
            if "__pycache__" not in path.parts and path.suffix != ".pyc":
                content.update(f"{path}\0".encode(errors="backslashreplace"))
                content.update(hashlib.sha256(path.read_bytes()).digest())
        found[name] = content.hexdigest()
    return found


def environment() -> dict[str, str]:
    """Return the variables of the environment that may change what is measured."""
    return {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
