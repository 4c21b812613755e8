import http.server
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from forking import run_forked
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer
from served import samples, serving
from standin import FIGURE_1, Letters, Words, recipe

from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_service.api.app import create_app
from alarm_service.api.middleware import TracingMiddleware
from alarm_service.observability.tracing import tracer_provider
from alarm_service.settings import Settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def named(spans: list[ReadableSpan]) -> dict[str, list[ReadableSpan]]:
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    return by_name


async def test_tracing_request_with_traceparent_has_spans_in_that_trace() -> None:
    exporter = InMemorySpanExporter()
    models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
    app = create_app(
        [FIGURE_1],
        Settings(device="cpu"),
        load=lambda wanted, _: {key: models[one.name] for key, one in wanted.items()},
        tracing=tracer_provider(SimpleSpanProcessor(exporter)),
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client,
    ):
        await app.state.engine.life.until_ready()
        assert exporter.get_finished_spans() == ()  # nobody asked for the first runs
        await client.get("/health/live")
        await client.get("/metrics")
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {"samples": samples("A w w w w", "w")}
        await client.post("/hierarchical_reward", json=body, headers=headers)
        spans = named(list(exporter.get_finished_spans()))
        exporter.clear()
        await client.post("/score", json={"samples": []})
        (alone,) = named(list(exporter.get_finished_spans()))["POST /score"]
    (request,) = spans["POST /hierarchical_reward"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes == {"http.response.status_code": "200"}
    assert {name: len(found) for name, found in spans.items()} == {
        "POST /hierarchical_reward": 1,
        "admit": 1,
        "queue": 2,
        "forward": 2,
    }
    for span in (*spans["admit"], *spans["queue"], *spans["forward"]):
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    told = [(span.attributes["alarm.model"], span.attributes["alarm.num_samples"])
            for span in spans["forward"]]  # fmt: skip
    assert told == [("words", 2), ("a", 1)]
    assert alone.parent is None


async def test_tracing_is_off_by_default() -> None:
    async with serving() as server:
        assert isinstance(server.engine.tracer, NoOpTracer)
        assert TracingMiddleware not in {one.cls for one in server.app.user_middleware}


def test_tracing_off_imports_no_opentelemetry_sdk() -> None:
    code = (
        "import sys, alarm_service.server; "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    assert run_forked(code) == (0, "[]\n", "")


class _Collector(http.server.BaseHTTPRequestHandler):
    names: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        sent = ExportTraceServiceRequest.FromString(body)
        self.names += [
            span.name
            for resource in sent.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[str]]]:
    names: list[str] = []
    handler = type("Handler", (_Collector,), {"names": names})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", names
        server.shutdown()


async def test_tracing_exports_spans_to_a_collector(collector: tuple[str, list[str]]) -> None:
    url, names = collector
    async with serving(traces=url) as server:
        assert (await server.score("a b")).status_code == 200
    assert sorted(names) == ["POST /score", "admit", "forward", "queue"]


def _echo(request: httpx.Request, seen: list[str | None]) -> httpx.Response:
    seen.append(request.headers.get("traceparent"))
    if request.url.path == "/models":
        limits = {"max_samples": 2, "max_body_bytes": 1 << 20}
        return httpx.Response(200, json={"models": [], "recipes": [], "limits": limits})
    return httpx.Response(500, json={"error": {"code": "x", "message": "x", "retryable": False}})


async def test_client_sends_traceparent_of_its_span() -> None:
    tracer = TracerProvider().get_tracer("trainer")
    seen: list[str | None] = []
    transport = httpx.MockTransport(lambda request: _echo(request, seen))
    with tracer.start_as_current_span("step") as span:
        trace = f"{span.get_span_context().trace_id:032x}"
        with AlarmClient("http://localhost", transport=transport) as client:
            client.models()
            with pytest.raises(Exception, match="500"):
                client.score(samples(*"a" * 300))  # in requests of 2, on threads of their own
        async with AsyncAlarmClient("http://localhost", transport=transport) as client:
            await client.models()
    assert len(seen) > 3
    assert all(re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-0[13]", one or "") for one in seen)


def test_client_outside_a_span_sends_no_traceparent() -> None:
    seen: list[str | None] = []
    transport = httpx.MockTransport(lambda request: _echo(request, seen))
    with AlarmClient("http://localhost", transport=transport) as client:
        client.models()
    assert seen == [None]


async def test_span_of_the_client_is_the_parent_of_the_server_s() -> None:
    exporter = InMemorySpanExporter()
    app = create_app(
        [recipe()],
        Settings(device="cpu"),
        load=lambda wanted, _: {key: Words() for key in wanted},
        tracing=tracer_provider(SimpleSpanProcessor(exporter)),
    )
    tracer = TracerProvider().get_tracer("trainer")
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncAlarmClient("http://localhost", transport=transport) as client,
    ):
        await app.state.engine.life.until_ready()
        with tracer.start_as_current_span("step") as span:
            await client.score(samples("a"))
    scores = named(list(exporter.get_finished_spans()))["POST /score"]
    assert scores
    for request in scores:
        assert request.parent is not None
        assert request.parent.span_id == span.get_span_context().span_id
