"""The server's page and /docs: files, policy and keys; nothing comes from another host."""

import re
from importlib.resources import files
from pathlib import Path

from served import serving

from alarm_service.api.page_routes import PAGE_PATHS

PAGE = Path(str(files("alarm_service"))) / "page"
KEY = "sesame"
DOCS_PATHS = ["/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/docs.js"]


async def test_page_is_served_with_a_strict_policy() -> None:
    async with serving() as server:
        for path in sorted(PAGE_PATHS):
            answer = await server.client.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await server.client.get("/")).headers["content-type"] == "text/html; charset=utf-8"


async def test_page_head_has_no_body() -> None:
    async with serving() as server:
        answer = await server.client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_page_links_only_to_files_that_are_served() -> None:
    page = (PAGE / "index.html").read_text("utf-8")
    linked = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page))
    imported = {
        f"page/{name}"
        for file in PAGE.glob("*.js")
        for name in re.findall(r'from "\./([\w.]+)"', file.read_text("utf-8"))
    }
    assert {f"/{name}" for name in linked | imported} <= PAGE_PATHS


def test_page_has_no_inline_script_and_no_other_host() -> None:
    for file in PAGE.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//[^\n]*", "", text), file.name
        if file.suffix == ".html":
            assert re.findall(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=", text) == []


async def test_page_with_keys_is_served_without_one_and_its_calls_are_not() -> None:
    async with serving(api_key=KEY) as server:
        for path in sorted(PAGE_PATHS):
            assert (await server.client.get(path)).status_code == 200
        for path in ("/models", "/page", "/page/", "/page/../models", "/docs", "/openapi.json"):
            assert (await server.client.get(path)).status_code == 401
        post = await server.client.post("/hierarchical_reward", json={"samples": []})
        assert post.status_code == 401


async def test_page_of_a_foreign_host_is_refused() -> None:
    async with serving() as server:
        answer = await server.client.get("/", headers={"Host": "evil.example"})
    assert answer.status_code == 421


async def test_page_unknown_file_is_404() -> None:
    async with serving() as server:
        for path in ("/page/index.html", "/page/%2e%2e%2fsettings.py", "/docs/consts.py"):
            assert (await server.client.get(path)).status_code == 404


async def test_no_page_serves_docs_alone() -> None:
    async with serving(no_page=True) as server:
        for path in sorted(PAGE_PATHS):
            assert (await server.client.get(path)).status_code == 404
        assert (await server.client.get("/docs")).status_code == 200
    async with serving(no_page=True, api_key=KEY) as server:
        assert (await server.client.get("/")).status_code == 401


async def test_docs_are_served_without_another_host() -> None:
    async with serving() as server:
        for path in DOCS_PATHS:
            answer = await server.client.get(path)
            assert answer.status_code == 200
            assert "script-src 'self';" in answer.headers["content-security-policy"]
        page = (await server.client.get("/docs")).text
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) <= {*DOCS_PATHS, *PAGE_PATHS}
