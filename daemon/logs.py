"""Log lines: one JSON object each, or text where a person watches. Goes to standard error."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from daemon.jobs import Job
from daemon.settings import LogSettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = ("gmqtt", "aiosqlite", "httpx", "httpcore", "hpack", "PIL", "matplotlib")
"""Libraries whose chatter says nothing to an operator; their errors still do."""


_about: ContextVar[Mapping[str, str] | None] = ContextVar("about", default=None)


@contextlib.contextmanager
def about(job: Job) -> Iterator[None]:
    """Let every line that is logged within name the job, however deep and whoever logs it."""
    token = _about.set({"job_id": job.job_id, "task_type": job.task_type.value})
    try:
        yield
    finally:
        _about.reset(token)


class AboutFilter(logging.Filter):
    """Gives a record what `about` said where it was logged; what the line itself says stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: nothing is dropped."""
        for name, value in (_about.get() or {}).items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a payload cannot break it, since everything is escaped."""
        line: dict[str, Any] = {
            "time": round(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _extra(record).items():
            line.setdefault(name, value)
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
        lines = [_escaped(line)]
        if record.exc_info:
            # Set in: what an error quotes cannot pass for a line of ours.
            traceback = self.formatException(record.exc_info)
            lines += [f"  | {_escaped(each)}" for each in traceback.splitlines()]
        return "\n".join(lines)


def set_up_logging(settings: LogSettings) -> None:
    """Send everything of the level and above to standard error in the chosen form."""
    is_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    handler.addFilter(AboutFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }
