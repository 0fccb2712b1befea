"""Log lines: one JSON object each, or text where a person watches. Goes to standard error."""

import json
import logging
import sys
from typing import Any

from daemon.settings import LogSettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = ("gmqtt", "aiosqlite", "httpx", "httpcore", "hpack", "PIL", "matplotlib")
"""Libraries whose chatter says nothing to an operator; their errors still do."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a payload cannot break it, since everything is escaped."""
        line: dict[str, Any] = {
            "time": round(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Time, level and message for a person, then what `extra` brought as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters in it are escaped, so none can be forged."""
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        clock = self.formatTime(record, "%H:%M:%S")
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{extra}"
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logging(settings: LogSettings) -> None:
    """Send everything of the level and above to standard error in the chosen form."""
    is_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }
