"""Structured logs: one JSON line an event, or colours on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
import transformers

__all__ = ["set_up_logs"]


def set_up_logs(level: str, stream: TextIO | None = None) -> None:
    """Write events of this level and above to a stream, standard error unless given."""
    numeric = getattr(logging, level.upper())
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    logging.basicConfig(level=logging.WARNING, stream=stream)
    # Loading reports and length warnings of theirs: we check both ourselves.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
