"""Models that read the same tokens with the same base cost one forward pass a sample."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
import torch
from tcp import over_tcp
from tiny import Checkpoint
from tolerance import computed

from alarm_models.modeling.inputs import ModelInput, ReadStates
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample, Score
from alarm_service.api.app import create_app
from alarm_service.engine.engine import RewardEngine
from alarm_service.evaluation.scoring import LocalScorer, score_all
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric

GATE_AT = "<|im_end|>\n<|im_start|>assistant\n"
NAMES = ["help", "truth", "style"]

#: No text begins as another does, so that nothing of them is shared.
SAMPLES = [
    {"prompt": "What is the capital of France?", "completion": "Paris."},
    {"prompt": "Naïve question", "completion": "A long answer, and a second one."},
    {"prompt": "Who?", "completion": "You."},
]

ADMITS_ALL = {"rule": "hierarchical", "threshold": -1e6}
RULES = [ADMITS_ALL, {"rule": "weighted_sum"}, {"rule": "aspect_only"}]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Create a base with ArmoRM's layers and two heads of one number."""
    torch.manual_seed(3)
    heads = {
        "regression_layer.weight": torch.randn(3, 32),
        "reward_transform_matrix": torch.eye(3) + 0.1 * torch.randn(3, 3),
        "gating.logit_scale": torch.tensor([1.5]),
        "gating.layers.0.weight": torch.randn(16, 32),
        "gating.layers.1.weight": torch.randn(3, 16) * 5,
        "value.weight": torch.randn(1, 32),
        "truth.weight": torch.randn(1, 32),
    }
    return tiny.base_with(tmp_path_factory.mktemp("several"), heads)


def objectives(folder: Path) -> dict[str, Any]:
    return {
        "kind": "multi-objective",
        "checkpoint": str(folder),
        "head": "regression_layer",
        "gate_at": GATE_AT,
        "objectives": NAMES,
    }


def head(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "sequence",
        "checkpoint": str(folder),
        "head": name,
        "template": "chat",
    } | more


def aspect(model: str, output: str | None = None) -> dict[str, Any]:
    named = {} if output is None else {"output": output}
    return {"model": model, "shaping": "none", "weight": 0.5} | named


def recipe_of(
    models: dict[str, Any], holistic: dict[str, Any], aspects: dict[str, Any], **hierarchy: Any
) -> Recipe:
    table = {
        "name": "shared",
        "models": models,
        "holistic": holistic,
        "hierarchy": hierarchy or {"rule": "weighted_sum"},
        "aspects": aspects,
    }
    return Recipe.model_validate(table)


def of_one_model(folder: Path, **hierarchy: Any) -> Recipe:
    """Return a recipe whose holistic score and three aspects are outputs of one model."""
    aspects = {name: aspect("rm", name) for name in NAMES}
    return recipe_of(
        {"rm": objectives(folder)}, {"model": "rm", "output": "help"}, aspects, **hierarchy
    )


def of_heads(folder: Path, **hierarchy: Any) -> Recipe:
    """Return a recipe of three models on one base, of which one is also read before the end."""
    models = {
        "value": head(folder, "value"),
        "truth": head(folder, "truth"),
        "armo": objectives(folder),
    }
    aspects = {"truth": aspect("truth"), "style": aspect("armo", "style")}
    return recipe_of(models, {"model": "value"}, aspects, **hierarchy)


@asynccontextmanager
async def serving_engine(
    recipe: Recipe, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, RewardEngine]]:
    # No prefix cache, unless the test is about it: it would spare what is sent twice.
    given = {"device": "cpu", "max_remembered_bytes": 0, **settings}
    app = create_app([recipe], Settings(**given))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        await app.state.engine.life.until_ready()
        yield client, app.state.engine


