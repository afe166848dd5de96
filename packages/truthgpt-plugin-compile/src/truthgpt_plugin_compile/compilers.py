"""Which C++ compiler inductor takes; nothing heavy is imported to know."""

from __future__ import annotations

import os
import sys

CXX = "CXX"
COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""The one compiler that inductor looks for if CXX is not set; elsewhere it is g++."""


def wanted_compiler() -> str:
    """Return what CXX names, or the compiler that inductor looks for without it."""
    wanted = os.environ.get(CXX)
    return COMPILERS.get(sys.platform, "g++") if wanted is None else wanted
