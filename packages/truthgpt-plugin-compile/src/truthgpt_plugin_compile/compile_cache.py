"""Where compiled code is kept for the next process: a directory for each setting it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from truthgpt_core.paths import file_sha256, is_unfinished, read_json, write_file
from truthgpt_plugin_compile.compilers import wanted_compiler

KERNEL_CACHE = "TORCHINDUCTOR_CACHE_DIR"
CHECKSUMS = "truthgpt-checksums.json"
_LARGEST_CHECKSUMS = 1 << 26


class CodeCache:
    """A directory of compiled code that is named after everything the code depends on.

    What is in it is input: what does not have the checksum written down for it is
    thrown away, with all the rest, before anything is loaded.

    Args:
        directory: where directories of compiled code are.
        recipe: the options that the code is compiled with.
        device: where the model is, in torch's notation.
    """

    def __init__(self, directory: Path, recipe: Mapping[str, Any], device: str) -> None:
        self._directory = directory
        self._recipe = dict(recipe)
        self._device = device
        self._checked = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process checks for itself."""
        return CodeCache, (self._directory, self._recipe, self._device)

    @property
    def path(self) -> Path:
        """The directory for this machine, these libraries and this recipe."""
        facts = {**_facts(self._device.partition(":")[0], wanted_compiler()), **self._recipe}
        text = json.dumps(facts, sort_keys=True)
        return self._directory / hashlib.sha256(text.encode()).hexdigest()[:16]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have inductor read and write this directory, and put the environment back after.

        A directory that the user chose is used instead. The default that torch
        writes into the environment by itself was not chosen.

        Raises:
            OSError: it cannot be made or written.
        """
        before = os.environ.get(KERNEL_CACHE)
        default = str(Path(tempfile.gettempdir(), "torchinductor_"))
        if before is not None and not before.startswith(default):
            yield
            return
        path = self.path
        if not self._checked:
            _discard_if_damaged(path)
            self._checked = True
        path.mkdir(parents=True, exist_ok=True)
        os.environ[KERNEL_CACHE] = str(path)
        try:
            yield
            _write_checksums(path)
        finally:
            if before is None:
                os.environ.pop(KERNEL_CACHE, None)
            else:
                os.environ[KERNEL_CACHE] = before


@cache
def _facts(kind: str, compiler: str) -> dict[str, str]:
    package = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        package.update(source.read_bytes())
    return {
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": f"{torch.backends.cpu.get_cpu_capability()} {_cpu_flags()}",
        "gpu": f"{torch.version.cuda} {torch.cuda.get_device_name()}" if kind == "cuda" else kind,
        "compiler": _compiler_version(compiler),
        "plugin": package.hexdigest(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return platform.processor()
    # "Features" is what ARM calls them.
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compiler_version(compiler: str) -> str:
    found = shutil.which(compiler)
    if found is None:
        return ""
    try:
        result = subprocess.run([found, "--version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return found
    return f"{found} {result.stdout.decode(errors='replace').partition(chr(10))[0]}"


def _discard_if_damaged(path: Path) -> None:
    try:
        written = read_json(path / CHECKSUMS, limit=_LARGEST_CHECKSUMS)
        whole = all(file_sha256(path / name) == wanted for name, wanted in written.items())
    except FileNotFoundError:
        # Nothing was ever finished here, or a file is gone. Inductor makes both anew.
        return
    except (OSError, ValueError):
        whole = False
    if not whole:
        shutil.rmtree(path, ignore_errors=True)


def _write_checksums(path: Path) -> None:
    sums = {
        str(file.relative_to(path)): file_sha256(file)
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and file.suffix != ".lock"
        and file.name != CHECKSUMS
        and not is_unfinished(file.name)
    }
    write_file(path / CHECKSUMS, json.dumps(sums), flush=False)
