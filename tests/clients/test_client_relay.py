"""The relay between a trainer that does not retry and a server that comes and goes, on sockets."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from processes import free_port

from alarm_client._transport import Connections, content_digest
from alarm_client.client import AlarmClient
from alarm_client.contrib.relay import Relay
from alarm_client.types import Sample

BODY = {"messages": ["a", "b"]}


class Server(ThreadingHTTPServer):
    """Answers `{"scores": [1, 2]}`, after what `script` holds: a status, or "cut" within a body."""

    daemon_threads = True

    def __init__(self, *script: int | str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = list(script)
        self.request_id = "seven"
        self.asked: list[tuple[str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_HEAD(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else 200
        data = json.dumps({"scores": [1, 2]} if step in (200, "cut") else {"error": step}).encode()
        self.send_response(step if isinstance(step, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Request-Id", self.server.request_id)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:5] if step == "cut" else data)
        self.close_connection = step == "cut"

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[Any]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def relayed(port: int, timeout: float = 30.0) -> Iterator[str]:
    with running(Relay(f"http://127.0.0.1:{port}", "127.0.0.1", 0, timeout)) as relay:
        yield f"http://127.0.0.1:{relay.server_port}"


@contextlib.contextmanager
def relayed_to(*ports: int) -> Iterator[str]:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with running(Relay(urls, "127.0.0.1", 0, 30.0)) as relay:
        assert relay.target == ",".join(urls)
        yield f"http://127.0.0.1:{relay.server_port}"


def test_relay_of_several_servers_takes_turns_and_goes_on_without_one() -> None:
    with running(Server()) as first, running(Server()) as second:
        with relayed_to(first.server_port, second.server_port) as url:
            for _ in range(4):
                assert httpx.post(f"{url}/score", json=BODY).status_code == 200
            assert (len(first.asked), len(second.asked)) == (2, 2)
            for _ in range(2):
                httpx.post(f"{url}/score", json=BODY | {"group_size": 2})
            assert (len(first.asked), len(second.asked)) == (4, 2)
            assert httpx.post(f"{url}/admin/reload").json()["error"]["code"] == "bad_request"
        with relayed_to(free_port(), second.server_port) as url:
            assert [httpx.post(f"{url}/score", json=BODY).status_code for _ in "ab"] == [200, 200]
            assert httpx.get(f"{url}/health/ready").status_code == 200
    assert len(second.asked) == 5
    assert len(first.asked) == 4


def test_relay_forwards_request_and_response_unchanged() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        answer = httpx.post(
            f"{url}/compat/llamafactory/mini?template=x", json=BODY, auth=("any", "sesame")
        )
    assert (answer.status_code, answer.json()) == (200, {"scores": [1, 2]})
    assert answer.headers["X-Request-Id"] == "seven"
    [(path, headers, body)] = server.asked
    assert path == "/compat/llamafactory/mini?template=x"
    assert headers["Authorization"].startswith("Basic ")
    assert json.loads(body) == BODY


@pytest.mark.parametrize("trouble", [429, 503, "cut"])
def test_relay_retries_temporary_failures(trouble: int | str) -> None:
    with running(Server(trouble, trouble)) as server, relayed(server.server_port) as url:
        answer = httpx.post(f"{url}/get_reward", json=BODY, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"scores": [1, 2]})
    assert [json.loads(body) for _, _, body in server.asked] == [BODY] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_relay_returns_final_errors_without_retry(status: int) -> None:
    with running(Server(status)) as server, relayed(server.server_port) as url:
        answer = httpx.post(f"{url}/score", json=BODY)
    assert (answer.status_code, answer.json()) == (status, {"error": status})
    assert len(server.asked) == 1


def test_relay_retries_until_the_server_is_up(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with relayed(port) as url:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/score", json=BODY, timeout=30))

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        while not caplog.records:  # until one of them was refused
            time.sleep(0.01)
        with running(Server(port=port)):
            for caller in callers:
                caller.join()
    assert [answer.json() for answer in answers] == [{"scores": [1, 2]}] * 4
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert "cannot connect" in told[0]
    assert "is available again" in told[1]


def test_relay_without_server_until_the_timeout_answers_an_error() -> None:
    with relayed(free_port(), timeout=0.3) as url:
        answer = httpx.post(f"{url}/score", json=BODY, timeout=30)
        shorter = httpx.post(
            f"{url}/score", json=BODY, timeout=30, headers={"X-Request-Timeout-Ms": "1"}
        )
    for one in (answer, shorter):
        error = one.json()["error"]
        assert (one.status_code, error["code"], error["retryable"]) == (
            504,
            "deadline_passed",
            True,
        )
    assert "cannot connect" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/health/live"), ("POST", "/admin/recipes")])
def test_relay_forwards_other_routes_once(method: str, path: str) -> None:
    with relayed(free_port()) as url:
        answer = httpx.request(method, f"{url}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "unavailable")
    with running(Server(503)) as server, relayed(server.server_port) as url:
        assert httpx.request(method, f"{url}{path}").status_code == 503


def test_relay_stops_retrying_when_the_caller_disconnects() -> None:
    port = free_port()
    with relayed(port) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/score", json=BODY, timeout=0.2)
        with running(Server(port=port)) as server:
            still = httpx.post(f"{url}/score", json=[1])
            time.sleep(1.0)
    assert still.status_code == 200
    assert [json.loads(body) for _, _, body in server.asked] == [[1]]


def test_relay_body_that_differs_from_its_digest_is_refused() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        digest = {"Content-Digest": content_digest(b"another")}
        answer = httpx.post(f"{url}/score", content=b"{}", headers=digest)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "garbled")
    assert server.asked == []


def test_relay_internal_failure_answers_500(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(Connections, "send", fail)
    with relayed(free_port()) as url:
        answer = httpx.post(f"{url}/score", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")


def test_relay_incomplete_body_is_not_forwarded() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as caller:
            caller.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 9\r\n\r\n[1]")
            caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
    assert server.asked == []


def test_relay_chunked_body_is_refused() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{}"

    with relayed(free_port()) as url:
        answer = httpx.post(f"{url}/score", content=pieces())
    assert answer.status_code == 411


def test_relay_serves_alarm_client(rewards: Any) -> None:
    port = int(rewards.url.rpartition(":")[2])
    with relayed(port) as url, AlarmClient(url) as client:
        assert client.hierarchical_reward([Sample(prompt="p", completion="four")]).scalars() == [4]


def exchanged(url: str, request: bytes) -> tuple[int, bytes]:
    """The status and the rest of what answers raw bytes, sent on a connection of their own."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as caller:
        first, _, rest = request.partition(b"\r\n")
        caller.sendall(first + b"\r\nConnection: close\r\n" + rest)
        answer = b"".join(iter(lambda: caller.recv(65536), b""))
    status, _, rest = answer.removeprefix(b"HTTP/1.1 ").partition(b" ")
    return int(status), rest


