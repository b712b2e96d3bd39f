"""Logs as events with fields: JSON lines for machines, plain lines for people.

Knows how an event is written. Does not know what happens: callers name the event and its fields (`event(logger, "stream_closed", …)`).
Invariants: one event is one line; message contents and keys are never fields.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

FIELDS = "fields"
"""The attribute of a log record that holds the event's fields."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {FIELDS, "message", "asctime"}


def event(logger: logging.Logger, name: str, level: int = logging.INFO, exc_info: Any = None, **fields: Any) -> None:
    """Log one event with its fields."""
    if logger.isEnabledFor(level):
        logger.log(level, name, exc_info=exc_info, extra={FIELDS: fields})


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record: those given to `event`, and whatever a plain `extra=` brought."""
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    given = getattr(record, FIELDS, None)
    return {**fields, **given} if isinstance(given, dict) else fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update({name: value for name, value in fields_of(record).items() if name not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:
            return msgspec.json.encode({name: ascii(value) for name, value in line.items()}).decode()


class ConsoleFormatter(logging.Formatter):
    """One line for people: time, level, event, `name=value` fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        text = f"{time} {record.levelname.lower():7} {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(log_format: Literal["json", "console"] | str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs of the process to `stream` (standard error) in one format. Call once, at the start."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp's access log writes a line for each request, in a shape of its own; ours is the setting access_log.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
