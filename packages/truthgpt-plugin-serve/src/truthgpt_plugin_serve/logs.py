"""The log: one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_LONGEST = 100_000


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
        return json.dumps(entry, default=str)[:_LONGEST]


def log_to_stdout() -> None:
    """Write what is logged to standard output, from `info` on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Each request is logged by us, with more.
    logging.getLogger("uvicorn.access").disabled = True
