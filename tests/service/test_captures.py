"""`--capture` and `alarm replay`, with real files."""

import asyncio
import json
import resource
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Server, samples, serving, until
from standin import FIGURE_1, recipe

from alarm_models.types import Sample, Score
from alarm_service.captures.capture import CaptureOptions, SampleCapture
from alarm_service.captures.files import CaptureFiles
from alarm_service.captures.lines import CapturedLine, CaptureError, capture_files, read_captured
from alarm_service.cli.main import main
from alarm_service.evaluation.replay import RemoteRewarder, compared
from alarm_service.evaluation.replay_comparison import ReplayComparison
from alarm_service.evaluation.replay_report import replay_page
from alarm_service.evaluation.report import markdown_of
from alarm_service.evaluation.scoring import Peer
from alarm_service.observability.metrics import Metrics
from alarm_service.preflight import require_usable_capture
from alarm_service.schemas import AspectOut, HolisticOut, RewardOut
from alarm_service.settings import Settings, SettingsError

MIB = 1 << 20


def captured(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in capture_files(folder)
        for line in file.read_text("utf-8").splitlines()
    ]


async def until_captured(folder: Path, num_lines: int) -> None:
    """Wait until a capture, which a thread writes, has this many lines."""
    await until(
        lambda: sum(one.read_bytes().count(b"\n") for one in folder.glob("*.jsonl")) == num_lines
    )


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"alarm_{name}_total", labels) or 0


def put(capture: SampleCapture, *completions: str, **keys: Any) -> None:
    given = [Sample("?", completion, **keys) for completion in completions]
    capture.put_scores(given, [Score(1.0, None, 1, False) for _ in given], "rm", "f")


