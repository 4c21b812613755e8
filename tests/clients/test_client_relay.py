"""A relay between a caller that asks once and a server that comes and goes, over real sockets."""

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

from alarm_client import AlarmClient, Sample
from alarm_client.digests import content_digest
from alarm_client.relay import Relay

BODY = {"messages": ["a", "b"]}


class Server(ThreadingHTTPServer):
    """Answers `{"scores": [1, 2]}`, after what `script` holds: a status, or "cut" within a body."""

    daemon_threads = True

    def __init__(self, *script: int | str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = list(script)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else 200
        data = json.dumps({"scores": [1, 2]} if step in (200, "cut") else {"error": step}).encode()
        self.send_response(step if isinstance(step, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Request-Id", "seven")
        self.end_headers()
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


def test_a_call_and_its_answer_pass_as_they_are() -> None:
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
def test_what_may_pass_later_is_asked_again(trouble: int | str) -> None:
    with running(Server(trouble, trouble)) as server, relayed(server.server_port) as url:
        answer = httpx.post(f"{url}/get_reward", json=BODY, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"scores": [1, 2]})
    assert [json.loads(body) for _, _, body in server.asked] == [BODY] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_a_refusal_of_the_call_itself_is_handed_back(status: int) -> None:
    with running(Server(status)) as server, relayed(server.server_port) as url:
        answer = httpx.post(f"{url}/score", json=BODY)
    assert (answer.status_code, answer.json()) == (status, {"error": status})
    assert len(server.asked) == 1


def test_a_call_waits_for_a_server_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with relayed(port) as url:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/score", json=BODY, timeout=30))

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.3)
        with running(Server(port=port)):
            for caller in callers:
                caller.join()
    assert [answer.json() for answer in answers] == [{"scores": [1, 2]}] * 4
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    assert "cannot connect" in told[0]
    assert "answers again" in told[1]


def test_a_call_that_finds_no_server_in_its_time_is_told_so() -> None:
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
def test_what_is_no_scoring_is_asked_once(method: str, path: str) -> None:
    with relayed(free_port()) as url:
        answer = httpx.request(method, f"{url}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "unavailable")
    with running(Server(503)) as server, relayed(server.server_port) as url:
        assert httpx.request(method, f"{url}{path}").status_code == 503


def test_nothing_is_asked_for_a_caller_who_has_hung_up() -> None:
    port = free_port()
    with relayed(port) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/score", json=BODY, timeout=0.2)
        with running(Server(port=port)) as server:
            still = httpx.post(f"{url}/score", json=[1])
            time.sleep(1.0)
    assert still.status_code == 200
    assert [json.loads(body) for _, _, body in server.asked] == [[1]]


def test_a_body_that_changed_on_its_way_is_not_passed_on() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        digest = {"Content-Digest": content_digest(b"another")}
        answer = httpx.post(f"{url}/score", content=b"{}", headers=digest)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "garbled")
    assert server.asked == []


def test_half_a_body_is_not_passed_on() -> None:
    with running(Server()) as server, relayed(server.server_port) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as caller:
            caller.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 9\r\n\r\n[1]")
            caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
    assert server.asked == []


def test_a_body_of_unknown_length_is_refused() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{}"

    with relayed(free_port()) as url:
        answer = httpx.post(f"{url}/score", content=pieces())
    assert answer.status_code == 411


def test_our_own_client_may_go_through_it(rewards: Any) -> None:
    port = int(rewards.url.rpartition(":")[2])
    with relayed(port) as url, AlarmClient(url) as client:
        assert client.hierarchical_reward([Sample(prompt="p", completion="four")]).scalars() == [4]


def run(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alarm_client.relay", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_it_runs_as_a_command_and_ends_on_sigterm() -> None:
    with (
        running(Server()) as server,
        run(f"http://127.0.0.1:{server.server_port}", "--port", "0") as process,
    ):
        assert process.stderr is not None
        url = process.stderr.readline().split()[1]
        assert httpx.post(f"{url}/score", json=BODY).json() == {"scores": [1, 2]}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:8000", "must look like http"),
        ("http://any:sesame@127.0.0.1:8000", "put it into the URL that the trainer is given"),
    ],
)
def test_an_address_that_it_cannot_use_is_refused(url: str, reason: str) -> None:
    with run(url, "--port", "0") as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert reason in told
    assert "sesame" not in told


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with run("http://127.0.0.1:8000", "--port", port) as process:
            _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "in use" in told
