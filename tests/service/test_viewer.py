"""`alarm view`: the index of recorded rewards, its page as a file and on a local server."""

import base64
import hashlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from recorded import CAPTURE, CONSTANTS, captured, failure, reward, sample, write_lines
from standin import recipe

from alarm_service.cli.main import main
from alarm_service.viewer.bundle import json_text
from alarm_service.viewer.html_file import html_file
from alarm_service.viewer.index import RewardIndex
from alarm_service.viewer.lines import ViewError
from alarm_service.viewer.local_server import view_app
from alarm_service.viewer.selection import Pick, picked


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "capture-1.jsonl", CAPTURE)


def block(page: str, name: str) -> list[Any]:
    """Return the lines of a data block."""
    found = re.search(f'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found is not None
    return [json.loads(line) for line in found[1].splitlines()]


def test_index_of_a_capture_has_columns_and_groups(capture: Path) -> None:
    with RewardIndex([capture]) as index:
        overview = index.overview()
        assert index.groups() == [[0, 1], [2, 3], [4]]
    columns = overview["columns"]
    assert columns["reward"] == [3.5, 0.5, -2, -2, None]
    assert columns["admitted"] == [1, 0, 0, 0, None]
    assert columns["length"] == [8, 9, 9, 19, 5]
    assert columns["error"] == [-1, -1, -1, -1, 0]
    assert overview["errors"] == ["too_long"]
    assert [one["recipe"] for one in overview["origins"]] == ["r", "other"]
    assert overview["notes"] == ["1 samples of /score have no reward and are not shown."]


def test_index_details_have_texts_reward_and_constants(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    lines = [captured("1", sample("?", "", id="x") | {"prompt": prompt}, reward(1, 0.5))]
    with RewardIndex([write_lines(tmp_path / "f.jsonl", lines)]) as index:
        found = json.loads(index.details(0))
    assert found["prompt"] == [["user", "Hi"], ["assistant", "Yes?"]]
    assert (found["completion"], found["sample"]) == ("", {"id": "x"})
    assert found["constants"] == CONSTANTS
    assert found["reward"]["reward"] == 3.5


def test_index_searches_prompts_and_completions_in_any_case(tmp_path: Path) -> None:
    lines = [captured("1", sample("Where?", "Été \ud800"), reward(1)), *CAPTURE]
    with RewardIndex([write_lines(tmp_path / "f.jsonl", lines)]) as index:
        assert index.search("été") == [0, 3]
        assert index.search("\ud800") == [0]
        assert index.search("ONE?") == [1, 2]
        assert index.search("") == index.search("nowhere") == []


def test_index_joins_the_input_of_alarm_score(tmp_path: Path) -> None:
    rewards = [reward(1, 0.5, id="a"), failure("invalid_sample"), reward(0.25, id="c")]
    file = write_lines(tmp_path / "rewards.jsonl", rewards)
    given = [sample("?", "one", id="a"), "no sample", sample("?", "three", id="c")]
    samples = write_lines(tmp_path / "samples.jsonl", given)
    with RewardIndex([file], samples) as index:
        assert index.overview()["columns"]["excerpt"] == ["one", "", "three"]
        assert index.groups() == [[0, 2], [1]]
        assert json.loads(index.details(2))["completion"] == "three"
    for wrong in (given[:2], [*given, sample("?", "four")], [given[2], *given[1:]]):
        with pytest.raises(ViewError, match="--samples"):
            RewardIndex([file], write_lines(samples, wrong))


def test_index_takes_constants_of_the_recipe_where_lines_have_none(tmp_path: Path) -> None:
    lines = [
        reward(1),
        captured("1", sample("?", "!"), reward(1), recipe="one", constants=None,
                 overrides={"threshold": 7}),
        captured("1", sample("?", "!"), reward(1), recipe="two", constants=None),
    ]  # fmt: skip
    named = recipe("one", hierarchy={"rule": "holistic_only", "threshold": 2})
    with RewardIndex([write_lines(tmp_path / "f.jsonl", lines)], recipes=[named]) as index:
        found = [json.loads(index.details(at))["constants"] for at in range(3)]
    assert [one and one["threshold"] for one in found] == [2, 7, None]
    assert found[0]["rule"] == "holistic_only"


def test_index_shows_a_sample_that_was_sent_again_once(tmp_path: Path) -> None:
    held = [sample("?", text, id=text, group="g", group_size=2) for text in ("one", "two")]
    other = sample("?", "three", id="one", group="g", group_size=2)  # the name is used again
    lines = [
        captured(str(request), one, reward(1), time=time)
        for request, (one, time) in enumerate(
            [(held[0], 5), (held[1], 5), (held[1], 7), (other, 9), (held[0], 99), (held[0], 100)]
        )
    ]
    with RewardIndex([write_lines(tmp_path / "f.jsonl", lines)]) as index:
        # The last but one is of a later step, the last one is that again.
        assert index.overview()["columns"]["excerpt"] == ["one", "two", "three", "one"]
        assert index.notes() == ["2 samples were sent again, and shown once."]
        assert json.loads(index.details(2))["completion"] == "three"


def test_index_skips_unusable_lines_and_names_the_first(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    good, odd = json.dumps(reward(1)), json.dumps(reward(1, aspects=5))
    file.write_text(f"{good}\n\n{{]\n[1]\n{odd}\n{good[:30]}")
    with RewardIndex([file]) as index:
        assert len(index) == 2
        assert f"2 lines are no rewards and are not shown: {file}, line 3: " in index.notes()[0]
        assert "2 samples have no texts" in index.notes()[1]
        assert "aspects" in json.loads(index.details(1))["unusable"]


def test_index_goes_without_files_that_were_removed_meanwhile(tmp_path: Path) -> None:
    kept = write_lines(tmp_path / "b.jsonl", [captured("1", sample("?", "!"), reward(1), time=5.5)])
    with RewardIndex([tmp_path / "a.jsonl", kept]) as index:
        overview = index.overview()
    assert overview["files"] == [str(kept)]
    assert overview["columns"]["time"] == [5.5]
    assert overview["notes"] == ["1 files were removed before they were read."]
    with pytest.raises(ViewError, match="no such file"):
        RewardIndex([tmp_path / "a.jsonl"])


def test_index_of_samples_without_rewards_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "samples.jsonl", [sample("?", "!")])
    with pytest.raises(ViewError, match=r"no line has a reward .*line 1: it has no `reward`"):
        RewardIndex([file])


def test_picked_keeps_groups_whole(tmp_path: Path) -> None:
    lines = [
        captured(str(group), sample("?", "!"), reward(group - 10 * member))
        for group in range(6)
        for member in range(2)
    ]
    with RewardIndex([write_lines(tmp_path / "f.jsonl", lines)]) as index:
        assert picked(index, 6, Pick.EVEN) == [0, 1, 4, 5, 8, 9]
        assert picked(index, 3, Pick.WORST) == [0, 1, 2]
        assert picked(index, 4, Pick.BEST) == [8, 9, 10, 11]
        assert picked(index, 12, Pick.BEST) == list(range(12))


def test_file_allows_only_its_own_script_and_has_texts_as_data(capture: Path) -> None:
    with RewardIndex([capture]) as index:
        page = html_file(index, 4, Pick.EVEN).content.decode()
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'sha")
    assert not re.search(r"^(import|export)\b", script, re.M)
    assert not re.search(r'(src|href)="(?!data:)', page)
    (overview,) = block(page, "overview")
    assert overview["notes"][0].startswith("This file shows 4 of 5 samples (whole groups")
    texts = [one["completion"] for one in block(page, "samples")]
    assert texts == ["AB first", "AB second", "ÉTÉ third", "fourth </script><b>"]


def test_json_text_has_no_markup_and_keeps_lone_surrogates() -> None:
    text = json_text({"a": "</script>\ud800\u2028\n"})
    assert "<" not in text
    assert "\n" not in text
    assert json.loads(text.encode()) == {"a": "</script>\ud800\u2028\n"}


async def test_local_server_answers_below_its_token_alone(capture: Path) -> None:
    with RewardIndex([capture]) as index:
        transport = httpx.ASGITransport(view_app(index, "token"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            page = await client.get("/token/")
            assert "connect-src 'self'" in page.text
            assert (await client.get("/token/overview")).json()["files"] == [str(capture)]
            found = (await client.get("/token/samples", params={"at": "3,0,99"})).json()
            assert [one["at"] for one in found] == [3, 0]
            assert (await client.get("/token/search", params={"text": "THIRD"})).json() == [2]
            assert (await client.get("/token/samples", params={"at": "x"})).status_code == 422
            for path in ("/", "/overview", "/other/overview"):
                assert (await client.get(path)).status_code == 404


def test_view_command_writes_a_file_and_says_what_it_leaves_out(
    capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = capture.parent / "rewards.html"
    assert main(["view", str(capture.parent), "--out", str(out), "--limit", "2"]) == 0
    assert "the file has 2 of 5 samples" in capsys.readouterr().err
    assert len(block(out.read_text(), "samples")) == 2
    assert main(["view", str(capture), "--out", str(capture)]) == 1
    assert "one of the files to be read" in capsys.readouterr().err


def test_view_command_refuses_a_port_that_is_taken(
    capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["view", str(capture), "--port", port, "--no-browser"]) == 1
    assert "set --port" in capsys.readouterr().err
