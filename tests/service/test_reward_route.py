from typing import Any

import pytest
from served import Server, samples, serving
from standin import FIGURE_1, recipe

#: Seven words on six tokens; A's at tokens 0, 3 and 3, B's at 0, 1 and 4, C's at 2, 3 and 5.
HIGH = {
    "prompt": "?",
    "completion": "AB B C AAC b c x",
    "token_offsets": [[0, 2], [3, 4], [5, 6], [7, 10], [11, 12], [13, 16]],
}
#: Three words on six tokens, judged A, B and C.
LOW = {
    "prompt": "?",
    "completion": "Ax Bx Cx",
    "token_offsets": [[0, 1], [1, 2], [3, 4], [4, 5], [6, 7], [7, 8]],
}


async def rewards(server: Server, *given: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    answer = await server.client.post("/hierarchical_reward", json={"samples": given, **body})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rewards"]
    return found


async def token_rewards(server: Server, given: dict[str, Any], **overrides: Any) -> list[float]:
    (reward,) = await rewards(server, given, overrides=overrides)
    assert reward["reward"] == sum(reward["token_rewards"])
    return [round(value, 1) for value in reward["token_rewards"]]


async def test_reward_figure_1_below_threshold_has_no_aspects() -> None:
    async with serving(FIGURE_1) as server:
        assert await token_rewards(server, LOW) == [0, 0, 0, 0, 0, 3]


async def test_reward_figure_1_above_threshold_adds_aspects() -> None:
    async with serving(FIGURE_1) as server:
        assert await token_rewards(server, HIGH) == [1.7, 0.7, 0.5, 2.5, 0.3, 7.1]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rule": "holistic_only"}, [0, 0, 0, 0, 0, 7]),
        ({"rule": "aspect_only"}, [1.7, 0.7, 0.5, 2.5, 0.3, 0.1]),
        ({"threshold": 7}, [1.7, 0.7, 0.5, 2.5, 0.3, 7.1]),  # equality is past it
        ({"threshold": 7.5}, [0, 0, 0, 0, 0, 7]),
        ({"threshold": 9, "rule": "weighted_sum"}, [1.7, 0.7, 0.5, 2.5, 0.3, 7.1]),
        ({"holistic_weight": 2}, [1.7, 0.7, 0.5, 2.5, 0.3, 14.1]),
        ({"weights": {"a": 2, "b": 0, "c": 0}}, [2, 0, 0, 4, 0, 7]),
        ({"shaping": "none"}, [2, 1, 0, 2, -1, 5]),
        ({"shaping": "none", "weights": {"a": -1}}, [0, 1, 0, -2, -1, 5]),
    ],
)
async def test_reward_override_of_the_rule(
    overrides: dict[str, Any], expected: list[float]
) -> None:
    async with serving(FIGURE_1) as server:
        assert await token_rewards(server, HIGH, **overrides) == expected


async def test_reward_overrides_change_the_fingerprint() -> None:
    async with serving(FIGURE_1) as server:
        plain = (await server.reward("a")).json()["fingerprint"]
        changed = (await server.reward("a", overrides={"threshold": 1})).json()["fingerprint"]
        again = (await server.reward("b")).json()["fingerprint"]
        assert plain == again != changed


async def test_override_weight_of_unknown_aspect_is_422() -> None:
    async with serving(FIGURE_1) as server:
        answer = await server.reward("a", overrides={"weights": {"fluency": 1}})
        assert answer.status_code == 422
        assert "['fluency']" in answer.json()["error"]["message"]
        assert "['a', 'b', 'c']" in answer.json()["error"]["message"]


async def test_reward_aspects_are_computed_for_admitted_samples_only() -> None:
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        for letters in server.letters.values():
            letters.batches.clear()
        low, high = await rewards(server, LOW, HIGH)
        assert (low["admitted"], high["admitted"]) == (False, True)
        assert low["aspects"] == {"a": None, "b": None, "c": None}
        assert [letters.batches for letters in server.letters.values()] == [[1], [1], [1]]


async def test_reward_aspect_of_weight_0_is_not_computed() -> None:
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        server.letters["a"].batches.clear()
        (reward,) = await rewards(server, HIGH, overrides={"weights": {"a": 0}})
        assert reward["aspects"]["a"] is None
        assert server.letters["a"].batches == []