@asynccontextmanager
async def serving(recipe: Recipe, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine(recipe, **settings) as (client, _):
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json={"samples": SAMPLES} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def reward(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    return await post(client, "/hierarchical_reward", **body)


@contextmanager
def forward_tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the tokens of each batch that a backbone really runs within the block."""
    counts: list[int] = []
    forward = PackedBackbone.forward

    def counted(self: PackedBackbone, batch: Sequence[ModelInput]) -> ReadStates:
        counts.append(sum(one.num_tokens for one in batch))
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PackedBackbone, "forward", counted)
        yield counts


def num_tokens(several: Checkpoint) -> int:
    """Count the samples' tokens as the chat template writes them."""
    return sum(
        len(
            several.tokenizer(
                f"<|im_start|>user\n{one['prompt']}<|im_end|>\n"
                f"<|im_start|>assistant\n{one['completion']}<|im_end|>\n",
                add_special_tokens=False,
            ).input_ids
        )
        for one in SAMPLES
    )


@pytest.mark.parametrize("hierarchy", RULES, ids=lambda one: one["rule"])
async def test_holistic_score_and_aspects_of_one_model_cost_one_pass(
    several: Checkpoint, hierarchy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = num_tokens(several)
    async with serving(of_one_model(several.folder, **hierarchy)) as client:
        scores = (await post(client, "/score"))["scores"]
        for aspects in ("admitted", "all", "admitted"):
            with forward_tokens(monkeypatch) as counts:
                body = await reward(client, aspects=aspects)
            assert sum(counts) == total
            assert body["usage"] == {"num_tokens": total, "num_computed_tokens": total}
            for one, alone in zip(body["rewards"], scores, strict=True):
                assert {name: one["aspects"][name]["reward"] for name in NAMES} == computed(
                    alone["outputs"]
                )


async def test_references_of_par_are_read_at_the_holistic_output_in_passes_of_their_own(
    several: Checkpoint,
) -> None:
    total = num_tokens(several)
    given = [one | {"fields": {"reference": "Paris."}} for one in SAMPLES]
    async with serving(of_one_model(several.folder, rule="par")) as client:
        texts = [one | {"completion": "Paris."} for one in SAMPLES]
        alone = await post(client, "/score", samples=texts)
        weights = dict.fromkeys(NAMES, 0)
        body = await reward(client, samples=given, overrides={"weights": weights})
    # The first sample is its own reference.
    assert body["rewards"][0]["reward"] == computed(0.5)
    for one, reference in zip(body["rewards"], alone["scores"], strict=True):
        distance = one["holistic"]["score"] - reference["outputs"]["help"]
        assert one["reward"] == computed(1 / (1 + math.exp(-distance)))
    assert body["usage"]["num_tokens"] == total + alone["usage"]["num_tokens"]


async def test_samples_below_the_threshold_get_no_aspects_from_the_shared_pass(
    several: Checkpoint,
) -> None:
    for recipe in (of_one_model, of_heads):
        async with serving(recipe(several.folder, rule="hierarchical", threshold=1e6)) as client:
            body = await reward(client)
        assert body["usage"] == {
            "num_tokens": num_tokens(several),
            "num_computed_tokens": num_tokens(several),
        }
        assert all(set(one["aspects"].values()) == {None} for one in body["rewards"])


@pytest.mark.parametrize("hierarchy", RULES, ids=lambda one: one["rule"])
async def test_heads_on_one_base_cost_one_pass_and_score_as_each_alone(
    several: Checkpoint, hierarchy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = num_tokens(several)
    async with serving(of_heads(several.folder, **hierarchy)) as client:
        alone = {
            name: (await post(client, "/score", model=name))["scores"]
            for name in ("value", "truth", "armo")
        }
        for aspects in ("admitted", "all", "admitted"):
            with forward_tokens(monkeypatch) as counts:
                body = await reward(client, aspects=aspects)
            assert sum(counts) == total
            assert body["usage"] == {"num_tokens": 3 * total, "num_computed_tokens": total}
            for index, one in enumerate(body["rewards"]):
                assert one["holistic"]["score"] == computed(alone["value"][index]["score"])
                assert one["aspects"]["truth"]["reward"] == computed(alone["truth"][index]["score"])
                style = alone["armo"][index]["outputs"]["style"]
                assert one["aspects"]["style"]["reward"] == computed(style)


async def test_heads_that_read_one_token_have_the_bits_of_passes_of_their_own(
    several: Checkpoint,
) -> None:
    models = {"value": head(several.folder, "value"), "truth": head(several.folder, "truth")}
    recipe = recipe_of(models, {"model": "value"}, {"truth": aspect("truth")})
    async with serving(recipe) as client:
        alone = [
            [one["score"] for one in (await post(client, "/score", model=name))["scores"]]
            for name in models
        ]
        body = await reward(client)
    assert [one["holistic"]["score"] for one in body["rewards"]] == alone[0]
    assert [one["aspects"]["truth"]["reward"] for one in body["rewards"]] == alone[1]


async def test_a_deterministic_server_shares_passes_only_where_the_same_tokens_are_read(
    several: Checkpoint,
) -> None:
    total = num_tokens(several)
    async with serving(of_heads(several.folder), deterministic=True) as client:
        alone = {
            name: (await post(client, "/score", model=name))["scores"]
            for name in ("value", "truth", "armo")
        }
        body = await reward(client)
    # `value` and `truth` share a pass; `armo` is read at the end of the prompt too.
    assert body["usage"]["num_computed_tokens"] == 2 * total
    for index, one in enumerate(body["rewards"]):
        assert one["holistic"]["score"] == alone["value"][index]["score"]
        assert one["aspects"]["truth"]["reward"] == alone["truth"][index]["score"]
        assert one["aspects"]["style"]["reward"] == alone["armo"][index]["outputs"]["style"]


async def test_other_tokens_for_some_samples_cost_passes_of_those_samples_alone(
    several: Checkpoint,
) -> None:
    # The second sample is too long for `truth`, which reads the others whole.
    async with serving(of_heads(several.folder)) as client:
        lengths = [one["num_tokens"] for one in (await post(client, "/score"))["scores"]]
        assert lengths[1] == max(lengths)
    limit = lengths[1] - 1
    models = {
        "value": head(several.folder, "value"),
        "truth": head(several.folder, "truth", max_tokens=limit, truncation="prompt"),
    }
    recipe = recipe_of(models, {"model": "value"}, {"truth": aspect("truth")})
    async with serving(recipe) as client:
        alone = (await post(client, "/score", model="truth"))["scores"]
        body = await reward(client)
    assert [one["truncated"] for one in alone] == [False, True, False]
    assert [one["aspects"]["truth"]["reward"] for one in body["rewards"]] == computed(
        [one["score"] for one in alone]
    )
    assert body["usage"]["num_tokens"] == 2 * sum(lengths) - 1
    assert body["usage"]["num_computed_tokens"] == sum(lengths) + limit


def head_of(engine: RewardEngine, name: str) -> torch.nn.Linear:
    network: Any = getattr(engine.model_set.model(name).model, "_network")  # noqa: B009
    (linear,) = network._head.module
    assert isinstance(linear, torch.nn.Linear)
    return linear


async def test_a_head_that_gives_no_numbers_fails_its_own_model_alone(several: Checkpoint) -> None:
    total = num_tokens(several)
    async with serving_engine(of_heads(several.folder)) as (client, engine):
        head_of(engine, "truth").weight.data.fill_(torch.nan)
        logged_only = await reward(client, aspects="all", overrides={"weights": {"truth": 0}})
        needed = await reward(client)
    assert logged_only["usage"]["num_computed_tokens"] == total
    for one in logged_only["rewards"]:
        assert one["error"] is None
        assert one["aspects"]["truth"] is None
        assert one["aspects"]["style"] is not None
    assert [one["error"]["code"] for one in needed["rewards"]] == ["non_finite"] * 3
    assert "aspect truth" in needed["rewards"][0]["error"]["message"]


async def test_a_holistic_head_that_gives_no_numbers_leaves_aspects_their_scores(
    several: Checkpoint,
) -> None:
    async with serving_engine(of_heads(several.folder, rule="aspect_only")) as (client, engine):
        wanted = (await post(client, "/score", model="truth"))["scores"]
        head_of(engine, "value").weight.data.fill_(torch.nan)
        body = await reward(client)
        found = (await post(client, "/score", model="truth"))["scores"]
    assert [one["error"]["code"] for one in body["rewards"]] == ["non_finite"] * 3
    assert [one["score"] for one in found] == computed([one["score"] for one in wanted])


async def test_a_head_that_raises_fails_its_own_model_alone(several: Checkpoint) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("out of order")

    async with serving_engine(of_heads(several.folder)) as (client, engine):
        wanted = (await post(client, "/score"))["scores"]
        head_of(engine, "truth").register_forward_pre_hook(refuse)
        body = await reward(client, aspects="all", overrides={"weights": {"truth": 0}})
    for one, alone in zip(body["rewards"], wanted, strict=True):
        assert one["error"] is None
        assert one["holistic"]["score"] == computed(alone["score"])
        assert one["aspects"]["truth"] is None
        assert one["aspects"]["style"] is not None


async def test_concurrent_requests_with_and_without_aspects_score_the_same(
    several: Checkpoint,
) -> None:
    async with serving(of_heads(several.folder)) as client:
        scores, *bodies = await asyncio.gather(
            post(client, "/score"), *(reward(client) for _ in range(4))
        )
    for body in bodies:
        assert [one["holistic"]["score"] for one in body["rewards"]] == computed(
            [one["score"] for one in scores["scores"]]
        )
        assert all(one["error"] is None for one in body["rewards"])


async def test_evaluation_reads_heads_on_one_base_in_one_pass(
    several: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = of_heads(several.folder)
    given = [Sample(one["prompt"], one["completion"]) for one in SAMPLES]
    async with serving_engine(recipe) as (client, engine):
        with forward_tokens(monkeypatch) as counts:
            found = await LocalScorer(engine, recipe).score(list(recipe.models), given)
        for model, outcomes in found.items():
            alone = (await post(client, "/score", model=model))["scores"]
            values = [one.value for one in outcomes if isinstance(one, Score)]
            assert values == computed([one["score"] for one in alone])
    assert sum(counts) == num_tokens(several)


def test_evaluation_over_http_receives_named_outputs(several: Checkpoint) -> None:
    recipe, settings = of_one_model(several.folder), Settings(device="cpu")
    given = [Sample(one["prompt"], one["completion"]) for one in SAMPLES]
    here = score_all(given, recipe, settings, None)
    with over_tcp(create_app([recipe], settings)) as port:
        there = score_all(given, recipe, settings, f"http://127.0.0.1:{port}")
    for table in (recipe.holistic, *recipe.aspects.values()):
        wanted = [one.value for one in here.of(table) if one is not None]
        assert len(wanted) == 3
        assert [one.value for one in there.of(table) if one is not None] == computed(wanted)
