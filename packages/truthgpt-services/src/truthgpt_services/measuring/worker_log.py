"""What worker processes printed, in one file beside the report."""

from __future__ import annotations

from pathlib import Path

NAME = "worker.log"
_MOST = 2**20
"""Bytes of one worker that are kept, the last ones: a plugin may print without end."""


def write_worker_log(logs: Path, directory: Path) -> Path | None:
    """Gather what workers printed into `worker.log`.

    Args:
        logs: a directory with a file for each worker, `NAME.log`.
        directory: where to write it; one that is there is replaced.

    Returns:
        The file; None if no worker printed anything, and then there is none.

    Raises:
        OSError: it cannot be written.
    """
    parts = []
    for log in sorted(logs.glob("*.log"), key=lambda each: (each.stat().st_ctime_ns, each.name)):
        with log.open("rb") as file:
            size = log.stat().st_size
            file.seek(max(0, size - _MOST))
            said = file.read().strip()
        if not said:
            continue
        left_out = f", its last {_MOST:,} bytes" if size > _MOST else ""
        parts.append(f"==> {log.stem}{left_out} <==\n".encode() + said + b"\n")
    if not parts:
        return None
    path = directory / NAME
    path.write_bytes(b"\n".join(parts))
    return path
