"""The server's page at `/`, and `/docs`: files on disk, without any other host."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Response

from alarm_service.errors import NotFound

__all__ = ["PAGE_PATHS", "docs_router", "page_router"]

page_router = APIRouter(include_in_schema=False)
docs_router = APIRouter(include_in_schema=False)

_PAGE = files("alarm_service") / "page"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: Name in the URL -> file of the page.
_PAGE_FILES = {
    file.name: file for file in _PAGE.iterdir() if file.name.endswith((".css", ".js", ".svg"))
}

#: Exact paths that need no key, because a browser loads them before the page can ask for one.
PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in _PAGE_FILES)})

#: The scripts of Swagger UI, from the package that ships them.
_DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")

_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Swagger UI sets inline styles.
_DOCS_POLICY = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")


@page_router.get("/")
async def page() -> Response:
    """Return the page that scores samples and shows where their rewards come from."""
    return _file(_PAGE / "index.html", _POLICY)


@page_router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """Return a script or style sheet of the page."""
    return _file(_known(_PAGE_FILES, name), _POLICY)


@docs_router.get("/docs")
async def docs() -> Response:
    """Return Swagger UI for the server's OpenAPI document."""
    return _file(_PAGE / "docs.html", _DOCS_POLICY)


@docs_router.get("/docs/{name}")
async def docs_file(name: str) -> Response:
    """Return a script or style sheet of Swagger UI."""
    static = files("fastapi_offline") / "static"
    shipped = {name: static / name for name in _DOCS_FILES}
    return _file(_known({**shipped, "docs.js": _PAGE_FILES["docs.js"]}, name), _DOCS_POLICY)


def _known(known: dict[str, Traversable], name: str) -> Traversable:
    if name not in known:
        raise NotFound("no such path; see /docs")
    return known[name]


def _file(file: Traversable, policy: str) -> Response:
    media_type = _TYPES[file.name[file.name.rindex(".") :]]
    headers = {**_HEADERS, "Content-Security-Policy": policy, "Content-Type": media_type}
    return Response(file.read_bytes(), headers=headers)
