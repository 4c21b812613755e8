"""Who can reach the server, and what must be set before others than this machine can."""

from __future__ import annotations

import ssl

from alarm_service.settings import Settings, SettingsError
from alarm_service.web.keys import read_admin_keys, read_keys
from alarm_service.web.sockets import is_loopback

__all__ = ["require_safe_exposure", "require_usable_certificate"]


def require_safe_exposure(settings: Settings) -> None:
    """Raise `SettingsError` where other machines could use the server without a key."""
    read_admin_keys(settings)  # wrong ones are told before anything is served
    address = settings.published or settings.host
    if settings.insecure or is_loopback(address) or len(read_keys(settings)):
        return
    raise SettingsError(
        f"listening on {address} lets every machine that reaches it use this server: give a key "
        "(--api-key-file FILE, or ALARM_API_KEY), listen on 127.0.0.1, or say --insecure "
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
            f"--tls-certificate {certificate} and --tls-key {key} cannot be used: {error}"
        ) from error
