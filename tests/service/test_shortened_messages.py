"""Callers' texts are shortened in messages and logs."""

import json
from typing import Any

import pytest
from served import samples, serving
from standin import FIGURE_1

from alarm_models.errors import quoted

LONG = "a" * 50_000
DIGITS = "1" * 4300
SAMPLE = {"prompt": "?", "completion": "a"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"model": LONG, "samples": [SAMPLE]}),
        ("/hierarchical_reward", {"recipe": LONG, "samples": [SAMPLE]}),
        ("/hierarchical_reward", {"samples": [SAMPLE], "overrides": {"weights": {LONG: 1}}}),
        ("/hierarchical_reward", {"samples": [SAMPLE], "overrides": {LONG: 1}}),
        ("/hierarchical_reward", {"samples": [SAMPLE], "overrides": {"rule": LONG}}),
        ("/score", {"samples": [SAMPLE], LONG: 1}),
        ("/score", {"samples": [SAMPLE | {"completion": int(DIGITS)}]}),
        ("/score", {"samples": [SAMPLE | {"token_offsets": [[0, int(DIGITS)]]}]}),
        ("/score", {"samples": [SAMPLE | {"segments": {LONG: []}}]}),
        ("/score", {"samples": [SAMPLE | {"fields": {LONG: "\ud800"}}]}),
        ("/score", {"samples": [SAMPLE | {"group_size": int(DIGITS)}]}),
        (f"/compat/openrlhf/{LONG}", {"query": ["a"]}),
        (f"/{LONG}", {}),
        (f"/get_reward?{LONG}=1", {"query": ["a"]}),
        (f"/get_reward?template={LONG}", {"query": ["a"]}),
        ("/classify", {"model": LONG, "input": "a"}),
        ("/v1/score/evaluation", {"model": LONG, "messages": ["a"]}),
    ],
)
async def test_message_about_a_long_name_or_number_is_short(
    path: str, body: dict[str, Any]
) -> None:
    async with serving(FIGURE_1) as server:
        content = json.dumps(body)
        answer = await server.client.post(
            path, content=content, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code in (404, 422)
    assert len(answer.text) < 1500
    assert "a" * 201 not in answer.text
    assert "1" * 201 not in answer.text


async def test_message_about_a_long_group_is_short() -> None:
    table = FIGURE_1.model_dump() | {"hierarchy": {"rule": "mo_grpo"}}
    async with serving(type(FIGURE_1).model_validate(table)) as server:
        body = {"samples": [samples("a b")[0] | {"group": LONG}]}
        (reward,) = (await server.client.post("/hierarchical_reward", json=body)).json()["rewards"]
    assert reward["error"]["code"] == "invalid_sample"
    assert len(reward["error"]["message"]) < 600


async def test_log_of_an_unknown_recipe_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(admin_key="sesame") as server:
        for path in ("/admin/load", "/admin/unload", "/admin/reload"):
            answer = await server.client.post(
                path, json={"recipe": LONG}, headers={"Authorization": "Bearer sesame"}
            )
            assert answer.status_code == 404
            assert len(answer.text) < 1000
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["recipes not changed"] * 3
    assert max(map(len, lines)) < 1500


def test_quoted_shows_200_characters_at_most() -> None:
    assert quoted("a" * 198) == "'" + "a" * 198 + "'"
    assert quoted("a" * 199) == "'" + "a" * 198 + "…"
    assert quoted(10**5000) == "a number too long to show"
