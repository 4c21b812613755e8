from typing import Any

import pytest
from recording_server import error_of, post, recording_server
from standin import FIGURE_1, recipe

from alarm_models.combination.all_rules import sigmoid

PROMPT = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"


def body(*completions: str, **more: Any) -> dict[str, Any]:
    queries = [f"{PROMPT}{completion}<|im_end|>" for completion in completions]
    return {"query": queries, "prompts": [PROMPT] * len(queries)} | more


@pytest.mark.parametrize(
    "path",
    [
        "/get_reward",
        "/compat/openrlhf/plain",
        "/compat/openrlhf/plain/",
        "/compat/openrlhf/plain/get_reward",
        "/compat/openrlhf/words",
        "/compat/openrlhf/plain/words",
        "/compat/openrlhf/plain/words/get_reward",
    ],
)
async def test_openrlhf_lists_have_one_number_per_query(path: str) -> None:
    async with recording_server() as (server, words):
        answer = (await post(server, path, **body("a b c", "a"))).json()
        assert answer["rewards"] == [3, 1]
        assert answer["scores"] == [sigmoid(3), sigmoid(1)]
        assert all(len(values) == 2 for values in answer["extra_logs"].values())
        assert words.heard == [("Q?", "a b c"), ("Q?", "a")]


@pytest.mark.parametrize("path", ["/get_reward", "/compat/openrlhf/figure-1/get_reward"])
async def test_openrlhf_empty_batch_has_empty_lists_of_the_same_names(path: str) -> None:
    async with recording_server(FIGURE_1) as (server, _):
        empty = (await post(server, path, query=[], prompts=[], labels=[])).json()
        full = (await post(server, path, **body("a"))).json()
        assert empty["rewards"] == empty["scores"] == []
        assert empty["extra_logs"] == {name: [] for name in full["extra_logs"]}


async def test_openrlhf_extra_logs_0_omits_logs() -> None:
    async with recording_server() as (server, _):
        answer = await post(server, "/get_reward?extra_logs=0", **body("a"))
        assert set(answer.json()) == {"rewards", "scores"}


async def test_openrlhf_logs_are_the_parts_of_the_reward() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        answer = await post(server, "/get_reward", **body("AB B C AAC b c x", "Ax Bx Cx"))
        logs = answer.json()["extra_logs"]
        assert logs["a"] == [1 + 2, 0]
        assert [round(value, 2) for value in logs["b"]] == [0.73 + 0.73 + 0.27, 0]
        assert logs["holistic"] == logs["holistic_score"] == [7, 3]
        assert logs["admitted"] == [1, 0]
        assert logs["truncated_samples"] == [0, 0]


@pytest.mark.parametrize("rule", ["hierarchical", "weighted_sum", "holistic_only", "aspect_only"])
async def test_openrlhf_parts_add_up_to_the_reward(rule: str) -> None:
    tables = FIGURE_1.model_dump() | {"hierarchy": {"rule": rule, "threshold": 5}}
    tables["holistic"] |= {"weight": 3, "mean": 1, "std": 0.5}
    tables["aspects"]["b"]["weight"] = 2
    async with recording_server(recipe(**tables)) as (server, _):
        answer = (await post(server, "/get_reward", **body("AB B C AAC b c x", "A B"))).json()
        logs = answer["extra_logs"]
        sums = [sum(parts) for parts in zip(*(logs[name] for name in "abc"), strict=True)]
        sums = [sum(parts) for parts in zip(sums, logs["holistic"], strict=True)]
        assert answer["rewards"] == pytest.approx(sums)
        assert any(logs["holistic"]) == (rule != "aspect_only")


async def test_openrlhf_label_is_the_field_reference() -> None:
    async with recording_server() as (server, words):
        labels = ["Jane", 7, None, {"a": 1}]
        await post(server, "/get_reward", **body("a", "b", "c", "d", labels=labels))
        fields = [sample.fields for sample in words.samples]
        assert fields == [{"reference": "Jane"}, {"reference": "7"}, {}, {}]


async def test_openrlhf_unknown_fields_are_ignored() -> None:
    async with recording_server() as (server, _):
        more = {"images": [None], "datasources": ["x"], "query_token_ids": [[1]]}
        assert (await post(server, "/get_reward", **body("a b"), **more)).json()["rewards"] == [2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ["P"]}, "invalid: query[0] cannot be split: it starts neither with i"),
        ({"query": ["Q? A."]}, "invalid: prompts has 2 items, query has 1: send one a query"),
        (
            {"query": ["a", "b"], "prompts": None},
            "invalid: query[0] cannot be split: it does not start",
        ),
        ({"labels": []}, None),
        ({"labels": ["a"]}, "invalid: labels has 1 items, query has 2: send one a query"),
        ({"query": "Q? A."}, "invalid: query: Input should be a valid list"),
        ({"query": [None]}, "invalid: query[0]: Input should be a valid string"),
        ({"query": None}, "invalid: query: Input should be a valid list"),
    ],
)
async def test_openrlhf_invalid_body_is_422_that_names_the_field(
    given: dict[str, Any], message: str | None
) -> None:
    async with recording_server() as (server, words):
        count = 1 if given.get("prompts") == ["P"] else 2
        answer = await post(server, "/get_reward", **body(*["a"] * count) | given)
        if message is None:
            assert answer.status_code == 200
        else:
            assert message in error_of(answer, 422)
            assert words.heard == []


