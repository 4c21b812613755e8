import asyncio
import json
import socket

from fastapi import FastAPI
from served import samples, serving, until, until_set
from tcp import over_tcp


def post(port: int, *completions: str) -> socket.socket:
    """Send a request and leave its answer unread."""
    body = json.dumps({"samples": samples(*completions)}).encode()
    head = (
        "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + body)
    return connection


async def test_cancelled_request_is_never_batched() -> None:
    async with serving() as server:
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.batches.clear()
        leaver = asyncio.create_task(server.score("a", "a", "a"))
        stayer = asyncio.create_task(server.score("a b"))
        await server.until_waiting(4)
        leaver.cancel()
        await asyncio.wait([leaver])
        server.words.release.set()
        assert (await stayer).json()["scores"][0]["score"] == 2
        await holder
        assert server.words.batches == [1]


async def test_request_past_its_deadline_is_never_batched() -> None:
    async with serving() as server:
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.batches.clear()
        late = await server.score("a", **{"X-Request-Timeout-Ms": "50"})
        assert late.status_code == 504
        assert late.json()["error"]["retryable"]
        server.words.release.set()
        await holder
        await server.score("b")
        assert server.words.batches == [1]


async def test_disconnected_client_leaves_no_queued_samples() -> None:
    async with serving() as server:
        await server.engine.life.until_ready()
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.batches.clear()
        held = server.engine.admission.num_queued
        with over_tcp(server.app, lifespan="off") as port:
            connection = post(port, "a", "a", "a")
            await server.until_waiting(3)
            connection.close()
            await until(lambda: server.engine.admission.num_queued == held)
            server.words.release.set()
            await holder
        await server.score("b")
        assert server.words.batches == [1]
        metrics = (await server.client.get("/metrics")).text
        assert 'alarm_requests_total{route="/score",status="499"} 1.0' in metrics


async def test_client_disconnected_during_body_is_counted_as_499() -> None:
    async with serving() as server:
        await server.engine.life.until_ready()
        with over_tcp(server.app, lifespan="off") as port:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(
                b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            connection.close()
            await until(lambda: "499" in _metrics(server.app))


def _metrics(app: FastAPI) -> str:
    requests = app.state.engine.metrics.registry.collect()
    return " ".join(
        sample.labels.get("status", "") for family in requests for sample in family.samples
    )
