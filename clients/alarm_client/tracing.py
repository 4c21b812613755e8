"""Which trace a request belongs to, where the caller's program is traced by OpenTelemetry."""

from __future__ import annotations

import sys


def trace_headers() -> dict[str, str]:
    """The `traceparent` of the span that the caller is in; nothing where it is in none.

    A program that is traced has imported OpenTelemetry: one that has not pays nothing here.
    """
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers
