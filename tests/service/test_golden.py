"""The original ALaRM code's rewards, through HTTP; a list names the differences and reasons."""

import json
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tolerance import as_golden

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = [pytest.mark.numeric, pytest.mark.asyncio(loop_scope="module")]

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = json.loads((GOLDEN / "qa_config.json").read_text())
ITEMS = [json.loads(line) for line in (GOLDEN / "qa_items.jsonl").read_text().splitlines()]
ASPECTS = ("relevance", "factuality", "completeness")
CHECKPOINTS = {
    "ultrarm": "holistic_rm",
    "relevance_rm": "rel_rm",
    "factuality_rm": "fact_rm",
    "completeness_rm": "comp_rm",
}

#: Variants whose rewards differ deliberately (docs/fidelity.md).
DIFFERENT = {
    "literal_eos_mid": "a separator in the text shifts no label",
    "literal_eos_glued": "a separator in the text shifts no label",
    "literal_eos_start": "a separator in the text shifts no label",
    "literal_eos_in_question_and_prompt": "a separator in the text shifts no label",
    "placeholder_collision": "a placeholder in a prompt is not replaced",
    "fact_input_truncated_exactly_one_separator": "a segment that was cut off is not read",
    "very_long_forced_text_short_mask": "segments that share a token add up",
    "mask_shorter_than_text": "segments that share a token add up",
}
#: Of these, the rewards happen to agree in every configuration.
SAME_REWARDS = {"literal_eos_mid"}

LENGTH = f"""
[models.length]
kind = "length"
[aspects.length]
model = "length"
weight = 0.0
shaping = "none"
std = {CONFIG["length_mean"]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    built_in = resources.files("alarm_models") / "recipes" / "long-form-qa.toml"
    file = tmp_path_factory.mktemp("golden") / "long-form-qa.toml"
    file.write_text(built_in.read_text() + LENGTH)
    settings = [
        setting
        for model, folder in CHECKPOINTS.items()
        for setting in (
            f"models.{model}.checkpoint={GOLDEN / folder}",
            f"models.{model}.truncation=right",
        )
    ]
    settings += [
        f"holistic.mean={CONFIG['ultra']['ultra_mean']}",
        f"holistic.std={CONFIG['ultra']['ultra_std']}",
    ]
    app = create_app([load_recipe(str(file), settings)], Settings(device="cpu"))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as made,
    ):
        yield made


def sample(item: Mapping[str, Any]) -> dict[str, Any]:
    spans = {
        name: [list(pair) for pair in pairwise(item[key])]
        for name, key in (("sentences", "sentence_bounds"), ("subsentences", "subsentence_bounds"))
    }
    return {
        "prompt": item["prompt"],
        "completion": item["response"],
        "fields": {"question": item["question"]},
        "token_offsets": item["token_offsets"],
        "segments": spans,
        "id": item["id"],
    }


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body, timeout=None)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    weights = dict.fromkeys((*ASPECTS, "length"), 0.0)
    if config["length"]:
        weights["length"] = 1.0
        return {"rule": config["reward_type"], "weights": weights}
    weights |= dict(zip(ASPECTS, config["w"], strict=True))
    shaping = "sigmoid" if config["sigmoid"] else "none"
    return {"rule": config["reward_type"], "weights": weights, "shaping": shaping}


def golden_rewards(item: Mapping[str, Any], config: str) -> list[float]:
    rewards = [0.0] * item["policy_len"]
    for index, value in item["rewards"][config].items():
        rewards[int(index)] = value
    return rewards


#: Short items run every configuration; the long ones only the recipe's own.
SHORT = [item for item in ITEMS if not item["too_short"] and len(item["prompt"]) < 2000]


@pytest.mark.parametrize("config", CONFIG["configs"])
async def test_golden_rewards_of_every_configuration(
    client: httpx.AsyncClient, config: str
) -> None:
    items = [item for item in SHORT if item["variant"] not in DIFFERENT]
    answer = await post(
        client,
        "/hierarchical_reward",
        samples=[sample(item) for item in items],
        overrides=overrides(CONFIG["configs"][config]),
    )
    for item, reward in zip(items, answer["rewards"], strict=True):
        assert reward["token_rewards"] == as_golden(golden_rewards(item, config))


async def test_golden_rewards_of_every_item_except_listed_ones(
    client: httpx.AsyncClient,
) -> None:
    config = "weighted_sum+sigmoid"
    items = [item for item in ITEMS if not item["too_short"]]
    answer = await post(
        client,
        "/hierarchical_reward",
        samples=[sample(item) for item in items],
        overrides=overrides(CONFIG["configs"][config]),
    )
    different = {
        item["variant"]
        for item, reward in zip(items, answer["rewards"], strict=True)
        if reward["token_rewards"] != as_golden(golden_rewards(item, config))
    }
    assert different == set(DIFFERENT) - SAME_REWARDS


@pytest.mark.parametrize(
    ("model", "key"),
    [("ultrarm", "holistic"), ("completeness_rm", "completeness")],
)
async def test_golden_scores_are_the_original_logits(
    client: httpx.AsyncClient, model: str, key: str
) -> None:
    items = [
        item
        for item in ITEMS
        if not item["too_short"] and item["variant"] != "placeholder_collision"
    ]
    answer = await post(client, "/score", model=model, samples=[sample(item) for item in items])
    for item, score in zip(items, answer["scores"], strict=True):
        assert score["score"] == as_golden(item[key])


@pytest.mark.parametrize(
    ("model", "key"),
    [("relevance_rm", "relevance_margins"), ("factuality_rm", "factuality_margins")],
)
async def test_golden_segment_scores_are_the_original_margins(
    client: httpx.AsyncClient, model: str, key: str
) -> None:
    items = [item for item in ITEMS if item["variant"] not in DIFFERENT]
    answer = await post(client, "/score", model=model, samples=[sample(item) for item in items])
    for item, score in zip(items, answer["scores"], strict=True):
        margins = [segment["score"] for segment in score["segments"]]
        assert margins == as_golden(item[key])
