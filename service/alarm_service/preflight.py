"""Preflight checks, before torch is imported: exposure, certificate, capture, Ray, the port."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import tempfile
from importlib.util import find_spec

from alarm_service.api_keys import read_admin_keys, read_keys
from alarm_service.settings import Settings, SettingsError, flag_of

__all__ = [
    "is_loopback",
    "listen",
    "require_safe_exposure",
    "require_usable_capture",
    "require_usable_certificate",
    "require_usable_ray",
    "url_of",
]

#: The settings that have no effect without a cluster.
_OF_RAY = (
    "ray_address",
    "replicas",
    "max_replicas",
    "queued_tokens_per_replica",
    "gpus_per_replica",
    "cpus_per_replica",
)


def require_usable_ray(settings: Settings) -> None:
    """Raise `SettingsError` for Ray options without --ray, or --ray without Ray."""
    given = [name for name in _OF_RAY if name in settings.model_fields_set]
    if not settings.ray:
        if given:
            flags = ", ".join(map(flag_of, given))
            raise SettingsError(
                f"{flags} needs --ray; without it, --device cuda:0,cuda:1 has a replica on each GPU"
            )
        return
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise SettingsError("--ray needs Ray Serve: pip install 'alarm-service[ray]'")
    if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
        raise SettingsError(
            f"--max-replicas {settings.max_replicas} is less than --replicas {settings.replicas}"
        )


_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; raise `OSError` that says what to do if it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise OSError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {option}"
        ) from error


def url_of(listener: socket.socket, *, is_tls: bool = False) -> str:
    """Return the URL that reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http{'s' if is_tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether an address is reachable from this machine only; unknown names count as not."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def require_safe_exposure(settings: Settings) -> None:
    """Raise `SettingsError` if other machines could use the server without a key."""
    read_admin_keys(settings)  # wrong ones are refused before anything is served
    address = settings.published or settings.host
    if settings.insecure or is_loopback(address) or len(read_keys(settings)):
        return
    raise SettingsError(
        f"listening on {address} lets every machine that reaches it use this server: give a key "
        "(--api-key-file FILE, or ALARM_API_KEY), listen on 127.0.0.1, or set --insecure "
        "(a container that is published to its host alone: --published 127.0.0.1)"
    )


def require_usable_certificate(settings: Settings) -> None:
    """Raise `SettingsError` unless the certificate and its key are a pair, or neither is given."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise SettingsError("--tls-certificate and --tls-key go together: give both")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one
        raise SettingsError(
            f"--tls-certificate {certificate} and --tls-key {key} cannot be used: {error}; both "
            "must be PEM files, the key without a password and of this certificate"
        ) from error


def require_usable_capture(settings: Settings) -> None:
    """Make the capture's folder; raise `SettingsError` if no file can be written to it."""
    folder = settings.capture
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"--capture {folder} cannot be written: {error.strerror}; name another folder"
        ) from error