@pytest.mark.parametrize("value", ["größe".encode(), "größe".encode("latin-1"), b"\xff\x80 \xe2"])
def test_relay_forwards_non_ascii_headers_unchanged(value: bytes) -> None:
    asked = b"POST /score HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nContent-Length: 2\r\n\r\n{}"
    with running(Server()) as server, relayed(server.server_port) as url:
        server.request_id = value.decode("latin-1")
        status, answer = exchanged(url, asked % value)
    assert status == 200
    [(_, headers, _)] = server.asked
    assert headers["X-Request-Id"].encode("latin-1") == value
    assert b"x-request-id: " + value + b"\r\n" in answer


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://anywhere:9/score?a=b", "/score?a=b"),
        ("https://anywhere", "/"),
        ("/sc%2Fore?x=a%20b&y=1+2", "/sc%2Fore?x=a%20b&y=1+2"),
        ("/größe?x=€", "/gr%C3%B6%C3%9Fe?x=%E2%82%AC"),
        ("/score?q='[]|", "/score?q='%5B%5D%7C"),
    ],
)
def test_relay_forwards_every_form_of_request_target(target: str, path: str) -> None:
    asked = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    with running(Server()) as server, relayed(server.server_port) as url:
        status, _ = exchanged(url, asked)
    assert status == 200
    assert [path for path, _, _ in server.asked] == [path]


@pytest.mark.parametrize(
    "lines",
    [
        "POST /score HTTP/1.1\r\nContent-Length: ²\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: ٢\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: 2_0\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length:\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: " + "9" * 5000 + "\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\n{}",
        "POST score HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "POST ftp://x/score HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "POST http://[x/score HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nX-Request-Id: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        "POST /score HTTP/1.1\r\nX-Request-Id: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_relay_malformed_request_answers_400(lines: str) -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        status, answer = exchanged(url, lines.encode())
    assert (status, server.asked) == (400, [])
    assert b'"code": "bad_request"' in answer


@pytest.mark.parametrize("milliseconds", ["²", "9" * 400, "soon", "-1"])
def test_relay_invalid_timeout_header_uses_its_own_timeout(milliseconds: str) -> None:
    headers = f"X-Request-Timeout-Ms: {milliseconds}\r\nContent-Length: 2\r\n\r\n{{}}"
    with running(Server(503)) as server, relayed(server.server_port) as url:
        status, _ = exchanged(url, f"POST /score HTTP/1.1\r\n{headers}".encode())
    assert (status, len(server.asked)) == (200, 2)


def test_relay_false_content_length_reserves_no_memory() -> None:
    asked = b"POST /score HTTP/1.1\r\nContent-Length: 999999999999999\r\n\r\n{}"
    with relayed(free_port()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as caller:
            caller.sendall(asked)
            caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
        assert httpx.get(f"{url}/health/live").status_code == 502


def test_relay_head_request_gets_no_body() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        answer = httpx.head(f"{url}/health/live")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == "18"


def run(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alarm_client.relay", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_relay_command_ends_on_sigterm() -> None:
    with (
        running(Server()) as server,
        run(f"http://127.0.0.1:{server.server_port}", "--port", "0") as process,
    ):
        assert process.stderr is not None
        url = process.stderr.readline().split()[1]
        assert httpx.post(f"{url}/score", json=BODY).json() == {"scores": [1, 2]}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_relay_command_logs_outages_to_stderr() -> None:
    with run(f"http://127.0.0.1:{free_port()}", "--port", "0", "--timeout", "0.3") as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[1]
        assert httpx.post(f"{url}/score", json=BODY).status_code == 504
        told = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert told.startswith("relay: http://127.0.0.1:")
    assert "cannot connect" in told


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:8000", "must look like http"),
        ("http://any:sesame@127.0.0.1:8000", "put the key into the URL that the trainer uses"),
    ],
)
def test_relay_command_with_invalid_url_exits_1(url: str, reason: str) -> None:
    with run(url, "--port", "0") as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert reason in told
    assert "sesame" not in told


def test_relay_command_with_taken_port_exits_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with run("http://127.0.0.1:8000", "--port", port) as process:
            _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "in use" in told
