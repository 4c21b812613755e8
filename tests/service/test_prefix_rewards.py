"""Recipes with `dense = "prefix"`, against transformers run on each prefix alone."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import tiny
import torch
from tiny import Checkpoint
from tolerance import by_hand, computed, logged

from alarm_models.modeling.inputs import ForwardOutput, ModelInput
from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import NeuralRewardModel
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric

TEMPLATE = "Human: {prompt}\nAssistant: {completion}</s>"
PROMPT = "What is the capital of France, and does the quick brown fox know?"
COMPLETION = "Paris is the capital. The dog does not mind! It is lazy."
#: The ends of its three sentences, and the policy's tokens: words, and the end of the text.
ENDS = (21, 44, 56)
TOKENS = [[one.start(), one.end()] for one in re.finditer(r"\S+", COMPLETION)] + [[56, 56]]
SAMPLE = {"prompt": PROMPT, "completion": COMPLETION, "token_offsets": TOKENS}
#: Where the sentences end among the tokens.
LAST = (3, 8, 11)


def recipe_of(checkpoint: Checkpoint, **tables: Any) -> Recipe:
    rm = {"kind": "sequence", "checkpoint": str(checkpoint.folder), "template": TEMPLATE}
    given = {
        "name": "prefixes",
        "models": {"rm": rm | tables.pop("rm", {})},
        "holistic": {"model": "rm", "dense": "prefix"},
        "hierarchy": {"rule": "holistic_only"},
    }
    return Recipe.model_validate(given | tables)


@asynccontextmanager
async def serving(recipe: Recipe, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app([recipe], Settings(device="cpu", **settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60
        ) as client,
    ):
        await app.state.engine.life.until_ready()
        yield client


async def reward(
    client: httpx.AsyncClient, *samples: Mapping[str, Any], **body: Any
) -> dict[str, Any]:
    answer = await client.post("/hierarchical_reward", json={"samples": samples} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def plain_scores(checkpoint: Checkpoint, completion: str, ends: Sequence[int]) -> list[float]:
    """Score the empty completion and each prefix with transformers, each alone."""
    prefixes = [completion[:end] for end in (0, *ends)]
    texts = [TEMPLATE.format(prompt=PROMPT, completion=prefix) for prefix in prefixes]
    return [checkpoint.plain_logits(text).item() for text in texts]


def on_tokens(values: Mapping[int, float], num_tokens: int = len(TOKENS)) -> list[float]:
    return [values.get(index, 0.0) for index in range(num_tokens)]


async def test_holistic_segments_earn_what_they_add_to_the_score(llama: Checkpoint) -> None:
    s = plain_scores(llama, COMPLETION, ENDS)
    async with serving(recipe_of(llama)) as client:
        (one,) = (await reward(client, SAMPLE))["rewards"]
    gains = {LAST[0]: s[1] - s[0], LAST[1]: s[2] - s[1], LAST[2]: s[3] - s[2]}
    assert one["token_rewards"] == computed(on_tokens({0: s[0]} | gains))
    assert one["reward"] == by_hand(sum(one["token_rewards"]))
    assert one["reward"] == computed(s[3])


async def test_holistic_response_has_the_score_up_to_each_segment(llama: Checkpoint) -> None:
    s = plain_scores(llama, COMPLETION, ENDS)
    async with serving(recipe_of(llama)) as client:
        spread, whole = (
            await reward(client, SAMPLE, {"prompt": PROMPT, "completion": COMPLETION})
        )["rewards"]
    assert [one["end"] for one in spread["holistic"]["segments"]] == list(ENDS)
    assert [one["score"] for one in spread["holistic"]["segments"]] == computed(s[1:])
    assert {one["label"] for one in spread["holistic"]["segments"]} == {None}
    assert spread["holistic"]["score"] == computed(s[3])
    assert whole["holistic"].keys() == {"score", "normalized"}
    assert whole["reward"] == computed(spread["reward"])


async def test_constants_scale_the_gains_and_the_empty_completions_part(llama: Checkpoint) -> None:
    s = plain_scores(llama, COMPLETION, ENDS)
    table = {"model": "rm", "dense": "prefix", "weight": 3.0, "mean": 0.5, "std": 2.0}
    async with serving(recipe_of(llama, holistic=table)) as client:
        (one,) = (await reward(client, SAMPLE))["rewards"]
    z = [(score - 0.5) / 2 for score in s]
    gains = {at: 3 * (z[n + 1] - z[n]) for n, at in enumerate(LAST)}
    assert one["token_rewards"] == computed(on_tokens({0: 3 * z[0]} | gains))
    assert one["reward"] == computed(3 * z[3])


async def test_segments_of_the_sample_and_other_segmenters_cut_elsewhere(
    llama: Checkpoint,
) -> None:
    table = {"model": "rm", "dense": "prefix", "segmenter": "steps"}
    given = SAMPLE | {"segments": {"steps": [[0, 5], [6, 21]]}}
    s = plain_scores(llama, COMPLETION, (5, 56))
    async with serving(recipe_of(llama, holistic=table)) as client:
        spread, one_step = (await reward(client, given, SAMPLE))["rewards"]
    # The last segment's score is that of the whole completion, wherever it ends.
    assert spread["token_rewards"] == computed(on_tokens({0: s[1], LAST[0]: s[2] - s[1]}))
    assert one_step["token_rewards"] == computed(on_tokens({0: s[0], LAST[2]: s[2] - s[0]}))


@pytest.mark.parametrize("completion", ["", "  \n"])
async def test_completion_without_segments_gets_all_on_the_last_token(
    llama: Checkpoint, completion: str
) -> None:
    sample = {"prompt": PROMPT, "completion": completion, "token_offsets": [[0, 0], [0, 0]]}
    (score,) = plain_scores(llama, completion, (len(completion),))[1:]
    async with serving(recipe_of(llama)) as client:
        (one,) = (await reward(client, sample))["rewards"]
    assert one["token_rewards"] == computed([0.0, score])


@pytest.mark.parametrize("shaping", ["none", "sigmoid"])
async def test_aspect_segments_earn_what_they_add_to_its_shaped_value(
    llama: Checkpoint, shaping: str
) -> None:
    s = plain_scores(llama, COMPLETION, ENDS)
    mapped = [(score - 0.1) / 2 * 0.5 + 0.2 for score in s]
    v = [1 / (1 + math.exp(-one)) for one in mapped] if shaping == "sigmoid" else mapped
    table = {"model": "rm", "dense": "prefix", "shaping": shaping, "weight": 2.0}
    table |= {"mean": 0.1, "std": 2.0, "scale": 0.5, "bias": 0.2}
    recipe = recipe_of(
        llama,
        holistic={"model": "rm"},
        hierarchy={"rule": "weighted_sum"},
        aspects={"a": table, "plain": {"model": "rm", "weight": 0.0}},
    )
    async with serving(recipe) as client:
        (one,) = (await reward(client, SAMPLE, aspects="all"))["rewards"]
    gains = {at: v[n + 1] - v[n] for n, at in enumerate(LAST)}
    aspect = one["aspects"]["a"]
    assert aspect["token_rewards"] == computed(on_tokens({0: v[0]} | gains))
    assert aspect["reward"] == computed(v[3])
    assert [segment["score"] for segment in aspect["segments"]] == computed(s[1:])
    # The holistic score, and an aspect of the same model, stay on the last token.
    assert one["holistic"].keys() == {"score", "normalized"}
    assert one["aspects"]["plain"]["segments"] is None
    assert one["aspects"]["plain"]["token_rewards"][:-1] == [0.0] * (len(TOKENS) - 1)
    total = [2 * reward for reward in aspect["token_rewards"]]
    total[-1] += s[3]
    assert one["token_rewards"] == computed(total)


async def test_group_rule_normalizes_spread_rewards_to_the_same_sums(llama: Checkpoint) -> None:
    other = "It is lazy. No."
    tokens = [[one.start(), one.end()] for one in re.finditer(r"\S+", other)]
    group = [
        SAMPLE | {"group": "g"},
        {"prompt": PROMPT, "completion": other, "token_offsets": tokens, "group": "g"},
    ]
    sums = {}
    for dense in ({}, {"dense": "prefix"}):
        recipe = recipe_of(llama, holistic={"model": "rm"} | dense, hierarchy={"rule": "mo_grpo"})
        async with serving(recipe) as client:
            rewards = (await reward(client, *group))["rewards"]
        sums[bool(dense)] = [one["reward"] for one in rewards]
        assert [one["reward"] for one in rewards] == by_hand(
            [sum(one["token_rewards"]) for one in rewards]
        )
    assert sums[True] == logged(sums[False])


async def test_group_one_sample_a_request_is_spread_as_in_one_request(llama: Checkpoint) -> None:
    group = [
        SAMPLE | {"group": "g", "group_size": 2, "id": "0"},
        SAMPLE | {"group": "g", "group_size": 2, "completion": COMPLETION[::-1], "id": "1"},
    ]
    recipe = recipe_of(llama, hierarchy={"rule": "mo_grpo"})
    async with serving(recipe) as client:
        whole = (await reward(client, *group))["rewards"]
        answers = await asyncio.gather(*(reward(client, one) for one in group))
    for wanted, answer in zip(whole, answers, strict=True):
        (one,) = answer["rewards"]
        assert one["token_rewards"] == computed(wanted["token_rewards"])
        assert len(one["holistic"]["segments"]) == len(wanted["holistic"]["segments"])
        assert sum(map(bool, one["token_rewards"])) > 1


async def test_samples_without_tokens_are_scored_once_and_only_whole(llama: Checkpoint) -> None:
    whole = {"prompt": PROMPT, "completion": COMPLETION}
    async with serving(recipe_of(llama), max_remembered_bytes=0) as client:
        plain = (await client.post("/score", json={"samples": [whole]})).json()
        rewarded = await reward(client, whole)
        spread = await reward(client, SAMPLE)
    num_tokens = plain["usage"]["num_tokens"]
    assert rewarded["usage"] == {"num_tokens": num_tokens, "num_computed_tokens": num_tokens}
    assert rewarded["rewards"][0]["reward"] == computed(plain["scores"][0]["score"])
    # Each prefix counts in full, and costs what it does not share.
    assert spread["usage"]["num_tokens"] > 3 * num_tokens
    assert spread["usage"]["num_computed_tokens"] < 1.6 * num_tokens


async def test_score_route_gives_one_score_of_the_whole(llama: Checkpoint) -> None:
    (s,) = plain_scores(llama, COMPLETION, (56,))[1:]
    async with serving(recipe_of(llama)) as client:
        answer = (await client.post("/score", json={"samples": [SAMPLE]})).json()
    (one,) = answer["scores"]
    assert (one["score"], one["segments"]) == (computed(s), None)


@pytest.mark.parametrize("rule", ["par", "minimum", "product", "log_sigmoid"])
async def test_request_with_a_rule_that_cannot_spread_is_refused(
    llama: Checkpoint, rule: str
) -> None:
    async with serving(recipe_of(llama)) as client:
        answer = await client.post(
            "/hierarchical_reward", json={"samples": [SAMPLE], "overrides": {"rule": rule}}
        )
    assert answer.status_code == 422
    assert "holistic.dense" in answer.json()["error"]["message"]


async def test_deterministic_server_gives_the_same_bits_in_any_company(llama: Checkpoint) -> None:
    others = [SAMPLE | {"completion": f"{n}. {COMPLETION[:40]}"} for n in range(3)]
    others = [one | {"token_offsets": [[0, 40]]} for one in others]
    async with serving(recipe_of(llama), deterministic=True) as client:
        alone = (await reward(client, SAMPLE))["rewards"][0]
        among = (await reward(client, *others, SAMPLE))["rewards"][-1]
    assert alone["token_rewards"] == among["token_rewards"]
    s = plain_scores(llama, COMPLETION, ENDS)
    assert alone["holistic"]["score"] == computed(s[3])


def fail_on(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Sequence[ModelInput]], bool]
) -> list[int]:
    """Have forward passes run out of memory where ``fails`` says; return their sequences."""
    sizes: list[int] = []
    forward = NeuralRewardModel.forward

    def limited(self: NeuralRewardModel, batch: Sequence[ModelInput]) -> ForwardOutput:
        sizes.append(sum(len(one.sequences) for one in batch))
        if fails(batch):
            raise torch.OutOfMemoryError("too much")
        return forward(self, batch)

    monkeypatch.setattr(NeuralRewardModel, "forward", limited)
    return sizes


async def test_prefixes_that_do_not_fit_the_device_together_run_one_by_one(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(recipe_of(llama)) as client:
        wanted = (await reward(client, SAMPLE, SAMPLE))["rewards"]
        sizes = fail_on(monkeypatch, lambda batch: sum(len(one.sequences) for one in batch) > 1)
        got = (await reward(client, SAMPLE, SAMPLE))["rewards"]
    assert sizes == [8, 4, 1, 1, 1, 1, 4, 1, 1, 1, 1]
    for one, other in zip(got, wanted, strict=True):
        assert one["token_rewards"] == computed(other["token_rewards"])


async def test_prefix_that_is_not_finite_fails_its_sample_alone(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = NeuralRewardModel.forward
    marked = llama.tokenizer.convert_tokens_to_ids("Ġlazy")

    def with_nan(self: NeuralRewardModel, batch: Sequence[ModelInput]) -> ForwardOutput:
        output = forward(self, batch)
        rows = [row.clone() for row in output.rows]
        for one, row in zip(batch, rows, strict=True):
            for at, sequence in enumerate(one.sequences):
                if at > 0 and marked in sequence.ids:  # not the whole completion
                    row[at] = float("nan")
        return ForwardOutput(rows, output.num_computed)

    monkeypatch.setattr(NeuralRewardModel, "forward", with_nan)
    lazy = SAMPLE | {"completion": "It is lazy. It is not.", "token_offsets": [[0, 22]]}
    async with serving(recipe_of(llama)) as client:
        failed, fine = (await reward(client, lazy, SAMPLE))["rewards"]
    assert (failed["reward"], failed["error"]["code"]) == (None, "non_finite")
    assert fine["error"] is None


async def test_recipe_on_an_encoder_says_what_prefixes_cost(tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier("roberta", tmp_path)
    s = plain_scores(checkpoint, COMPLETION, ENDS)
    structlog.reset_defaults()  # warnings too
    with structlog.testing.capture_logs() as logs:
        async with serving(recipe_of(checkpoint)) as client:
            body = await reward(client, SAMPLE)
    told = [one for one in logs if 'dense = "prefix"' in one["event"]]
    assert [(one["recipe"], one["model"]) for one in told] == [("prefixes", "rm")]
    (one,) = body["rewards"]
    assert one["token_rewards"][LAST[0]] == computed(s[1] - s[0])
    assert body["usage"]["num_computed_tokens"] == body["usage"]["num_tokens"]
