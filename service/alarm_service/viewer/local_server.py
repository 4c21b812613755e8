"""`alarm view` without `--out`: a server of the page on this machine."""

from __future__ import annotations

import secrets
import socket
import sys
import webbrowser
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from alarm_service.json_lines import FileError
from alarm_service.viewer.bundle import bundled, json_text
from alarm_service.viewer.index import RewardIndex

__all__ = ["serve_view", "view_app"]

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: Samples returned at once.
_MAX_DETAILS = 500
_MAX_DETAILS_CHARS = 16 << 20


def view_app(index: RewardIndex, token: str) -> Starlette:
    """Return the page and its data below ``/TOKEN/``, which only the printed address has."""
    page = bundled("view.html", {}, connects=True).encode()
    overview = json_text(index.overview()).encode()

    def get_page(_: Request) -> Response:
        return Response(page, headers=_HEADERS, media_type="text/html")

    def get_overview(_: Request) -> Response:
        return Response(overview, headers=_HEADERS, media_type="application/json")

    def get_samples(request: Request) -> Response:
        try:
            wanted = [int(one) for one in request.query_params.get("at", "").split(",")]
        except ValueError:
            return Response("`at` must be numbers of samples", 422, _HEADERS)
        known = [at for at in wanted[:_MAX_DETAILS] if 0 <= at < len(index)]
        return Response(_details(index, known), headers=_HEADERS, media_type="application/json")

    def get_found(request: Request) -> Response:
        return _json(index.search(request.query_params.get("text", "")))

    routes = [
        Route("/", get_page),
        Route("/overview", get_overview),
        Route("/samples", get_samples),
        Route("/search", get_found),
    ]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)])


def _details(index: RewardIndex, wanted: Sequence[int]) -> str:
    """Return samples as a JSON array; those beyond a size only say that they are left out."""
    found: list[str] = []
    size = 0
    for at in wanted:
        if size < _MAX_DETAILS_CHARS:
            found.append(index.details(at))
        else:
            why = "This group is too large to be shown beside each other."
            found.append(json_text({"at": at, "unusable": why}))
        size += len(found[-1])
    return f"[{','.join(found)}]"


def serve_view(index: RewardIndex, host: str, port: int, *, opens_browser: bool) -> None:
    """Serve until interrupted; raise `FileError` where the port cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise FileError(f"port {port} of {host} cannot be used ({error}): set --port") from error
    token = secrets.token_urlsafe(16)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/{token}/"
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        sys.stderr.write("Press Ctrl+C to stop.\n")
        if opens_browser:
            _open_browser(address)
        config = uvicorn.Config(view_app(index, token), log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _open_browser(address: str) -> None:
    """Open a graphical browser; one in the terminal would hide the address."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:
        browser.open(address)


def _json(value: object) -> Response:
    return Response(json_text(value), headers=_HEADERS, media_type="application/json")
