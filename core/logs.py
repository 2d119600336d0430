"""Where log records go and which fields they carry.

Modules only do `logger = logging.getLogger(__name__)` and log a constant phrase with facts in `extra`. The entry point
of a process calls `configure_logging` once. Which request, rank or group a record belongs to comes from here, not from
the call, so no call can forget it. Prompts and outputs are never logged.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO, TypedDict, Unpack

PACKAGES = ("core", "parallel", "engine", "cluster", "deployments", "benchmarks")
"""Loggers this module configures; other libraries' loggers are left as they are."""

_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LogFields(TypedDict, total=False):
    """What identifies the origin of a record."""

    request_id: str
    rank: int
    group_id: str


_context: ContextVar[LogFields | None] = ContextVar("log_fields", default=None)


@contextlib.contextmanager
def log_context(**fields: Unpack[LogFields]) -> Iterator[None]:
    """Add `fields` to every record of this task or thread until the block ends; blocks nest.

    A thread starts without its parent's context: give it `contextvars.copy_context().run` or name the process-wide
    fields in `configure_logging`.
    """
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def configure_logging(
    level: str = "INFO", *, json: bool = False, stream: TextIO | None = None, **fields: Unpack[LogFields]
) -> None:
    """Send this process's records at `level` and above to `stream` (stderr), as text or one JSON object a line.

    `fields` go on every record of the process unless `log_context` says otherwise. Calling again replaces the former
    configuration. Raises ValueError for a level that does not exist.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.addFilter(_ContextFilter(fields))
    handler.setFormatter(JsonFormatter() if json else PlainFormatter())
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        # The host process (Ray, pytest) may have handlers on the root, and one line must not appear twice.
        logger.propagate = False


class PlainFormatter(logging.Formatter):
    """`2026-11-22T04:03:22.123Z INFO engine.engine: group ready rank=0 num_blocks=512`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, then the traceback if the record has one."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in record_fields(record).items())
        line = f"{_timestamp(record)} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a value JSON cannot hold becomes its text."""
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **record_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def record_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what `extra` and the context put on a record, in the order they were put."""
    # Ray has every record of its processes carry fields of its own, named as private.
    return {
        name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS and not name.startswith("_")
    }


class _ContextFilter(logging.Filter):
    """Puts the process's and the context's fields on each record; passes every record."""

    def __init__(self, process_fields: LogFields) -> None:
        super().__init__()
        self._process_fields = process_fields

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in {**self._process_fields, **(_context.get() or {})}.items():
            # A field given in the call is nearer the fact than the context.
            vars(record).setdefault(name, value)
        return True


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> str:
    # Quoted like JSON when it has blanks, quotes or line ends, so that no value can forge a field or a line.
    text = str(value)
    is_safe = text.isprintable() and text != "" and not any(character in text for character in ' "=')
    return text if is_safe else json.dumps(text, ensure_ascii=True)
