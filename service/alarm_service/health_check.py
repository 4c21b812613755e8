"""`alarm health`: asks the server of this machine whether it is ready, as container runtimes do."""

from __future__ import annotations

import http.client
import json
import ssl
from contextlib import closing

from alarm_service.settings import Settings

__all__ = ["probe"]

_PATIENCE_S = 5

#: Where a server that listens on all addresses is reached from its own machine.
_OWN = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked at, not listened on


def probe(settings: Settings) -> tuple[bool, str]:
    """Return whether the server is ready, and why or why not in a sentence."""
    host = _OWN.get(settings.host, settings.host)
    try:
        connection = _connection(host, settings.port, is_tls=settings.tls_certificate is not None)
    except http.client.InvalidURL:
        return False, f"{host!r} is no host that can be asked"
    with closing(connection):
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            reason = _reason(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            return False, f"no server answers on {host} port {settings.port}: {error!r}"
    if reason is None:
        return False, "what answers is no reward server"
    return answer.status == 200, reason


def _connection(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if not is_tls:
        return http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    # The certificate is made out to the name that callers use, not to this machine's own.
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)


def _reason(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return None
