"""Log lines: one JSON object each, or text where a person watches. Goes to standard error."""

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, TypeAlias

from daemon.jobs import Job
from daemon.settings import LogSettings

log = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = ("gmqtt", "aiosqlite", "httpx", "httpcore", "hpack", "PIL", "matplotlib")
"""Libraries whose chatter says nothing to an operator; their errors still do."""

Redact: TypeAlias = Callable[[str], str]
"""Returns a text without secrets."""

_about: ContextVar[Mapping[str, str] | None] = ContextVar("about", default=None)


@contextlib.contextmanager
def about(job: Job) -> Iterator[None]:
    """Let every line that is logged within name the job, however deep and whoever logs it."""
    token = _about.set({"job_id": job.job_id, "task_type": job.task_type.value})
    try:
        yield
    finally:
        _about.reset(token)


def said_about(context: Context) -> Mapping[str, str]:
    """Return what `about` said in a context: job_id and task_type, or nothing."""
    return context.get(_about) or {}


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

    def __init__(self, redact: Redact = str) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a payload cannot break it, since everything is escaped."""
        line: dict[str, Any] = {
            "time": round(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        for name, value in _extra(record).items():
            line.setdefault(name, self._redact(value) if isinstance(value, str) else value)
        if record.exc_info:
            line["exception"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True, default=lambda value: self._redact(str(value)))


class TextFormatter(logging.Formatter):
    """Time, level and message for a person, then what `extra` brought as key=value."""

    def __init__(self, redact: Redact = str) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters in it are escaped, so none can be forged."""
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        clock = self.formatTime(record, "%H:%M:%S")
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{extra}"
        lines = [escaped(self._redact(line))]
        if record.exc_info:
            # Set in: what an error quotes cannot pass for a line of ours.
            traceback = self._redact(self.formatException(record.exc_info))
            lines += [f"  | {escaped(each)}" for each in traceback.splitlines()]
        return "\n".join(lines)


def set_up_logging(settings: LogSettings, redact: Redact = str) -> None:
    """Send everything of the level and above to standard error in the chosen form.

    Args:
        settings: the level and the form.
        redact: takes secrets out of whatever is written, also of what libraries quote.
    """
    is_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(redact) if is_text else JsonFormatter(redact))
    handler.addFilter(AboutFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def log_what_nobody_catches() -> None:
    """Let errors that end the process or a thread be lines like all others.

    Python itself would write them raw: with the secrets and the line breaks of what they quote.
    """

    def ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        log.critical("inferd crashed", exc_info=(kind, error, trace))

    def thread_ended(ending: threading.ExceptHookArgs) -> None:
        if issubclass(ending.exc_type, SystemExit):
            return
        name = ending.thread.name if ending.thread is not None else "unknown"
        error = ending.exc_value or ending.exc_type()
        log.critical("the thread %s crashed", name, exc_info=error)

    def ignored(ending: "sys.UnraisableHookArgs") -> None:
        said = ending.err_msg or "an error was ignored in"
        log.error("%s %s", said, type(ending.object).__name__, exc_info=ending.exc_value)

    sys.excepthook = ended
    threading.excepthook = thread_ended
    sys.unraisablehook = ignored


def escaped(text: str) -> str:
    """Return a text with every character escaped that a terminal or a reader of lines may obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }
