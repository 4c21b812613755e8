"""The recipe table `overlong` over the real application."""

from typing import Any

from served import serving
from standin import recipe

from alarm_models.recipe.schema import Overrides

GIVEN = [
    {"prompt": "?", "completion": "a b", "finish_reason": "length", "group": "x"},
    {"prompt": "?", "completion": "a", "finish_reason": "stop", "group": "x"},
    {"prompt": "?", "completion": "a b c", "group": "x"},
]


async def rewards(overlong: dict[str, Any] | None, rule: str, *given: dict[str, Any]) -> list[Any]:
    async with serving(recipe(hierarchy={"rule": rule}, overlong=overlong)) as server:
        answer = await server.client.post("/hierarchical_reward", json={"samples": given})
        assert answer.status_code == 200, answer.text
        return [one["error"] or one["reward"] for one in answer.json()["rewards"]]


async def test_penalty_is_added_to_the_truncated_sample_alone() -> None:
    found = await rewards({"action": "penalty", "penalty": -0.5}, "holistic_only", *GIVEN)
    assert found == [1.5, 1.0, 3.0]


async def test_skipped_sample_is_left_out_of_its_group() -> None:
    skipped, *others = await rewards({"action": "skip"}, "mo_grpo", *GIVEN)
    assert skipped["code"] == "overlong"
    assert others == await rewards(None, "mo_grpo", *GIVEN[1:])


async def test_finish_reason_changes_nothing_without_the_table() -> None:
    assert await rewards(None, "holistic_only", *GIVEN) == [2.0, 1.0, 3.0]


def test_fingerprint_changes_with_the_table_alone() -> None:
    plain = recipe()
    same = recipe(group_timeout_s=3.0)
    other = recipe(overlong={"action": "skip"})
    prints = [one.fingerprint({}, Overrides()) for one in (plain, same, other)]
    assert prints[0] == prints[1] != prints[2]
