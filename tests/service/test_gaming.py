"""Figures of a gamed reward, and `alarm audit` over captures, with numbers to check by hand."""

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import samples, serving
from standin import FIGURE_1, recipe
from tolerance import computed

from alarm_models.recipe.schema import Overrides
from alarm_models.types import AspectReward, Reward, Sample, SegmentScore, Span
from alarm_service.captures.lines import CapturedRewards
from alarm_service.cli.main import main
from alarm_service.observability.gaming import (
    DRIFT_LEVEL,
    LIMITS,
    OMITTED_PARTS,
    Drift,
    RewardRecord,
    average_run_length,
    figures_of,
    holistic_of_groups,
    shared_segment_share,
    shared_texts,
)

DOCS = Path(__file__).parents[2] / "docs"


def record(group: str, reward: float, **keys: Any) -> RewardRecord:
    made = RewardRecord(group, 10, reward, reward, {"holistic": reward}, True, False, ())
    return replace(made, **keys)


def test_zero_deviation_share_counts_groups_whose_rewards_are_equal() -> None:
    flat = [record(f"flat {at}", 1 + 1e-5 * side) for at in range(3) for side in (0, 1)]
    other = [record(f"other {at}", side) for at in range(9) for side in (0, 1)]
    alone = [record("alone", 1)]
    figures = figures_of(flat + other + alone)
    assert (figures.num_groups, figures.zero_deviation_share) == (12, 0.25)


def test_ceiling_share_counts_samples_near_the_largest_reward() -> None:
    rewards = [5, 5 - 5e-5, 5 - 2e-4, *[1] * 37]
    figures = figures_of([record(str(at), reward) for at, reward in enumerate(rewards)])
    assert (figures.ceiling, figures.ceiling_share) == (5, 2 / 40)


def test_variance_shares_are_those_of_the_parts_and_of_the_rule() -> None:
    # Independent parts with variances 1, 4 and 4: the rule subtracts what the parts do not have.
    sides = [(x, 2 * y, 2 * z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)] * 4
    records = [record("", x + y - z, parts={"holistic": x, "a": y}) for x, y, z in sides]
    shares = figures_of(records).variance_shares
    assert shares == computed({"holistic": 1 / 9, "a": 4 / 9, "rule": 4 / 9})


def test_variance_shares_of_a_rule_that_is_no_sum_are_not_given() -> None:
    records = [record("", float(at), parts=None) for at in range(40)]
    assert figures_of(records).variance_shares == {}


def test_opposed_shares_compare_neighbors_of_a_group() -> None:
    def pair(group: str, difference: float) -> list[RewardRecord]:
        parts: list[dict[str, float]] = [{"holistic": 1, "a": 0}, {"holistic": 2, "a": difference}]
        return [record(group, sum(one.values()), z=one["holistic"], parts=one) for one in parts]

    pairs = [(1.0, 48), (-1.0, 16), (0.0, 5)]  # the aspect agrees, opposes, ties
    records = [
        one for value, num in pairs for at in range(num) for one in pair(f"{value} {at}", value)
    ]
    assert figures_of(records).opposed_shares == {"a": 0.25}


def test_omitted_share_leaves_out_what_recipes_omit_on_purpose() -> None:
    omitted: list[Sequence[str]] = [["thinking"], ["system", "prompt_start"], [], ["tools"]]
    records = [record("", 1, omitted=omitted[at % 4], truncated=at % 4 == 1) for at in range(40)]
    figures = figures_of(records)
    assert (figures.omitted_share, figures.truncated_share) == (0.25, 0.25)


