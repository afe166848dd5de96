"""Plugins that are files in a directory: which are there, which may be loaded, loading them.

Loading a file runs it, so what may have been put there by another user is refused:
files that everyone may write, or in a directory that everyone may write, and links
to a place outside the directory.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from truthgpt_core.errors import in_one_line
from truthgpt_core.hookspecs import PROJECT
from truthgpt_core.plugin_system.code import PluginCode
from truthgpt_core.plugin_system.plugin import Plugin, PluginError
from truthgpt_core.transaction import Transaction, record_undo


@dataclass(frozen=True)
class PluginFile:
    """A file, or a package, that may hold plugins.

    Attributes:
        name: its name without `.py`.
        path: the file to run, for a package its `__init__.py`.
        problem: why it may not be loaded; empty if it may.
    """

    name: str
    path: Path
    problem: str = ""

    @property
    def is_package(self) -> bool:
        """Whether it is the file of a package."""
        return self.path.name == "__init__.py"


@dataclass
class LoadedFile:
    """A file that was run. It is forgotten when nothing that came with it is used.

    Attributes:
        file: which one.
        plugins: what it holds, by name.
    """

    file: PluginFile
    plugins: list[tuple[str, object]]
    _transaction: Transaction = field(repr=False)
    _users: int = 1

    def use(self, plugin: object) -> object:
        """Return `plugin`; the transaction under way releases the file when it is undone."""
        self._users += 1
        record_undo(self.release)
        return plugin

    def release(self) -> None:
        """Have one user less, and with the last one take back what running the file registered."""
        self._users -= 1
        if not self._users:
            self._transaction.rollback()


def find_files(directory: str | os.PathLike[str]) -> list[PluginFile]:
    """List the files and packages of a directory, by name; none is run.

    Raises:
        PluginError: there is no such directory, or everyone may write into it.
    """
    given = Path(directory)
    try:
        root = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before 3.13
        raise PluginError(f"There is no directory {given}") from error
    if not root.is_dir():
        raise PluginError(f"{given} is not a directory")
    if _everyone_may_write(root):
        raise PluginError(
            f"Everyone may write into {given}, so anyone could have put plugins there",
            hint=f"Run chmod o-w {given} if you trust what is in it.",
        )
    found = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(("_", ".")):
            continue
        if entry.suffix == ".py" and not entry.is_dir():
            found.append(PluginFile(entry.stem, entry, _problem(entry, root)))
        elif _is_package(entry):
            found.append(PluginFile(entry.name, entry / "__init__.py", _in_package(entry, root)))
    return found


def load_file(file: PluginFile) -> LoadedFile:
    """Run a file and make the plugins that it holds.

    Raises:
        PluginError: it may not be loaded, it raises, or it holds no plugin. Then what it
            registered so far is undone.
    """
    if file.problem:
        raise PluginError(file.problem)
    transaction = Transaction()

    def refusal(error: BaseException) -> PluginError:
        if isinstance(error, PluginError):
            return PluginError(error.message, hint=error.hint)
        return PluginError(f"{file.path} cannot be loaded: {in_one_line(error)}")

    with PluginCode(refusal), transaction:
        module = _run(file)
        plugins = list(_plugins_of(module, file))
    return LoadedFile(file, plugins, transaction)


class _FromSource(SourceFileLoader):
    """Runs the source that was looked at, and not compiled code from somewhere else."""

    def path_stats(self, path: Any) -> Any:
        raise OSError("compiled code is neither read nor written")


def _run(file: PluginFile) -> ModuleType:
    digest = hashlib.sha256(os.fsencode(file.path)).hexdigest()[:12]
    name = f"truthgpt_file_{digest}_{re.sub(r'[^0-9A-Za-z_]', '_', file.name)}"
    spec = spec_from_file_location(
        name,
        file.path,
        loader=_FromSource(name, str(file.path)),
        submodule_search_locations=[str(file.path.parent)] if file.is_package else None,
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    record_undo(partial(_forget, name))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _forget(name: str) -> None:
    for known in list(sys.modules):
        if known == name or known.startswith(f"{name}."):
            del sys.modules[known]


def _plugins_of(module: ModuleType, file: PluginFile) -> Iterator[tuple[str, object]]:
    public = [value for name, value in vars(module).items() if not name.startswith("_")]
    classes = [value for value in public if _is_plugin_class(value, module)]
    has_hooks = any(getattr(value, f"{PROJECT}_impl", None) for value in vars(module).values())
    if classes and has_hooks:
        raise PluginError(
            f"{file.path} has hook implementations beside {classes[0].__name__}",
            hint="Make them its methods.",
        )
    if not classes and not has_hooks:
        raise PluginError(
            f"{file.path} has neither a subclass of Plugin nor a function marked with hookimpl"
        )
    if has_hooks:
        yield file.name, module
    for plugin_class in dict.fromkeys(classes):
        plugin = plugin_class()
        yield plugin.name, plugin


def _is_plugin_class(value: object, module: ModuleType) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, Plugin)
        and not inspect.isabstract(value)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    )


def _is_package(entry: Path) -> bool:
    try:
        return (entry / "__init__.py").exists()
    except OSError:
        return False  # a directory that we may not read


def _in_package(folder: Path, root: Path) -> str:
    if folder.is_symlink():
        return f"{folder} is a link, and a package must be a directory"
    for entry in [folder, *sorted(folder.rglob("*"))]:
        if entry.is_symlink() and entry.is_dir():
            return f"{entry} is a link to a directory"
        problem = _problem(entry, root)
        if problem:
            return problem
    return ""


def _problem(path: Path, root: Path) -> str:
    """Say why a file or directory may not be used; empty if it may."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return f"{path} is a link to nothing"
    if not real.is_relative_to(root):
        return f"{path} is really {real}, outside {root}"
    if not (real.is_file() or real.is_dir()):
        return f"{path} is not a regular file"
    for each in [real, *real.parents]:
        if each == root:
            break
        if _everyone_may_write(each):
            return f"everyone may write {each}: run chmod o-w if you trust what is in it"
    return ""


def _everyone_may_write(path: Path) -> bool:
    # Windows has no such permission, and its st_mode says otherwise.
    return os.name != "nt" and bool(path.stat().st_mode & stat.S_IWOTH)
