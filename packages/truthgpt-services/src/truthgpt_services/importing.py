"""Importing torch and transformers without python's search for garbage among what they make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Spare the imports of a process of ours the collector, which takes a sixth of their time.

    Importing makes about a million objects that stay, and python looks through them again and
    again. What there is at the end it never looks at any more, so collections are shorter from
    then on, too. For processes that are ours alone: a program that imports us has a collector
    of its own to decide about.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
