"""The log: one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_LONGEST = 100_000
"""Characters of a line at most."""

_KEPT = 4_000
"""Characters that are left of what is too long, each of which may be written as twelve."""


class JsonLines(logging.Formatter):
    """Writes records as JSON: `time`, `level`, `logger`, `message`, and what comes with them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            entry["request_id"] = request_id
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # Only ASCII: what a client wrote can neither break a line nor move a terminal's cursor.
        line = json.dumps(entry, default=str)
        if len(line) > _LONGEST:
            # The longest first, until the line is short enough: it has to stay JSON.
            for name in sorted(entry, key=lambda each: -len(json.dumps(entry[each], default=str))):
                entry[name] = f"{str(entry[name])[:_KEPT]}... (cut)"
                line = json.dumps(entry, default=str)
                if len(line) <= _LONGEST:
                    break
        return line


def log_to_stdout() -> None:
    """Write what is logged to standard output, from `info` on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Each request is logged by us, with more.
    logging.getLogger("uvicorn.access").disabled = True