@pytest.mark.parametrize(
    ("bad", "code"), [("long", "too_long"), ("nan", "non_finite"), ("boom", "model_failed")]
)
async def test_openrlhf_failed_sample_fails_the_call_and_is_named(bad: str, code: str) -> None:
    async with recording_server() as (server, _):
        answer = await post(server, "/get_reward", **body("a", bad))
        assert error_of(answer, 422).startswith(f"{code}: query[1]: ")


async def test_openrlhf_score_without_segments_fails_the_call() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        answer = await post(server, "/compat/openrlhf/a", **body("A a", "none"[:3]))
        assert error_of(answer, 422).startswith("invalid_sample: query[1]: ")
        answer = await post(server, "/compat/openrlhf/a", **body("A a"))
        assert answer.json()["rewards"] == [0.5]


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ("", ("Human: Q?\nAssistant:", " a b")),
        ("?template=plain", ("Human: Q?\nAssistant:", " a b")),
        ("?user=Human:&assistant=Assistant:", ("Q?", "a b")),
        ("?user=Human:&assistant=Assistant:&end=b", ("Q?", "a ")),
    ],
)
async def test_openrlhf_url_sets_turn_markers(options: str, heard: tuple[str, str]) -> None:
    async with recording_server() as (server, words):
        prompt = "Human: Q?\nAssistant:"
        given = {"query": [f"{prompt} a b</s>"], "prompts": [prompt]}
        assert (await post(server, f"/get_reward{options}", **given)).status_code == 200
        assert [tuple(map(str.rstrip, words.heard[0]))] == [tuple(map(str.rstrip, heard))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("template=chat", "template: Input should be one of chatml, "),
        ("template=chatml&user=U", "template already defines user"),
        ("user=U", "assistant is missing"),
        ("end=E", "assistant is missing"),
        ("user=U&assistant=", "assistant is missing"),
        ("templat=chatml", "templat: Extra inputs are not permitted"),
        ("extra_logs=maybe", "extra_logs: Input should be a valid boolean"),
    ],
)
async def test_openrlhf_invalid_option_is_named(options: str, message: str) -> None:
    async with recording_server() as (server, _):
        answer = await post(server, f"/get_reward?{options}", **body("a"))
        assert message in error_of(answer, 422)


async def test_openrlhf_unknown_name_is_404_that_lists_known_names() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        answer = await post(server, "/compat/openrlhf/nope", **body("a"))
        expected = "not_found: no recipe or model 'nope'; there are figure-1, words, a, b, c"
        assert error_of(answer, 404) == expected


async def test_openrlhf_logs_of_a_rule_that_is_not_a_sum_are_its_inputs() -> None:
    tables = FIGURE_1.model_dump() | {"hierarchy": {"rule": "minimum", "threshold": 5}}
    tables["holistic"] |= {"weight": 3, "mean": 1, "std": 0.5}
    async with recording_server(recipe(**tables)) as (server, _):
        logs = (await post(server, "/get_reward", **body("AB B C AAC b c x"))).json()["extra_logs"]
        assert logs["holistic"] == [(7 - 1) / 0.5]
        assert logs["a"] == [1 + 2]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("&".join(f"end=x{index}" for index in range(17)), "end: List should have at most 16"),
        ("end=" + "x" * 101, "end: String should have at most 100 characters"),
        ("user=" + "x" * 101, "user: String should have at most 100 characters"),
    ],
)
async def test_openrlhf_too_many_or_too_long_markers_are_refused(query: str, message: str) -> None:
    async with recording_server() as (server, _):
        path = f"/compat/openrlhf/plain?assistant=b&{query}"
        assert message in error_of(await post(server, path, query=["a b"]), 422)


async def test_openrlhf_text_of_markers_only_is_refused() -> None:
    async with recording_server() as (server, _):
        path = "/compat/openrlhf/plain?user=a&assistant=b"
        answer = await post(server, path, query=["ab" * 10_000])
        assert "query[0] cannot be split: it has more than 10000 turns" in error_of(answer, 422)


async def test_openrlhf_prompt_in_unknown_template_is_422_with_remedy() -> None:
    async with recording_server() as (server, words):
        prompt = "<|foo|>user\nQ?<|bar|><|foo|>assistant\n"
        given = {"query": [f"{prompt}a b<|bar|>"], "prompts": [prompt]}
        message = error_of(await post(server, "/get_reward", **given), 422)
        assert "query[0] cannot be split: its prompt has '<|foo|>'" in message
        assert "`template`" in message
        markers = "user=%3C|foo|%3Euser%0A&assistant=%3C|foo|%3Eassistant%0A&end=%3C|bar|%3E"
        answer = await post(server, f"/get_reward?{markers}", **given)
        assert answer.json()["rewards"] == [2]
        assert words.heard == [("Q?", "a b")]
