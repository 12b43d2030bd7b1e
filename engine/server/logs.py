"""Log lines, as text or as JSON. Scripts and audio are in none of them unless asked."""

import asyncio
import json
import logging
import sys
import time
from typing import Any

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
    """A line for people; the fields of a line follow its message as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        shown = " ".join(
            f"{name}={value}" for name, value in getattr(record, "fields", {}).items() if value is not None
        )
        return " ".join(part for part in (super().format(record), shown) if part)


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
