"""Importing torch and transformers without python's search for garbage among what they make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from truthgpt_services.after_import import after_import


@contextmanager
def importing() -> Iterator[None]:
    """Spare the imports of a process of ours the collector, which takes a sixth of their time.

    Importing makes about a million objects that stay, and python looks through them again and
    again. What there is at the end it never looks at any more, so collections are shorter from
    then on, too. For processes that are ours alone: a program that imports us has a collector
    of its own to decide about.
    """
    after_import("transformers.utils.import_utils", _read_transformers_once)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _read_transformers_once() -> None:
    """Let transformers read its own source files once, not twice.

    It looks in all of them for what they export, when it is imported and again when the first
    model is. What it finds in a directory it caches, but for fewer directories than it has.
    """
    from transformers.utils import import_utils

    name = "create_import_structure_from_path"
    uncached = getattr(getattr(import_utils, name, None), "__wrapped__", None)
    if uncached is not None:
        setattr(import_utils, name, lru_cache(maxsize=None)(uncached))
