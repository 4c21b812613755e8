"""A small HTTP server with LanguageTool's `/v2/check`, which reports repeated words.

Like LanguageTool, it takes a form and counts offsets in UTF-16 units, as Java does.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

RULE = "ENGLISH_WORD_REPEAT_RULE"


class LanguageToolServer(ThreadingHTTPServer):
    """Records the forms it receives; a text with "overload" gets a 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.forms: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LanguageToolServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v2/languages":
            known = {"name": "English", "code": "en", "longCode": "en-GB"}
            self._answer(200, json.dumps([known]).encode())
        else:
            self._answer(404, b"Error")

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        form = {name: one[0] for name, one in parse_qs(self.rfile.read(length).decode()).items()}
        self.server.forms.append(form)
        text = form.get("text", "")
        if self.path != "/v2/check" or "language" not in form:
            self._answer(400, b"Error: Missing 'language' parameter")
        elif "overload" in text:
            self._answer(503, b"Error: overloaded")
        elif "nonsense" in text:
            self._answer(200, b"<html>")
        elif "slow" in text:
            found = {"matches": [], "warnings": {"incompleteResults": True}}
            self._answer(200, json.dumps(found).encode())
        else:
            self._answer(200, json.dumps({"matches": _matches(text)}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def _matches(text: str) -> list[dict[str, object]]:
    return [
        {
            "message": "Possible typo: you repeated a word",
            "offset": _utf16(text[: found.start()]),
            "length": _utf16(found.group()),
            "rule": {"id": RULE, "category": {"id": "MISC"}},
        }
        for found in re.finditer(r"\b(\w+) \1\b", text)
    ]


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@contextmanager
def languagetool() -> Iterator[LanguageToolServer]:
    """Run the server on a free port."""
    server = LanguageToolServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