async def answered(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_capture_has_samples_of_every_route_in_private_files(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    began = time.time()
    async with serving(FIGURE_1, capture=folder) as server:
        rewards = await answered(await server.reward("A A c w w é", "w"))
        scores = await answered(await server.score("w w"))
        query = {"query": ["Human: ?\nAssistant: w w"], "prompts": ["Human: ?\nAssistant:"]}
        options = {"user": "Human:", "assistant": "Assistant:"}
        path = "/compat/openrlhf/figure-1/get_reward"
        await answered(await server.client.post(path, json=query, params=options))
        await until(lambda: value(server.engine.metrics, "captured_samples") == 4)
    first, second, third, fourth = captured(folder)
    assert [first["reward"], second["reward"]] == rewards["rewards"]
    assert first["sample"] == {"prompt": "?", "completion": "A A c w w é"}
    assert (first["recipe"], first["fingerprint"]) == ("figure-1", rewards["fingerprint"])
    assert (first["constants"]["rule"], first["constants"]["threshold"]) == ("hierarchical", 5)
    assert first["request"] == second["request"] != third["request"]
    assert began - 1 < first["time"] == second["time"] <= third["time"] < time.time() + 1
    assert [third["score"]] == scores["scores"]
    assert (fourth["recipe"], fourth["reward"]["holistic"]["score"]) == ("figure-1", 2)
    (file,) = capture_files(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_capture_of_a_broken_disk_fails_no_request_and_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.write_text("a file where the folder should be")
    async with serving(capture=folder) as server:
        await answered(await server.reward("w", "w w"))
        metrics = server.engine.metrics
        await until(lambda: value(metrics, "capture_dropped_samples", reason="disk") == 2)


@contextmanager
def limited_file_size(num_bytes: int) -> Iterator[None]:
    """Let writes beyond this size of a file fail, as those to a full disk do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_after_a_full_disk_have_whole_lines(tmp_path: Path) -> None:
    files = CaptureFiles(tmp_path, MIB)
    files.append(b"1234567\n")
    with limited_file_size(12), pytest.raises(OSError, match="too large"):
        files.append(b"abcdefg\n")
    files.append(b"ABCDEFG\n")
    files.close()
    assert [file.read_bytes() for file in capture_files(tmp_path)] == [b"1234567\n", b"ABCDEFG\n"]


def test_files_stay_within_the_bound_and_lose_the_oldest(tmp_path: Path) -> None:
    files = CaptureFiles(tmp_path, MIB)
    for number in range(40):
        files.append(f"{number:02}".encode() + b"x" * 40_000 + b"\n")
    files.close()
    found = [file.read_bytes() for file in capture_files(tmp_path)]
    assert sum(map(len, found)) <= MIB
    assert found[0][:2] > b"00"
    assert found[-1][:2] == b"39"


def test_files_go_on_after_their_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    files = CaptureFiles(folder, MIB)
    files.append(b"lost\n")
    shutil.rmtree(folder)
    files.append(b"kept\n")
    files.close()
    assert [file.read_bytes() for file in capture_files(folder)] == [b"kept\n"]


def test_capture_with_a_full_queue_drops_requests(tmp_path: Path) -> None:
    metrics = Metrics()
    capture = SampleCapture(CaptureOptions(tmp_path, max_queued_chars=2000), metrics.captures)
    put(capture, "taken")
    put(capture, "dropped", "dropped too")
    capture.start()
    capture.close()
    assert [line["sample"]["completion"] for line in captured(tmp_path)] == ["taken"]
    assert value(metrics, "capture_dropped_samples", reason="queue") == 2


def test_capture_of_a_share_keeps_groups_of_several_requests_together(tmp_path: Path) -> None:
    capture = SampleCapture(CaptureOptions(tmp_path, share=0.5), Metrics().captures)
    for turn in "ab":
        for group in range(60):
            put(capture, turn, group=str(group), group_size=2)
    capture.start()
    capture.close()
    groups: dict[str, str] = {}
    for line in captured(tmp_path):
        group = line["sample"]["group"]
        groups[group] = groups.get(group, "") + line["sample"]["completion"]
    assert 0 < len(groups) < 60
    assert set(groups.values()) == {"ab"}


def test_redacted_capture_has_no_text_and_is_not_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = CaptureOptions(tmp_path, hashes_texts=True)
    capture = SampleCapture(options, Metrics().captures)
    put(capture, "secret words", "secret words", id="1", group="a secret")
    capture.start()
    capture.close()
    (file,) = capture_files(tmp_path)
    assert "secret" not in file.read_text()
    first, second = captured(tmp_path)
    assert first["sample"] == second["sample"]
    assert first["sample"]["num_completion_chars"] == 12
    with pytest.raises(CaptureError, match="redacted"):
        list(read_captured(file))
    assert main(["replay", str(tmp_path), "--url", "http://localhost:1"]) == 1
    assert "line 1: the capture is redacted" in capsys.readouterr().err


def test_reading_skips_a_last_line_that_a_crash_cut(tmp_path: Path) -> None:
    file = tmp_path / "capture-1.jsonl"
    line = CapturedLine.model_validate(
        {"request": "1", "sample": samples("w")[0], "fingerprint": "f"}
    ).model_dump_json(exclude_none=True)
    file.write_text(f"{line}\n{line[:40]}")
    assert len(list(read_captured(file))) == 1
    file.write_text(f"{line[:40]}\n{line}\n")
    with pytest.raises(CaptureError, match="line 1 is not JSON"):
        list(read_captured(file))


def test_capture_to_an_unusable_folder_is_refused_at_startup(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="--capture"):
        require_usable_capture(Settings(capture=tmp_path / "file"))
    require_usable_capture(Settings(capture=tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


async def test_replay_of_partial_groups_by_another_rule_counts_changes(tmp_path: Path) -> None:
    before = recipe("one", hierarchy={"rule": "holistic_only", "threshold": 2})
    after = recipe("two", holistic={"model": "words", "mean": 4.0, "std": 2.0})
    async with serving(before, capture=tmp_path) as server:
        for completion in ("w", "w", "w w w"):  # the first is retried
            member = {"group": "g", "group_size": 2, "id": completion}
            given = [samples(completion)[0] | member]
            path = "/hierarchical_reward"
            await answered(await server.client.post(path, json={"samples": given}))
        await server.reward("w w", "w w w w")
    async with serving(after) as server:
        result = await replayed(server, tmp_path, "two")
    # Of 1, 3, 2 and 4 words: the reward is the number, then that less 4 over 2.
    assert (result.num_samples, result.num_retried) == (4, 1)
    assert result.rewards.mean_before == pytest.approx(2.5)
    assert result.rewards.mean_after == pytest.approx(-0.75)
    largest = result.rewards.largest
    assert largest is not None
    assert (largest.before, largest.after) == (4, 0)
    assert (result.ranks.num_pairs, result.share_of_pairs_changed) == (6, 0)
    assert result.failures.num_only_after == 0
    assert "| reward | 4 | 2.500 | -0.750 |" in markdown_of(replay_page(result))


@pytest.mark.parametrize("rule", ["gdpo", "mo_grpo"])
async def test_replay_by_the_same_recipe_changes_no_reward_of_a_request(
    rule: str, tmp_path: Path
) -> None:
    """`gdpo` normalizes over the samples of a request: two requests are not one."""
    own = recipe("one", hierarchy={"rule": rule})
    async with serving(own, capture=tmp_path) as server:
        for words in (("w", "w w"), ("w", "w w w w w w"), ("w w w", "w w")):
            given = [one | {"group": "g"} for one in samples(*words)]
            await answered(
                await server.client.post("/hierarchical_reward", json={"samples": given})
            )
        await until_captured(tmp_path, 6)
        result = await replayed(server, tmp_path, "one")
    assert result.num_samples == 6
    largest = result.rewards.largest
    assert largest is None or largest.after == pytest.approx(largest.before)


async def test_replay_of_requests_that_are_divided_over_files(tmp_path: Path) -> None:
    """Of two servers with one folder, the lines of a request may be in two files."""
    own = recipe("one", hierarchy={"rule": "mo_grpo"})
    async with serving(own, capture=tmp_path / "captures") as server:
        for words in (("w", "w w", "w w w w"), ("w", "w w w")):
            given = [one | {"group": "g"} for one in samples(*words)]
            await answered(
                await server.client.post("/hierarchical_reward", json={"samples": given})
            )
        await until_captured(tmp_path / "captures", 5)
        lines = captured(tmp_path / "captures")
        assert [line["num_samples"] for line in lines] == [3, 3, 3, 2, 2]
        divided, rotated = tmp_path / "divided", tmp_path / "rotated"
        for folder, order in ((divided, (0, 3, 1, 2, 4)), (rotated, (1, 2, 3, 4))):
            folder.mkdir()
            text = "".join(f"{json.dumps(lines[at])}\n" for at in order)
            (folder / "capture-1.jsonl").write_text(text)
        whole = await replayed(server, divided, "one")
        rest = await replayed(server, rotated, "one")
    assert (whole.num_samples, whole.num_of_incomplete_groups) == (5, 0)
    assert (rest.num_samples, rest.num_of_incomplete_groups) == (2, 2)
    for result in (whole, rest):
        largest = result.rewards.largest
        assert largest is None or largest.after == pytest.approx(largest.before)


async def test_captured_file_is_scored_and_replayed_by_the_commands(tmp_path: Path) -> None:
    folder, out, page = (tmp_path / name for name in ("captures", "out.json", "out.html"))
    async with serving(FIGURE_1, capture=folder) as server:
        await server.reward("A A c w w w", "w")
        await server.score("w")
    length = tmp_path / "length.toml"
    length.write_text('[models.length]\nkind = "length"\n[holistic]\nmodel = "length"\n')
    (file,) = capture_files(folder)
    for command in (["score", str(file)], ["replay", str(folder), "--html", str(page)]):
        arguments = [*command, "--recipe", str(length), "--out", str(out)]
        assert await asyncio.to_thread(main, arguments) == 0
        if command[0] == "score":
            assert len(out.read_text().splitlines()) == 3
    report = json.loads(out.read_text())
    assert (report["num_samples"], report["num_scores_left_out"]) == (2, 1)
    assert report["aspects_only_before"] == ["a", "b", "c"]
    assert report["ranks"]["num_pairs"] == 1
    assert "Replay by" in page.read_text()


async def test_replay_of_large_groups_waits_for_its_own_queue(tmp_path: Path) -> None:
    folder, length = tmp_path / "captures", tmp_path / "length.toml"
    length.write_text('[models.length]\nkind = "length"\n[holistic]\nmodel = "length"\n')
    prompt = "w " * 6000  # 3000 tokens by estimate; eight requests of four samples are 96,000
    async with serving(recipe("one"), capture=folder) as server:
        for _ in range(8):
            given = [
                {"prompt": prompt, "completion": one, "group": "g"} for one in ("a", "b", "c", "d")
            ]
            await answered(
                await server.client.post("/hierarchical_reward", json={"samples": given})
            )
    arguments = ["replay", str(folder), "--recipe", str(length), "--out", str(tmp_path / "out")]
    assert await asyncio.to_thread(main, arguments) == 0


@pytest.mark.parametrize("command", ["replay", "view"])
def test_missing_capture_is_an_error_that_names_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, out = tmp_path / "gone.jsonl", tmp_path / "out"
    assert main([command, str(missing), "--recipe", "mini", "--out", str(out)]) == 1
    assert f"{missing} does not exist" in capsys.readouterr().err
    assert not out.exists()


async def replayed(server: Server, folder: Path, name: str) -> Any:
    """Replay a capture by a server in this event loop."""
    comparison = ReplayComparison(name)
    transport = httpx.ASGITransport(server.app)
    peer = Peer("http://localhost", None, timeout_s=60, num_connections=1, transport=transport)
    rewarder = RemoteRewarder(peer, "http://localhost", name)
    result = await compared(capture_files(folder), rewarder, comparison)
    await peer.close()
    return result


def line_of(reward: float, *, admitted: bool, aspect: float | None) -> RewardOut:
    aspects = (
        None if aspect is None else AspectOut(reward=aspect, token_rewards=None, segments=None)
    )
    return RewardOut(
        reward=reward,
        token_rewards=None,
        holistic=HolisticOut(score=reward, normalized=reward),
        admitted=admitted,
        aspects={"a": aspects},
        truncated=False,
        error=None,
    )


def test_comparison_counts_reversed_pairs_admission_and_aspects() -> None:
    before = [
        line_of(1, admitted=True, aspect=0.5),
        line_of(2, admitted=False, aspect=0.5),
        line_of(2, admitted=True, aspect=None),
    ]
    after = [
        line_of(3, admitted=True, aspect=1.5),
        line_of(2, admitted=True, aspect=0.5),
        line_of(1, admitted=False, aspect=0.1),
    ]
    lines = [
        CapturedLine.model_validate(
            {"request": "1", "sample": samples("w")[0], "recipe": "r", "fingerprint": "f",
             "reward": reward}
        )
        for reward in before
    ]  # fmt: skip
    comparison = ReplayComparison("r")
    comparison.add(lines, after)
    result = comparison.result("g")
    ranks, admitted = result.ranks, result.admitted
    # Before: first < second = third. Now: first > second > third.
    assert (ranks.num_pairs, ranks.num_reversed, ranks.num_untied) == (3, 2, 1)
    assert result.share_of_pairs_changed == 1
    counts = (admitted.num_both, admitted.num_gained, admitted.num_lost, admitted.num_neither)
    assert counts == (1, 1, 1, 0)
    assert result.most_changed_aspect == "a"
    assert result.aspects["a"].mean_absolute_difference == pytest.approx(0.5)
