"""A request and its reply in httpx's terms: headers, timeouts, errors, and what arrived whole."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from alarm_client.actions import Reply, Send
from alarm_client.address import Address
from alarm_client.digests import content_digest, has_lost_a_digest, is_answer_to, is_intact
from alarm_client.errors import AlarmConnectionError, AlarmError, DeadlineExceeded
from alarm_client.proxies import proxy_of
from alarm_client.tracing import trace_headers
from alarm_client.version import __version__


@contextmanager
def own_errors(address: Address, action: Send) -> Iterator[None]:
    """Raise what making a connection, sending and receiving may raise as this package's errors.

    None of them shows a header, as one holds the key: where httpx quotes what it was given, its own
    error is left out of the chain as well.
    """
    url = address.url
    where = f"{url}{action.path.partition('?')[0]}"
    told = f" (request {action.request_id})" if action.request_id else ""

    def broken(reason: str, *, retryable: bool = True) -> AlarmError:
        return AlarmConnectionError(
            f"{where}: {reason}", retryable=retryable, request_id=action.request_id
        )

    def late(reason: str) -> AlarmError:
        return DeadlineExceeded(
            f"{where}: {reason}{told}", retryable=True, request_id=action.request_id
        )

    try:
        yield
    except httpx.ConnectTimeout as error:
        seconds = f"{action.connect_timeout:.3g} s"
        raise broken(
            f"no connection within {seconds}{_through(address)}; is the host right?"
        ) from error
    except httpx.PoolTimeout as error:
        raise late("every connection of this client was in use until the time was over") from error
    except (httpx.TimeoutException, asyncio.TimeoutError) as error:  # noqa: UP041 (Python 3.10)
        if _is_gone(error):
            raise broken("the machine at the other end says nothing any more") from error
        raise late(f"no answer within the {action.timeout:g} s that were left") from error
    except httpx.ConnectError as error:
        if _is_untrusted(error):
            raise broken(
                f"its certificate is not trusted ({error}); SSL_CERT_FILE may name the one of "
                "its authority",
                retryable=False,
            ) from error
        is_of_tls = any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
        question = "does it speak TLS" if is_of_tls else "is `alarm serve` running"
        raise broken(
            f"cannot connect{_through(address)} ({error}); {question} at {url}?"
        ) from error
    except (httpx.LocalProtocolError, UnicodeError):
        raise broken(
            "the request cannot be sent, as a header or the URL holds what HTTP does not allow",
            retryable=False,
        ) from None
    except httpx.RequestError as error:
        raise broken(
            f"the connection broke ({type(error).__name__}: {error}){told}",
            retryable=not isinstance(error, httpx.UnsupportedProtocol),
        ) from error
    except OSError as error:  # such as of TLS within asyncio, which httpx passes on
        raise broken(f"the connection broke ({type(error).__name__}: {error}){told}") from error
    except RuntimeError as error:  # another thread has closed the client: the next try opens anew
        if "closed" not in str(error):
            raise
        raise broken(f"the connection was closed ({error}){told}") from error
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        reason = f"the request cannot be sent ({type(error).__name__}: {error})"
        raise broken(reason, retryable=False) from error


@contextmanager
def opening_errors(url: str) -> Iterator[None]:
    """Raise what keeps a client from being made as AlarmConnectionError: no try could do better."""
    try:
        yield
    except ImportError as error:
        raise AlarmConnectionError(
            f"{url}: the environment's proxy (ALL_PROXY or HTTP_PROXY) is one of SOCKS, which "
            "needs `pip install 'httpx[socks]'`; or add the server's host to NO_PROXY"
        ) from error
    except OSError as error:
        raise AlarmConnectionError(
            f"{url}: the certificates to trust cannot be read ({error}); see SSL_CERT_FILE and "
            "SSL_CERT_DIR"
        ) from error
    except httpx.InvalidURL:  # quotes a proxy's URL, which may hold a password
        raise AlarmConnectionError(
            f"{url}: the environment's proxy (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is no URL; "
            "correct it, or add the server's host to NO_PROXY"
        ) from None
    except ValueError as error:
        raise AlarmConnectionError(f"{url}: {error}") from error


def _through(address: Address) -> str:
    proxy = proxy_of(address)
    if proxy is None:
        return ""
    return f" through the environment's proxy {proxy.partition('://')[2].rpartition('@')[2][:200]}"


def _is_gone(error: BaseException | None) -> bool:
    """Whether a timeout is the kernel's, whose peer did not answer it, and not our own."""
    return any(
        isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT for cause in _causes(error)
    )


def _is_untrusted(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def headers_of(address: Address, action: Send) -> list[tuple[bytes, bytes]]:
    """The request's headers: its own, and in their absence those of every request."""
    headers = {
        "User-Agent": f"alarm-client/{__version__}",
        "X-Request-Timeout-Ms": str(max(1, int(action.timeout * 1000))),
        **trace_headers(),
    }
    if action.request_id is not None:
        headers["X-Request-Id"] = action.request_id
    if action.body is not None:
        headers["Content-Type"] = "application/json"
        headers["Content-Digest"] = content_digest(action.body)
    if address.authorization is not None:
        headers["Authorization"] = address.authorization
    given = action.headers or {}
    replaced = {name.lower() for name in given}
    kept = {name: value for name, value in headers.items() if name.lower() not in replaced}
    # Latin-1, as a relay has read them: a byte is a character.
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in {**kept, **given}.items()
    ]


def timeout_of(action: Send) -> httpx.Timeout:
    """What httpx may take for each step."""
    return httpx.Timeout(action.timeout, connect=min(action.connect_timeout, action.timeout))


def reply_of(response: httpx.Response, body: bytes, action: Send) -> Reply:
    """The response as a reply; httpx.ReadError unless it came as it was sent, to what was asked."""
    response.headers.encoding = "latin-1"
    headers = {name.lower(): value for name, value in response.headers.items()}
    asked = action.body
    if not is_intact(body, headers):
        raise httpx.ReadError("the answer does not fit its Content-Digest")
    if asked is not None and not is_answer_to(asked, headers):
        raise httpx.ReadError("the answer is not to the body that was sent")
    if asked is not None and response.is_success and has_lost_a_digest(headers):
        raise httpx.ReadError("the answer lacks one of its digests; is its server older?")
    request_id = headers.get("x-request-id") or action.request_id
    return Reply(response.status_code, headers, body, request_id)
