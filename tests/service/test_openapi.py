"""Requests made from our own OpenAPI document, over TCP, against stand-in models."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import app_of
from standin import FIGURE_1, Letters, Words
from tcp import over_tcp

TRAINERS = {
    ("post", "/get_reward"),
    ("post", "/compat/openrlhf/{name}"),
    ("post", "/compat/openrlhf/{name}/get_reward"),
    ("post", "/compat/slime/{name}"),
    ("post", "/compat/miles/{name}"),
    ("post", "/compat/easyr1/{name}"),
    ("post", "/compat/nemo-gym/{name}/verify"),
    ("post", "/v1/score/evaluation"),
    ("post", "/compat/llamafactory/{name}"),
    ("post", "/compat/align-anything/{name}"),
    ("post", "/compat/align-anything/{name}/get_reward"),
    ("post", "/classify"),
    ("post", "/v1/classify"),
    ("post", "/pooling"),
    ("post", "/v1/embeddings"),
    ("post", "/compat/vllm/{name}/classify"),
    ("post", "/compat/vllm/{name}/pooling"),
    ("post", "/compat/sglang/{name}/v1/classify"),
    ("post", "/compat/sglang/{name}/v1/embeddings"),
}
ADMIN = {("post", "/admin/load"), ("post", "/admin/unload"), ("post", "/admin/reload")}
ROUTES = (
    TRAINERS
    | ADMIN
    | {
        ("get", "/admin/recipes"),
        ("post", "/score"),
        ("post", "/hierarchical_reward"),
        ("get", "/models"),
        ("get", "/metrics"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
    }
)
WORKING = sorted(path for method, path in ROUTES - ADMIN if method == "post")
CHANGE = {"200", "400", "401", "403", "404", "408", "409", "413", "422", "503"}
WORK = {"200", "400", "401", "404", "408", "413", "422", "429", "503", "504"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
    with over_tcp(app_of([FIGURE_1], models, max_samples=8)) as port:
        url = f"http://127.0.0.1:{port}"
        while httpx.get(f"{url}/health/ready").status_code != 200:
            pass
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return httpx.get(f"{url}/openapi.json").json()


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    # 413 too is a refusal: items are counted before each has its faults noted.
    refusals = [
        "400",
        "401",
        "403",
        "404",
        "405",
        "406",
        "409",
        "413",
        "415",
        "422",
        "428",
        "429",
        "5xx",
    ]
    checks = {"negative_data_rejection": {"expected-statuses": refusals}}
    config = schemathesis.Config.from_dict({"checks": checks})
    return schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)


# Nearly all the time goes into making examples, so the usual run makes a quarter of the full count.
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_openapi_responses_match_the_document(
    schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    count = 3 if method == "get" else 4 if (method, path) in TRAINERS else 15
    _ask(schema[path][method], mode, count)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_openapi_responses_to_many_requests_match_the_document(
    schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    count = 3 if method == "get" else 15 if (method, path) in TRAINERS else 60
    _ask(schema[path][method], mode, count)


def _ask(operation: Any, mode: GenerationMode, num_examples: int) -> None:
    """Check the responses to generated requests."""
    if mode.is_negative and operation.method == "get":
        return  # nothing to get wrong

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        # A deadline of a millisecond passes, and names of aspects are the recipe's to know.
        case.headers.pop("X-Request-Timeout-Ms", None)
        if len(case.path_parameters.get("name", "")) % 2:  # half of the names are right
            case.path_parameters["name"] = "figure-1"
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    ask()


def test_openapi_has_every_route(document: Any) -> None:
    routes = {(method, path) for path, item in document["paths"].items() for method in item}
    assert routes == ROUTES


@pytest.mark.parametrize("route", WORKING)
def test_openapi_has_every_status(document: Any, route: str) -> None:
    assert set(document["paths"][route]["post"]["responses"]) == WORK


@pytest.mark.parametrize("route", sorted(path for _, path in ADMIN))
def test_openapi_has_every_status_of_admin_routes(document: Any, route: str) -> None:
    assert set(document["paths"][route]["post"]["responses"]) == CHANGE


def test_openapi_errors_have_one_schema(document: Any) -> None:
    for route in [*WORKING, *(path for _, path in ADMIN)]:
        responses = document["paths"][route]["post"]["responses"]
        for status in responses.keys() - {"200"}:
            content = responses[status]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorOut"}


def test_openapi_example_is_a_valid_sample(document: Any, url: str) -> None:
    (example,) = document["components"]["schemas"]["SampleIn"]["examples"]
    answer = httpx.post(f"{url}/hierarchical_reward", json={"samples": [example]})
    (reward,) = answer.json()["rewards"]
    assert reward["error"] is None
    assert len(reward["token_rewards"]) == len(example["token_offsets"])


@pytest.mark.parametrize("route", sorted(path for _, path in TRAINERS))
def test_openapi_example_of_each_trainer_gets_a_reward(document: Any, url: str, route: str) -> None:
    content = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]
    shape = content["schema"]["$ref"].rpartition("/")[2]
    (example,) = document["components"]["schemas"][shape]["examples"]
    is_mini = isinstance(example, dict) and example.get("model") == "mini"
    named = example | {"model": "figure-1"} if is_mini else example
    answer = httpx.post(url + route.replace("{name}", "figure-1"), json=named)
    assert answer.status_code == 200
    assert "4" in answer.text  # the words of "Jane Austen wrote it."
