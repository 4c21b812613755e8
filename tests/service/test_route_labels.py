"""Route labels of metrics and logs."""

import re

import httpx
import pytest
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from served import app_of, serving
from standin import Words, recipe

from alarm_service.api.app import API_ROUTES
from alarm_service.api.middleware import route_label


def labels_in(metrics: str) -> set[str]:
    return set(re.findall(r'alarm_requests_total\{route="([^"]*)"', metrics))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/score", "/score"),
        ("/v1/score/evaluation", "/v1/score/evaluation"),
        ("/compat/slime/{name:path}", "/compat/slime/{name}"),
        ("/compat/vllm/{name:path}/classify", "/compat/vllm/{name}"),
        ("/things/{one}/{other}", "/things/{one}"),
    ],
)
def test_route_label_of_a_path_ends_at_its_first_parameter(path: str, label: str) -> None:
    assert route_label(path) == label


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.path)
async def test_route_labels_are_distinct(route: APIRoute) -> None:
    path = re.sub(r"\{[^}]*\}", "plain", route.path)
    async with serving() as server:
        (method, *_) = route.methods
        await server.client.request(method, path)
        labels = labels_in(generate_latest(server.engine.metrics.registry).decode())
    assert labels == {route_label(route.path)}
    assert "plain" not in labels.pop()


def test_route_labels_of_dashboards_and_alerts_exist() -> None:
    assert {route_label(route.path) for route in API_ROUTES} >= {
        "/score", "/hierarchical_reward", "/models", "/metrics", "/health/live", "/health/ready",
        "/admin/recipes", "/admin/load", "/admin/unload", "/admin/reload", "/get_reward",
        "/v1/score/evaluation", "/classify", "/v1/classify", "/pooling", "/v1/embeddings",
        "/compat/openrlhf/{name}", "/compat/slime/{name}", "/compat/miles/{name}",
        "/compat/llamafactory/{name}", "/compat/align-anything/{name}", "/compat/easyr1/{name}",
        "/compat/nemo-gym/{name}", "/compat/vllm/{name}", "/compat/sglang/{name}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "status", "label"),
    [
        ("POST", "/score", 401, "/score"),  # refused before it is routed
        ("POST", "/compat/slime/plain", 401, "/compat/slime/{name}"),
        ("GET", "/nowhere", 401, "other"),
        ("HEAD", "/health/live", 200, "/health/live"),
        ("POST", "/health/live", 405, "/health/live"),
        ("GET", "/health/live/", 200, "/health/live"),
    ],
)
async def test_refused_request_keeps_its_route_s_label(
    method: str, path: str, status: int, label: str
) -> None:
    app = app_of([recipe()], {"words": Words()}, api_key="k")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.request(method, path)
    counted = app.state.engine.metrics.registry.get_sample_value(
        "alarm_requests_total", {"route": label, "status": str(status)}
    )
    assert counted == 1
