"""Files of one JSON line a record that survive being killed, and are put in order at the end.

What is done is appended to a file beside the target, in whichever order it comes, below a first
line that says what it belongs to. A process that is killed loses what it had not appended, and the
next one goes on behind the last whole line. The target appears when all records are there.
"""

from __future__ import annotations

import errno
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from truthgpt_core.paths import display_path, flush_to_disk
from truthgpt_services.errors import OutputError
from truthgpt_services.storage.locks import open_lock, try_alone

_BEGINNING = b'{"truthgpt": "records", "work": '
_LONGEST_LINE = 1 << 28
_RECORDS_UNTIL_FLUSHED = 64
_SECONDS_UNTIL_FLUSHED = 1.0
_AGAIN = "Nothing that was done is lost: {} and run the same command again."


class RecordLog:
    """The records that are done of a file that is being made; used as a context manager.

    Args:
        target: the file that there is in the end.
        work: what the records depend on, as JSON. Records of other work are never mixed.
        records: how many there will be. Each takes 8 bytes of memory.
        overwrite: replace a file that is there.

    Raises:
        OutputError: the target is there and not to be replaced; the records so far belong to
            other work, or another process is adding to them; or a file cannot be written.
    """

    def __init__(
        self, target: Path, work: Mapping[str, Any], records: int, *, overwrite: bool = False
    ) -> None:
        self.target = target
        self.path = log_path(target)
        self._work = json.loads(json.dumps(work))
        self._overwrite = overwrite
        # Where the line of each record begins; 0, where the first line is, for none.
        self._places = array("q", bytes(8 * records))
        self._stack = ExitStack()
        self._end = self._unflushed = self.done = 0
        self._flushed_at = monotonic()

    def __enter__(self) -> RecordLog:
        try:
            with self._explained():
                self._file = self._stack.enter_context(open_lock(self.path))
                if not try_alone(self._file):
                    raise OutputError(
                        f"Another process is writing {display_path(self.target)}",
                        hint="Wait for it, or name another --output.",
                    )
                self._read()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def is_done(self, index: int) -> bool:
        """Whether there is a record of this index."""
        return self._places[index] != 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, which is there whenever this process is killed afterwards.

        Args:
            record: JSON, with its `index`. One with an `error` does not count as done if the work
                is interrupted: it is tried again.

        Raises:
            OutputError: it cannot be written; the records before it are as they were.
        """
        index = int(record["index"])
        assert not self.is_done(index), index
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._explained():
            self._write(line)
        self._places[index] = self._end - len(line)
        self.done += 1

    def flush(self) -> None:
        """Wait until all records are on the disk, so that they also survive a power cut."""
        with self._explained():
            os.fsync(self._file.fileno())
        self._unflushed, self._flushed_at = 0, monotonic()

    def publish(self) -> None:
        """Put the records in order and give the file its name; all of them have to be there.

        Raises:
            OutputError: it cannot be written, or something else is there; the records stay.
        """
        assert all(self._places)
        self.flush()
        ordered = self.target.with_name(f".{self.target.name}.ordered")
        with self._explained():
            try:
                with suppress(FileNotFoundError):
                    ordered.unlink()
                # Not what reads at the start: that may have bytes that were cut off since.
                log = open(self._file.fileno(), "rb", closefd=False)  # noqa: SIM115
                with ordered.open("xb") as file, log:
                    for place in self._places:
                        log.seek(place)
                        file.write(log.readline())
                    file.flush()
                    os.fsync(file.fileno())
                ordered.replace(self.target)
            except BaseException:
                with suppress(OSError):
                    ordered.unlink()
                raise
            flush_to_disk(self.target.absolute().parent)
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Take over what is there, up to the last whole line."""
        first = self._file.readline(_LONGEST_LINE)
        if not first.endswith(b"\n"):
            # Killed before the first line was written, or before anything was.
            if first[: len(_BEGINNING)] != _BEGINNING[: len(first)]:
                raise OutputError(
                    f"{display_path(self.path)} is something else than records that are done",
                    hint="Name another --output.",
                )
            self._end = 0
            self._file.truncate(0)
            self._write(_BEGINNING + json.dumps(self._work).encode() + b"}\n")
            self.flush()
            flush_to_disk(self.path.absolute().parent)
            return
        self._refuse_other_work(first)
        self._end = len(first)
        while (line := self._file.readline(_LONGEST_LINE)).endswith(b"\n"):
            index = self._index(line)
            if index is None:
                break
            if index >= 0:
                self.done += not self._places[index]
                self._places[index] = self._end
            self._end += len(line)
        self._file.truncate(self._end)
        # Where all is done, what is there may be what was published just before the end.
        if self.done < len(self._places):
            refuse_existing(self.target, overwrite=self._overwrite)

    def _index(self, line: bytes) -> int | None:
        """Return the index in a line; -1 for a record that is tried again, None for damage."""
        try:
            record = json.loads(line)
            index = record["index"]
            if "error" in record:
                return -1
        except (ValueError, RecursionError, KeyError, TypeError):
            return None
        usable = type(index) is int and 0 <= index < len(self._places)
        return index if usable else None

    def _refuse_other_work(self, first: bytes) -> None:
        try:
            found = json.loads(first)
            work = found["work"] if found["truthgpt"] == "records" else None
        except (ValueError, RecursionError, KeyError, TypeError):
            work = None
        if not isinstance(work, dict):
            raise OutputError(
                f"{display_path(self.path)} is something else than records that are done",
                hint="Name another --output.",
            )
        if work != self._work:
            names = {**self._work, **work}
            other = [name for name in names if work.get(name) != self._work.get(name)]
            raise OutputError(
                f"{display_path(self.path)} has records of other work, which differs in "
                f"{', '.join(other)}",
                hint="Give the same as then to go on, name another --output, or remove the file to "
                "begin anew.",
            )

    def _write(self, line: bytes) -> None:
        descriptor = self._file.fileno()
        try:
            os.lseek(descriptor, self._end, os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            with suppress(OSError):
                os.truncate(descriptor, self._end)
            raise
        self._end += len(line)
        self._unflushed += 1
        late = monotonic() - self._flushed_at > _SECONDS_UNTIL_FLUSHED
        if late or self._unflushed >= _RECORDS_UNTIL_FLUSHED:
            self.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            name = display_path(self.target)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    f"The disk is full: {name} could not be written",
                    hint=_AGAIN.format("free some space"),
                ) from error
            if error.errno == errno.EFBIG:
                raise OutputError(
                    f"{name} is larger than this system allows",
                    hint=_AGAIN.format("see `ulimit -f`"),
                ) from error
            raise OutputError(
                f"{name} cannot be written: {error.strerror or error}",
                hint="Name another --output.",
            ) from error


def log_path(target: Path) -> Path:
    """Return the file that has the records of a target so far."""
    return target.with_name(f"{target.name}.partial")


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Refuse to write a file where something is that may not be replaced.

    Args:
        target: the file.
        overwrite: whether a file may be replaced.

    Raises:
        OutputError: something is there.
    """
    if target.is_dir():
        raise OutputError(f"{display_path(target)} is a directory", hint="Name a file.")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(
            f"{display_path(target)} is there already",
            hint="Use --overwrite to replace it, or another --output.",
        )