def test_figures_of_few_samples_are_not_given() -> None:
    figures = figures_of([record(str(at // 2), at) for at in range(14)])
    assert (figures.zero_deviation_share, figures.ceiling_share) == (None, None)
    assert (figures.variance_shares, figures.length_correlation) == ({}, None)


def test_drift_adds_what_exceeds_half_a_deviation_and_comes_back() -> None:
    drift = Drift()
    for z in (2.0, 2.0, -1.0):
        drift.add(z)
    assert (drift.up, drift.down) == (1.5, 0.5)  # 1.5 + 1.5 - 1.5; 0, 0, 1 - 0.5
    for _ in range(1000):
        drift.add(3.0)
    assert (drift.up, drift.down) == (2 * DRIFT_LEVEL, 0)


def test_groups_add_one_mean_each_to_the_drift() -> None:
    records = [record("p", 1), record("q", 5), record("p", 3)]
    assert holistic_of_groups(records) == [2, 5]


@pytest.mark.parametrize(("shift", "level"), [(0.0, 4.0), (1.0, 15.0), (-1.0, 15.0)])
def test_average_run_length_is_that_of_simulated_groups(shift: float, level: float) -> None:
    choose, lengths = random.Random(0), []
    for _ in range(400):
        drift, length = Drift(), 0
        while max(drift.up, drift.down) <= level:
            drift.add(choose.gauss(shift, 1))
            length += 1
        lengths.append(length)
    # The mean of 400 runs has a deviation of a twentieth.
    assert abs(sum(lengths) / 400 / average_run_length(shift, level) - 1) < 0.15


def test_docs_list_the_parts_of_omitted_and_the_run_lengths() -> None:
    listed = (DOCS / "samples.md").read_text("utf-8")
    parts = listed.partition("## `omitted`")[2].partition("\n\nOf the routes")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", parts, re.MULTILINE)) == OMITTED_PARTS
    table = (DOCS / "metrics.md").read_text("utf-8")
    for shift in (0.0, 0.25, 0.5, 0.75, 1.0, 2.0):
        lengths = [f"{average_run_length(shift, level):.2g}" for level in (5, 10, DRIFT_LEVEL)]
        assert f"| {shift:g} | {' | '.join(_plain(one) for one in lengths)} |" in table


def _plain(number: str) -> str:
    return f"{float(number):,.0f}"


def test_shared_segments_are_those_of_three_prompts_or_a_twentieth() -> None:
    few = [(prompt, text) for prompt in range(20) for text in (f"own {prompt}", "1.")]
    few += [(0, "twice"), (1, "twice"), (0, "twice")]
    assert shared_texts(few) == {"1."}
    many = [(prompt, f"own {prompt}") for prompt in range(78)]
    assert shared_texts([*many, *((prompt, "so") for prompt in range(3))]) == set()
    assert shared_segment_share([*many, *((prompt, "so") for prompt in range(26))]) == 0.25
    assert shared_segment_share(few) is None


async def test_metrics_of_a_gamed_reward_follow_the_samples() -> None:
    async with serving(FIGURE_1) as server:
        for at in range(10):
            body = [{**one, "prompt": f"{at}?"} for one in samples(*["A A A A A A"] * 4)]
            await server.client.post("/hierarchical_reward", json={"samples": body})
        told = {"recipe": "figure-1"}

        def value(name: str, **labels: str) -> float | None:
            found = server.engine.metrics.registry
            return found.get_sample_value(f"alarm_{name}", {**told, **labels})

        assert value("zero_deviation_group_share") == 1
        assert value("ceiling_sample_share") == 1
        # z is 6: each of ten groups adds 5.5, up to twice the level.
        assert value("holistic_drift", direction="up") == 30
        assert value("holistic_drift", direction="down") == 0
        assert math.isnan(value("reward_variance_share", component="holistic") or 0)
        recent = (await server.client.get("/recent")).json()
    assert recent["gaming"]["zero_deviation_share"] == 1
    assert sum(recent["rewards"]["counts"]) == sum(recent["holistic"]["counts"]) == 40
    assert recent["points"][0] == [11, recent["gaming"]["ceiling"], True]
    assert (recent["best"], recent["worst"]) == (None, None)


async def test_recent_has_texts_only_with_log_texts_and_errors_by_code() -> None:
    async with serving(FIGURE_1, log_texts=True) as server:
        await server.reward("w", "w w w", "w w", "w boom")
        recent = (await server.client.get("/recent", params={"recipe": "figure-1"})).json()
        unknown = await server.client.get("/recent?recipe=nine")
    assert [one["completion"] for one in recent["best"]] == ["w w w", "w w", "w"]
    assert recent["worst"][0] == {"reward": 1, "prompt": "?", "completion": "w"}
    assert recent["errors"] == {"model_failed": 1}
    assert recent["gaming"]["ceiling_share"] is None
    assert unknown.status_code == 404


def capture(file: Path, rewards: Sequence[float], *, hashes_texts: bool = False) -> None:
    """Write a capture of groups of four, whose rewards are holistic scores."""
    params = recipe().rule_params(Overrides())
    lines: list[bytes] = []
    for start in range(0, len(rewards), 4):
        group = rewards[start : start + 4]
        given = [Sample(f"{start}?", "w", id=f"{start}.{at}") for at in range(len(group))]
        found = [Reward(one, None, one, one, True, {}, False) for one in group]
        request = CapturedRewards(str(start), given, found, "r", [], "f", Overrides(), params)
        lines += request.lines(hashes_texts=hashes_texts)
    file.write_bytes(b"".join(lines))


def test_audit_of_honest_samples_passes_no_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = random.Random(0)
    file = tmp_path / "capture-1.jsonl"
    capture(file, [choose.gauss(0, 1) for _ in range(200)], hashes_texts=True)
    assert main(["audit", str(tmp_path)]) == 0
    assert "Beyond a limit: nothing" in capsys.readouterr().out


def test_audit_of_a_late_drift_names_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = random.Random(0)
    rewards = [choose.gauss(0, 1) for _ in range(200)] + [4.0 + at % 2 for at in range(48)]
    rewards[230] = 9.0
    capture(tmp_path / "capture-1.jsonl", rewards)
    arguments = ["audit", str(tmp_path), "--window", "100", "--json"]
    assert main(arguments) == 1
    result = json.loads(capsys.readouterr().out)
    (found,) = [one for one in result["recipes"][0]["findings"] if one["num_passed"]]
    assert (found["figure"], found["subject"], found["limit"]) == ("drift", "up", LIMITS.drift)
    assert (found["num_windows"], found["num_passed"]) == (3, 1)
    assert found["evidence"][0] == {
        "file": "capture-1.jsonl", "line": 231, "id": "228.2", "reward": 9.0,
    }  # fmt: skip
    assert main([*arguments, "--max-drift", "1000"]) == 0


def test_audit_of_fragments_that_earn_on_every_prompt_names_the_aspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, lines = FIGURE_1.rule_params(Overrides()), list[bytes]()
    for at in range(40):
        text = f"answer {at}. 1. 2."
        spans = [(0, len(text) - 6), (len(text) - 5, len(text) - 3), (len(text) - 2, len(text))]
        segments = tuple(SegmentScore(Span(*span), "good", 1.0, True) for span in spans)
        reward = Reward(at, None, at, at, True, {"b": AspectReward(2.0, None, segments)}, False)
        given = Sample(f"{at}?", text)
        request = CapturedRewards(str(at), [given], [reward], "r", ["b"], "f", Overrides(), params)
        lines += request.lines(hashes_texts=False)
    (tmp_path / "capture-1.jsonl").write_bytes(b"".join(lines))
    assert main(["audit", str(tmp_path)]) == 1
    report = " ".join(capsys.readouterr().out.split())
    assert "segments shared by prompts: b: look at capture-1.jsonl, line 1 (reward 0.000)" in report


def test_audit_of_an_unusable_capture_returns_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nowhere")
    assert main(["audit", missing]) == 2
    assert f"{missing} does not exist" in capsys.readouterr().err
    assert main(["audit", str(tmp_path)]) == 2
    (tmp_path / "capture-1.jsonl").write_text("{}\n")
    assert main(["audit", str(tmp_path)]) == 2
    assert "capture-1.jsonl, line 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        main(["audit", str(tmp_path), "--max-drift", "much"])
    assert raised.value.code == 2
