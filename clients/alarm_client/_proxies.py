"""The proxy that the environment sets for a server: `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from alarm_client._address import Address

_READABLE = ("http", "https", "socks5", "socks5h")


def proxy_of(address: Address) -> str | None:
    """The URL of the server's proxy, which may contain a password, or None for a direct connection.

    Entries of `NO_PROXY` are names (with their subdomains), IP addresses or ranges such as
    `10.0.0.0/8` and `fd00::/8`, each with a port if only that is meant, or `*`. ValueError names
    the variable whose proxy cannot be used.
    """
    if address.is_local:
        return None
    proxies = getproxies()
    scheme = urlsplit(address.url).scheme
    name = scheme if proxies.get(scheme) else "all"
    url = (proxies.get(name) or "").strip()
    if not url or is_exempt(address.host, address.port, proxies.get("no", "")):
        return None
    if proxy_bypass(address.host):  # macOS and Windows have their own proxy settings
        return None
    url = url if "://" in url else f"http://{url}"
    scheme = url.partition("://")[0].lower()
    if scheme not in _READABLE:
        raise ValueError(
            f"{name.upper()}_PROXY has the unsupported scheme {scheme[:20]!r}; supported: "
            f"{', '.join(_READABLE)}. Change it, or add {address.host} to NO_PROXY"
        )
    return url


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names this host."""
    entries = re.split(r"[,\s]+", no_proxy.strip().lower())
    return any(_is_meant(entry, host.lower().rstrip("."), port) for entry in entries if entry)


def _is_meant(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    entry, of_port = _without_port(entry)
    if of_port not in (None, port):
        return False
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:  # at least one of them is a host name
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))


def _without_port(entry: str) -> tuple[str, int | None]:
    """An entry and its port: `host:80`, `[::1]:80`, but not the end of `fd00::1`."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry)
    name, port = (found[1], int(found[2])) if found else (entry, None)
    return name.replace("[", "").replace("]", ""), port
