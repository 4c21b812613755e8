"""Structured JSON logs, and a stream that drops lines rather than block."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from alarm_service.errors import shortened

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
if TYPE_CHECKING:  # a type of Python 3.12, which type checkers know
    from _typeshed import ReadableBuffer

__all__ = ["capture_uncaught", "configure_logs", "log_stream", "set_up_logs"]

_log = structlog.get_logger()

#: Maximum characters of a logged value, and of a traceback.
_MAX_VALUE = 2_000
_MAX_TRACEBACK = 20_000


def set_up_logs(level: str, stream: TextIO | None = None) -> None:
    """Write events of this level and above to a stream, standard error unless given."""
    configure_logs(level, stream)
    import transformers

    # Its loading reports and length warnings: we check both ourselves.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("transformers", "huggingface_hub"):  # they write their own lines
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Do the same without configuring libraries that are slow to import."""
    numeric = getattr(logging, level.upper())
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    time = structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso")
    renderer: Processor = structlog.processors.JSONRenderer()
    if is_terminal:
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            time,
            structlog.processors.format_exc_info,
            _bounded,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _bounded,
                renderer,
            ],
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                time,
            ],
        )
    )
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler])


def capture_uncaught() -> None:
    """Log warnings and uncaught exceptions, which Python would print."""
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
    sys.excepthook = _process_failed


def _bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Shorten long values; the texts of `--log-texts` are logged whole."""
    if event.get("event") == "sample":
        return event
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = shortened(value, _MAX_TRACEBACK if key == "exception" else _MAX_VALUE)
    return event


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else None
    error = args.exc_value or args.exc_type()
    _log.error("uncaught exception in a thread", thread=name, exc_info=error)


def _unraisable(args: UnraisableHookArgs) -> None:
    _log.error("unraisable exception", where=repr(args.object), exc_info=args.exc_value)


def _process_failed(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    _log.critical("uncaught exception", exc_info=error)


#: A writable pipe accepts as many bytes without blocking (PIPE_BUF on Linux).
_PIECE_BYTES = 4096


def log_stream(descriptor: int) -> TextIO:
    """Return a stream that drops lines which would block.

    Serving continues with a full disk, or a pipe that is closed or not read. Once lines are
    accepted again, the first says how many were dropped.
    """
    raw = cast(BinaryIO, _Lossy(descriptor))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


class _Lossy(io.RawIOBase):
    """Writes whole lines, or counts those that it drops."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self._num_lost = 0
        self._is_cut = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, lines: ReadableBuffer) -> int:
        data = bytes(lines)
        with self._lock:
            if self._num_lost and self._is_taken(_loss(self._num_lost)):
                self._num_lost = 0
            if self._num_lost or not self._is_taken(data):
                self._num_lost += data.count(b"\n")
        return len(data)

    def _is_taken(self, lines: bytes) -> bool:
        # A truncated line is terminated first, so that the next one starts on a new line.
        data = (b"\n" if self._is_cut else b"") + lines
        num_written = 0
        try:
            while num_written < len(data) and self._poll.poll(0):
                piece = data[num_written : num_written + _PIECE_BYTES]
                num_written += os.write(self._descriptor, piece)
        except OSError:
            pass  # full or closed: it cannot be reported
        if num_written:
            self._is_cut = num_written < len(data)
        return num_written == len(data)


def _loss(num_lines: int) -> bytes:
    return json.dumps({"event": "log lines were lost", "lines": num_lines}).encode() + b"\n"
