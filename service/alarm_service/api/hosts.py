"""The host names that a server without keys answers to."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from alarm_models.errors import quoted
from alarm_service.api.error_handlers import error_response
from alarm_service.api_keys import read_keys
from alarm_service.errors import Misdirected
from alarm_service.preflight import is_loopback
from alarm_service.settings import Settings

__all__ = ["AllowedHosts", "RequireHost", "allowed_hosts"]


def allowed_hosts(settings: Settings) -> AllowedHosts | None:
    """Return the hosts that requests may name, or None where they may name any.

    A server that only this machine reaches needs no key, so any web page could use it through a
    browser here, by a name that is made to resolve to this machine (DNS rebinding). The page's own
    name then stands in `Host`. A key is what such a page has not, so servers with keys answer to
    every name that a proxy may give them.
    """
    is_local = is_loopback(settings.published or settings.host)
    if len(read_keys(settings)) or not is_local or "*" in settings.allowed_host:
        return None
    names = {"localhost", settings.host, *([settings.published] if settings.published else [])}
    return AllowedHosts(
        frozenset(_plain(name) for name in (*names, *settings.allowed_host)),
        any_address=not is_loopback(settings.host),
    )


class AllowedHosts:
    """The names of a server, each without a port; loopback addresses are always among them.

    ``any_address`` takes every IP address: a container is reached by its own, and no page can have
    an address for its name without being at it.
    """

    def __init__(self, names: frozenset[str], *, any_address: bool) -> None:
        self._names = names
        self._any_address = any_address

    def __contains__(self, host: str) -> bool:
        """Say whether a request's `Host` is one of these."""
        name = _plain(_without_port(host))
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


class RequireHost:
    """Answers 421 to a request that names a foreign host; one that names none is let in."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 421."""
        if scope["type"] == "http":
            for host in Headers(scope=scope).getlist("host"):
                if host and host not in self._hosts:
                    error = Misdirected(
                        f"this server does not answer for the host {quoted(host)}: "
                        "without a key it answers for localhost alone; name the host with "
                        "--allowed-host (ALARM_ALLOWED_HOST), or give the server a key"
                    )
                    await error_response(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    is_whole = not host.startswith("[") or name.endswith("]")  # else an address's own last part
    return name if colon and port.isdigit() and is_whole else host


def _plain(name: str) -> str:
    return name.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")
