"""Doing something when a module is imported, without importing it.

Nothing here imports torch or transformers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)


def after_import(name: str, act: Callable[[], None]) -> None:
    """Call `act` once the module `name` is imported: at once if it is already.

    What `act` raises is logged, and does not stop the import.

    Args:
        name: of the module, with its packages.
        act: what to do then.
    """
    if name in sys.modules:
        # Another thread may be in the middle of it: this waits for its end.
        import_module(name)
        _safely(act, name)
    elif not any(isinstance(each, _Finder) and each.name == name for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder(MetaPathFinder):
    """Finds one module as the others would, and is told when it was executed."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name = name
        self.act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """A loader that acts when it has executed the module; else it is the one that was found."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # Whoever asks the module for its loader gets the real one.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _safely(self._finder.act, self._finder.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _safely(act: Callable[[], None], name: str) -> None:
    try:
        act()
    except Exception:
        logger.warning("TruthGPT could not do its part after %s was imported", name, exc_info=True)
