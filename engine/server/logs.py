"""Log lines, as text or as JSON. Scripts and audio are in none of them unless asked."""

import asyncio
import json
import logging
import sys
import time
from typing import Any

from ..messages import without_controls

STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and what the line was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in STANDARD and name != "fields"}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def is_not_cut_off(record: logging.LogRecord) -> bool:
    """Whether a record tells more than that a request was cut off at the end, of which the server has its own line."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class TextFormatter(logging.Formatter):
    """A line for people; the fields of a line follow its message as name=value, below it an exception, indented.

    What a client sent, a path for instance, can neither begin a line of its own nor reach a terminal as an escape.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        shown = [f"{name}={value}" for name, value in fields.items() if value is not None]
        first = " ".join([self.formatTime(record), record.levelname, record.getMessage().strip(), *shown])
        below = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([without_controls(first), *(f"  {without_controls(line)}" for line in below)])


def configure(log_format: str) -> None:
    """Send the logs of the engine and of uvicorn to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name in ("dia_engine", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
    # `middleware` writes a line per request and per socket, with its id.
    logging.getLogger("uvicorn.access").disabled = True
    errors = logging.getLogger("uvicorn.error")
    errors.setLevel(logging.WARNING)
    errors.addFilter(is_not_cut_off)