async def test_reward_aspects_all_changes_no_reward() -> None:
    async with serving(FIGURE_1) as server:
        no_a = {"weights": {"a": 0}}
        needed = await rewards(server, LOW, HIGH, overrides=no_a)
        everything = await rewards(server, LOW, HIGH, overrides=no_a, aspects="all")
        for name in ("reward", "token_rewards", "holistic", "admitted", "error"):
            assert [one[name] for one in needed] == [one[name] for one in everything]
        low, high = everything
        assert low["aspects"]["a"] == {
            "reward": 1,
            "token_rewards": [1, 0, 0, 0, 0, 0],
            "segments": [{"start": 0, "end": 1, "label": "good", "score": 1}],
        }
        assert high["aspects"]["a"]["token_rewards"] == [1, 0, 0, 2, 0, 0]


async def test_reward_without_offsets_has_no_token_rewards() -> None:
    async with serving(FIGURE_1) as server:
        (reward,) = await rewards(
            server, HIGH | {"token_offsets": None}, overrides={"shaping": "none"}
        )
        assert reward["token_rewards"] is None
        assert reward["reward"] == 7 + 3 + (2 - 1) + (0 + 0 - 2)


async def test_reward_of_an_empty_completion_without_tokens_is_0() -> None:
    async with serving(FIGURE_1) as server:
        empty = {"prompt": "p", "completion": "", "token_offsets": []}
        (reward,) = await rewards(server, empty)
        assert (reward["token_rewards"], reward["reward"], reward["error"]) == ([], 0, None)


async def test_reward_of_a_completion_that_lost_its_tokens_is_an_error() -> None:
    async with serving(FIGURE_1) as server:
        lost, whole = await rewards(server, HIGH | {"token_offsets": []}, HIGH)
        assert (lost["reward"], lost["error"]["code"]) == (None, "invalid_sample")
        assert "token_offsets is empty" in lost["error"]["message"]
        assert whole["error"] is None


async def test_reward_has_raw_and_normalised_holistic_score() -> None:
    plain = recipe(holistic={"model": "words", "mean": 1, "std": 2, "weight": 10})
    async with serving(plain) as server:
        (reward,) = await rewards(server, HIGH)
        assert reward["holistic"] == {"score": 7, "normalized": 3}
        assert reward["reward"] == 30


async def test_reward_failed_needed_aspect_fails_the_sample() -> None:
    bad = HIGH | {"completion": "AB B C AA! b c x"}
    async with serving(FIGURE_1) as server:
        failed, fine = await rewards(server, bad, HIGH)
        assert failed["error"]["code"] == "model_failed"
        assert failed["error"]["message"].startswith("aspect a: ")
        assert failed["reward"] is failed["token_rewards"] is failed["holistic"] is None
        assert failed["aspects"] == {"a": None, "b": None, "c": None}
        assert fine["error"] is None


async def test_reward_failed_unneeded_aspect_fails_nothing() -> None:
    bad = LOW | {"completion": "Ax Bx C!"}
    async with serving(FIGURE_1) as server:
        (reward,) = await rewards(server, bad, aspects="all")
        assert reward["error"] is None
        assert reward["reward"] == 3
        assert reward["aspects"] == {"a": None, "b": None, "c": None}


@pytest.mark.parametrize(
    "overrides",
    [{"holistic_weight": 1e308}, {"weights": {"a": 1e308}, "shaping": "none"}],
)
async def test_reward_that_overflows_is_an_error(overrides: dict[str, Any]) -> None:
    async with serving(FIGURE_1) as server:
        overflowing, fine = await rewards(
            server, HIGH, LOW | {"completion": ""} | {"token_offsets": None}, overrides=overrides
        )
        assert overflowing["error"]["code"] == "non_finite"
        assert fine["reward"] == 0


async def test_reward_aspects_of_one_model_share_a_forward_pass() -> None:
    twice = recipe(aspects={"one": {"model": "words"}, "two": {"model": "words"}})
    async with serving(twice) as server:
        await server.engine.life.until_ready()
        server.words.batches.clear()
        for aspects in ("admitted", "all"):
            answer = await server.reward("a b", aspects=aspects)
            assert set(answer.json()["rewards"][0]["aspects"]) == {"one", "two"}
        assert server.words.batches == [1, 1]  # one a request


async def test_reward_of_no_samples_is_empty() -> None:
    async with serving(FIGURE_1) as server:
        assert await rewards(server) == []


async def test_reward_recipe_is_selected_by_name() -> None:
    async with serving(recipe("one"), FIGURE_1) as server:
        body = {"samples": samples("a b c d e f"), "recipe": "figure-1"}
        answer = (await server.client.post("/hierarchical_reward", json=body)).json()
        assert answer["recipe"] == "figure-1"
        assert set(answer["rewards"][0]["aspects"]) == {"a", "b", "c"}
        assert (await server.reward("a")).json()["recipe"] == "one"
