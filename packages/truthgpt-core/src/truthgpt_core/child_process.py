"""Runs a module in a process of our own: `python -m truthgpt_core.child_process MODULE ARGUMENTS`.

As `python -m MODULE ARGUMENTS` does, but so that damaged metadata of some distribution does not
keep pydantic, torch or transformers from being imported.
"""

from __future__ import annotations

import runpy
import sys

from truthgpt_core.installed_metadata import tolerate_damage

if __name__ == "__main__":
    tolerate_damage()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
