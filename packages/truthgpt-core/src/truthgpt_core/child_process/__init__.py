"""Child processes: one protocol for all Python processes that TruthGPT starts.

`ChildProcess` runs a module in a process of its own, which calls `serve` to answer requests;
`forked` calls a function in a fork of this process that has limits, and `Fork` in one that stays;
`run` runs another program.
Messages are JSON and bytes, never pickles, on pipes that nothing else writes to. However a
process ends, what it has started ends with it, and a `ChildError` says how.
"""

from truthgpt_core.child_process.child import ChildError, send, serve
from truthgpt_core.child_process.fork import Fork, forked
from truthgpt_core.child_process.parent import ChildProcess, Ended, last_line, run

__all__ = [
    "ChildError",
    "ChildProcess",
    "Ended",
    "Fork",
    "forked",
    "last_line",
    "run",
    "send",
    "serve",
]
