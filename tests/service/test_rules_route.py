"""Rules through HTTP: their constants, references and groups."""

from typing import Any

import pytest
from served import Server, samples, serving
from standin import FIGURE_1, recipe

from alarm_models.recipe.schema import Recipe


def figure(**hierarchy: Any) -> Recipe:
    """Make Figure 1's recipe with another rule; `Words` scores a completion's words."""
    table = FIGURE_1.model_dump()
    return Recipe.model_validate(table | {"hierarchy": hierarchy})


async def ask(server: Server, given: list[dict[str, Any]], **body: Any) -> list[dict[str, Any]]:
    answer = await server.client.post("/hierarchical_reward", json={"samples": given, **body})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rewards"]
    return found


def in_groups(*pairs: tuple[str | None, str]) -> list[dict[str, Any]]:
    return [
        one | {"group": group, "token_offsets": [[0, 1], [1, 1]]}
        for one, (group, _) in zip(samples(*(text for _, text in pairs)), pairs, strict=True)
    ]


async def test_mo_grpo_compares_each_group_with_itself() -> None:
    given = in_groups(("x", "w w w"), ("y", "w"), ("x", "w"), ("y", "w w w w w"))
    async with serving(figure(rule="mo_grpo")) as server:
        rewards = await ask(server, given)
        high = 2**-0.5  # 3 and 1 lie a mean of 2 and a deviation of sqrt(2) apart
        assert [one["reward"] for one in rewards] == pytest.approx(
            [high, -high, -high, high], abs=1e-3
        )
        assert [sum(one["token_rewards"]) for one in rewards] == [one["reward"] for one in rewards]


async def test_gdpo_samples_without_a_group_or_alone_in_it_fail_unscored() -> None:
    given = in_groups(("x", "w w w"), (None, "w w"), ("x", "w"), ("z", "w"))
    async with serving(figure(rule="gdpo")) as server:
        await server.engine.life.until_ready()
        server.words.batches.clear()
        rewards = await ask(server, given)
        errors = [one["error"] and one["error"]["code"] for one in rewards]
        assert errors == [None, "invalid_sample", None, "invalid_sample"]
        assert server.words.batches == [2]


async def test_mo_grpo_failed_sample_leaves_the_rest_of_its_group_rewarded() -> None:
    given = in_groups(("x", "w w w"), ("x", "boom"), ("x", "w"))
    async with serving(figure(rule="mo_grpo")) as server:
        first, failed, last = await ask(server, given)
        assert failed["error"]["code"] == "model_failed"
        assert first["reward"] > 0
        assert first["reward"] == pytest.approx(-last["reward"])


async def test_par_equal_references_are_scored_once() -> None:
    given = [one | {"fields": {"reference": "w w w"}} for one in samples("w w w", "w w w w w w w")]
    async with serving(recipe(hierarchy={"rule": "par"})) as server:
        equal, better, bare = await ask(server, [*given, *samples("w")])
        assert equal["reward"] == 0.5
        assert better["reward"] == pytest.approx(1 / (1 + 2.718281828**-4))
        assert "fields.reference" in bare["error"]["message"]
        usage = (await server.client.post("/hierarchical_reward", json={"samples": given})).json()
        assert usage["usage"]["num_tokens"] == 3 + 7 + 3


async def test_veto_aspect_of_weight_zero_is_computed() -> None:
    hierarchy = {"rule": "veto", "floor": -9, "minimums": {"a": 1}}
    async with serving(figure(**hierarchy)) as server:
        clean, vetoed = await ask(
            server, samples("A A w", "A a w"), overrides={"weights": {"a": 0, "b": 0, "c": 0}}
        )
        assert (clean["reward"], vetoed["reward"]) == (3, -9)


async def test_override_rule_without_its_constants_is_422_that_names_them() -> None:
    async with serving(FIGURE_1) as server:
        answer = await server.reward("a", overrides={"rule": "soft_gate"})
        assert answer.status_code == 422
        assert "hierarchy.temperature" in answer.json()["error"]["message"]


async def test_override_unknown_rule_is_422_that_lists_all() -> None:
    async with serving(FIGURE_1) as server:
        answer = await server.reward("a", overrides={"rule": "best"})
        assert answer.status_code == 422
        for rule in ("hierarchical", "soft_gate", "gdpo"):
            assert f"'{rule}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("rule", ["gdpo", "mo_grpo", "product", "minimum", "log_sigmoid", "par"])
async def test_override_constants_that_overflow_fail_samples_and_not_the_request(rule: str) -> None:
    given = [
        one | {"fields": {"reference": "w"}}
        for one in in_groups(("x", "w w w A"), ("x", "w"), ("y", "A a"), ("y", "w"))
    ]
    weights = {"a": 1e308, "b": -1e308, "c": 1e308}
    async with serving(FIGURE_1) as server:
        for holistic_weight in (1e308, -1e308):
            overrides = {"rule": rule, "holistic_weight": holistic_weight, "weights": weights}
            for one in await ask(server, given, overrides=overrides):
                assert (one["reward"] is None) == (one["error"] is not None)
