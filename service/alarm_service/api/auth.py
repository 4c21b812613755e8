"""Authentication: API keys and admin keys, and the check of the `Host` header."""

from __future__ import annotations

import base64
import binascii
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from alarm_models.errors import quoted
from alarm_service.api.error_handlers import error_response
from alarm_service.api_keys import Keys, read_keys
from alarm_service.engine.fair_queueing import Caller
from alarm_service.errors import Forbidden, Misdirected, ServiceError, Unauthorized
from alarm_service.preflight import is_loopback
from alarm_service.settings import Settings

__all__ = [
    "ADMIN",
    "CALLER_INDEX",
    "FREE_PATHS",
    "APIKeyMiddleware",
    "AllowedHosts",
    "AllowedHostsMiddleware",
    "allowed_hosts",
    "caller_of",
]

#: The prefix of admin routes.
ADMIN = "/admin/"

#: Paths without rate limit and trace: they are cheap, and monitoring requests them often.
FREE_PATHS = ("/health/", "/metrics")

#: Keys in a request's scope: the index of its API key, and the identity of that key if there are
#: several.
CALLER_INDEX = "alarm_caller"
_KEY = "alarm_key"


class APIKeyMiddleware:
    """Requires an API key, as a bearer token or as the password of HTTP Basic.

    Admin routes have their own keys, and are disabled without any. Health checks and
    ``open_paths`` need no key, and other routes need one only where the server has keys.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, admin_keys: Keys, open_paths: frozenset[str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._num_keys = len(keys)
        self._admin_keys = admin_keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 401 or 403."""
        if scope["type"] == "http" and not scope["path"].startswith("/health/"):
            try:
                if scope["path"].startswith(ADMIN):
                    self._require_admin_key(scope)
                elif self._num_keys and scope["path"] not in self._open_paths:
                    index = scope[CALLER_INDEX] = _find_key(scope, self._keys, "the server's key")
                    if self._num_keys > 1:
                        scope[_KEY] = self._keys.identity(index)
            except ServiceError as error:
                await _refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _require_admin_key(self, scope: Scope) -> None:
        if not len(self._admin_keys):
            raise Forbidden(
                "the admin routes are disabled: give the server a key for them (--admin-key-file "
                "FILE, or ALARM_ADMIN_KEY)"
            )
        _find_key(scope, self._admin_keys, "an admin key")


def caller_of(scope: Scope) -> Caller:
    """Return the caller of a request: its key, if there are several, and its connection."""
    host, port = scope.get("client") or ("", "")
    return Caller(scope.get(_KEY, ""), f"{host}:{port}")


def _find_key(scope: Scope, keys: Keys, expected: str) -> int:
    """Return the index of a request's key; raise `Unauthorized`."""
    key = _key_of(Headers(scope=scope).get("authorization", ""))
    index = None if key is None else keys.find(key)
    if index is None:
        raise Unauthorized(
            f"send {expected}: `Authorization: Bearer KEY`, or as the password of Basic"
        )
    return index


def _key_of(authorization: str) -> bytes | None:
    scheme, _, given = authorization.partition(" ")
    key = given.strip().encode("latin-1")  # the header's own bytes
    if scheme.lower() == "bearer":
        return key
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(key, validate=True).partition(b":")[2]
    except binascii.Error:
        return None


def _refusal(error: ServiceError) -> Response:
    response = error_response(error)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def allowed_hosts(settings: Settings) -> AllowedHosts | None:
    """Return the allowed `Host` values, or None if any is allowed.

    A server on loopback needs no key, so a web page could use it through a browser on this machine,
    under a name that resolves to this machine (DNS rebinding). `Host` is then the page's name. Such
    a page has no API key, so servers with keys accept any name, as set by proxies.
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
    """The host names of a server, without ports; loopback addresses are always allowed.

    ``any_address`` allows every IP address: a container is reached by its own address, and DNS
    rebinding requires a name.
    """

    def __init__(self, names: frozenset[str], *, any_address: bool) -> None:
        self._names = names
        self._any_address = any_address

    def __contains__(self, host: str) -> bool:
        """Return whether a request's `Host` is allowed."""
        name = _plain(_without_port(host))
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


class AllowedHostsMiddleware:
    """Answers 421 to requests whose `Host` is not allowed; those without `Host` are served."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 421."""
        if scope["type"] == "http":
            for host in Headers(scope=scope).getlist("host"):
                if host and host not in self._hosts:
                    error = Misdirected(
                        f"this server does not serve the host {quoted(host)}: "
                        "without a key it serves localhost only; name the host with "
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
