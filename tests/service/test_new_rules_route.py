"""Rules whose aspects depend on others, and rules that drop samples, over the real application."""

from typing import Any

import pytest
from served import serving
from standin import recipe

#: The stand-in scores a completion by its number of words.
GIVEN = [{"prompt": "?", "completion": text, "group": "x"} for text in ("a b", "a", "a b c d")]
WORDS = {"model": "words", "shaping": "none"}


async def rewards(**tables: Any) -> list[Any]:
    async with serving(recipe(**tables)) as server:
        answer = await server.client.post("/hierarchical_reward", json={"samples": GIVEN})
        assert answer.status_code == 200, answer.text
        return [one["error"] or one["reward"] for one in answer.json()["rewards"]]


async def test_conditioned_aspect_requires_one_that_has_no_weight() -> None:
    aspects = {"a": WORDS | {"weight": 0.0}, "b": WORDS | {"requires": {"a": 2}}}
    found = await rewards(aspects=aspects, hierarchy={"rule": "conditioned"})
    assert found == [2 + 2, 1, 4 + 4]


async def test_gr3_divides_by_the_relative_number_of_words() -> None:
    hierarchy = {"rule": "gr3", "length_penalty": 1.0, "base": "holistic_only"}
    # The mean length is 7/3.
    assert await rewards(hierarchy=hierarchy) == pytest.approx([14 / 13, 7 / 10, 28 / 19])


async def test_dro_drops_the_group_of_which_too_few_pass() -> None:
    aspects = {"a": WORDS | {"weight": 0.0}}
    hierarchy = {"rule": "dro", "minimums": {"a": 2}, "base": "holistic_only"}
    kept = await rewards(aspects=aspects, hierarchy=hierarchy | {"pass_share": 0.6})
    assert kept == [2, 1, 4]
    dropped = await rewards(aspects=aspects, hierarchy=hierarchy | {"pass_share": 0.7})
    assert [one["code"] for one in dropped] == ["dropped"] * 3
    assert "2 of 3 samples of group 'x' reach hierarchy.minimums" in dropped[0]["message"]
