"""Requests made from our own OpenAPI document, over TCP, against stand-in models."""

import copy
from collections.abc import Iterator, Mapping
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
    ("post", "/compat/eval-protocol/{name}"),
    ("post", "/compat/eval-protocol/{name}/evaluate"),
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
ADMIN = {
    ("post", "/admin/load"),
    ("post", "/admin/unload"),
    ("post", "/admin/reload"),
    ("post", "/admin/sleep"),
    ("post", "/admin/wake"),
}
ROUTES = (
    TRAINERS
    | ADMIN
    | {
        ("get", "/admin/recipes"),
        ("post", "/score"),
        ("post", "/hierarchical_reward"),
        ("post", "/render"),
        ("post", "/token_offsets"),
        ("get", "/models"),
        ("get", "/metrics"),
        ("get", "/recent"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
    }
)
#: Examples of long lists take seconds to make, and find nothing that these do not.
MOST_SAMPLES = 4
MOST_ITEMS = 2
WORKING = sorted(path for method, path in ROUTES - ADMIN if method == "post")
#: Changes without a body of their own.
BARE = {"/admin/sleep", "/admin/wake"}
CHANGE = {"200", "400", "401", "403", "404", "408", "409", "413", "422", "503"}
WORK = {"200", "400", "401", "404", "408", "413", "422", "429", "503", "504"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
    with over_tcp(app_of([FIGURE_1], models, max_samples=MOST_SAMPLES)) as port:
        url = f"http://127.0.0.1:{port}"
        while httpx.get(f"{url}/health/ready").status_code != 200:
            pass
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return httpx.get(f"{url}/openapi.json").json()


@pytest.fixture(scope="module")
def schemas(url: str, document: Any) -> Mapping[GenerationMode, Any]:
    """The document as it is made requests of: with short lists."""
    return {mode: _schema(url, document, mode) for mode in GenerationMode}


def _schema(url: str, document: Any, mode: GenerationMode) -> Any:
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
    config = schemathesis.Config.from_dict({"checks": checks, "base-url": url})
    shortened = copy.deepcopy(document)
    parts = shortened["components"]["schemas"]
    for name in ("ScoreRequest", "RewardRequest"):
        parts[name]["properties"]["samples"]["maxItems"] = MOST_SAMPLES
    if mode.is_positive:  # otherwise a longer list would be a request to refuse
        for name in parts.keys() - {"ScoreRequest", "RewardRequest"}:
            if not name.endswith(("Out", "Response")):
                _shorten(parts[name])
    return schemathesis.openapi.from_dict(shortened, config=config)


def _shorten(part: Any) -> None:
    """Limit the lists in a part of a schema."""
    if isinstance(part, dict):
        if part.get("type") == "array":
            part.setdefault("maxItems", MOST_ITEMS)
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            _shorten(one)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_openapi_responses_match_the_document(
    schemas: Mapping[GenerationMode, Any], method: str, path: str, mode: GenerationMode
) -> None:
    # Invalid examples have lists of any length and take long to make: the usual run has fewer.
    count = _num_examples(method, path)
    _ask(schemas[mode][path][method], mode, count // 4 if mode.is_negative else count)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_openapi_responses_to_many_invalid_requests_match_the_document(
    schemas: Mapping[GenerationMode, Any], method: str, path: str
) -> None:
    mode = GenerationMode.NEGATIVE
    _ask(schemas[mode][path][method], mode, _num_examples(method, path))


def _num_examples(method: str, path: str) -> int:
    return 3 if method == "get" else 16 if (method, path) in TRAINERS else 60


def _ask(operation: Any, mode: GenerationMode, num_examples: int) -> None:
    """Check the responses to generated requests."""
    if mode.is_negative and (operation.method == "get" or operation.path in BARE):
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
    expected = CHANGE - {"404", "422"} if route in BARE else CHANGE
    assert set(document["paths"][route]["post"]["responses"]) == expected


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
