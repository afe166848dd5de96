"""Runs a module as a child process: `python -m truthgpt_core.child_process MODULE [SECONDS]`.

Damaged metadata of some distribution does not keep it from importing pydantic, torch or
transformers. With SECONDS it ends itself some time after them, should nothing else end it.
"""

from __future__ import annotations

import faulthandler
import runpy
import sys

from truthgpt_core.child_process.child import connect
from truthgpt_core.installed_metadata import tolerate_damage

_GRACE = 10.0

if __name__ == "__main__":
    del sys.argv[0]
    connect()
    for seconds in sys.argv[1:]:
        # Needs no lock of the interpreter, which code that hangs may hold.
        faulthandler.dump_traceback_later(float(seconds) + _GRACE, exit=True)
    tolerate_damage()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
