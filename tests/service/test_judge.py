"""An LLM judge on a real HTTP server: both orders, cache, bounded concurrency, failures."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alarm_models.study.bootstrap import Resampling
from alarm_service.cli.main import main
from alarm_service.evaluation.dataset import read_policies
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.judge import (
    AnswerCache,
    Choice,
    Cost,
    Judge,
    ask_all,
    cost_of,
    duels_of,
    outcome_of,
    read_choice,
)
from alarm_service.evaluation.judge_report import JudgementResult, judge_pairs, settle


@dataclass
class Endpoint:
    """Prefers the longer answer; some words make it misbehave."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    num_now: int = 0
    most_at_once: int = 0
    #: Statuses that the next requests are answered with before they are served.
    faults: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.bodies.append(body)
            if self.faults:
                return self.faults.pop(0), {"error": "not now"}
        asked = body["messages"][-1]["content"]
        first, second = (
            re.search(f"<answer_{one}>\n(.*)\n</answer_{one}>", asked, re.DOTALL).group(1)  # type: ignore[union-attr]
            for one in "AB"
        )
        if "too long" in asked:
            return 400, {"error": "the context is too long"}
        choice = "A" if len(first) > len(second) else "B"
        if "in order" in asked:
            choice = "A"
        text = f"They differ.\nVerdict: {choice}"
        if "mumble" in asked:
            text = "I would rather not say."
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        row = {"message": {"content": text}, "finish_reason": "stop"}
        if "cut off" in asked:
            row["finish_reason"] = "length"
        if "odd" in asked:
            row["message"]["content"] = f"\ud83d {text}"
        return 200, {"choices": [row], "usage": usage}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with state.lock:
                state.num_now += 1
                state.most_at_once = max(state.most_at_once, state.num_now)
                state.keys.append(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = state.answer(body)
            content = json.dumps(answer).encode()
            with state.lock:
                state.num_now -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            with suppress(BrokenPipeError):  # the caller gave up
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Court:
    """Two policies' answers before a judge."""

    endpoint: Endpoint
    folder: Path
    answers: tuple[tuple[str, str], ...]
    concurrency: int = 3

    @property
    def judge(self) -> Judge:
        body = {"model": "wise", "max_tokens": 50}
        return Judge(self.endpoint.url, "sesame", "Which is longer?", body, self.concurrency, 30)

    def run(self) -> tuple[JudgementResult, Cost]:
        for column, name in enumerate(("one", "two")):
            lines = [
                json.dumps({"prompt": f"p{index}", "completion": pair[column]})
                for index, pair in enumerate(self.answers)
            ]
            (self.folder / name).write_text("\n".join(lines))
        material = read_policies({name: self.folder / name for name in ("one", "two")})
        duels = duels_of(material, judge_pairs(material), self.judge)
        cache = AnswerCache(self.folder / "cache.jsonl")
        cost = cost_of(duels, cache, self.judge, (1.0, 2.0))
        with cache:
            refused = asyncio.run(ask_all(duels, cache, self.judge, lambda: None))
        resampling = Resampling(num_draws=100)
        return settle(material, duels, cache, "wise", resampling, refused), cost


def test_judge_asks_in_both_orders(endpoint: Endpoint, tmp_path: Path) -> None:
    found, _ = Court(endpoint, tmp_path, (("long answer", "short"), ("s", "longer"))).run()
    assert [one.outcome for one in found.judgements] == [1, -1]
    assert [(one.forward, one.backward) for one in found.judgements] == [("A", "B"), ("B", "A")]
    assert len(endpoint.bodies) == 4
    assert set(endpoint.keys) == {"Bearer sesame"}
    rate = found.rates[0][1]
    assert rate is not None
    assert (rate.wins, rate.losses, rate.rate.value) == (1, 1, 0.5)
    assert (found.prompt_tokens, found.answer_tokens) == (40, 8)


def test_judge_that_prefers_a_position_is_not_a_win(endpoint: Endpoint, tmp_path: Path) -> None:
    found, _ = Court(endpoint, tmp_path, (("in order", "b"), ("in order", "longer still"))).run()
    assert [one.outcome for one in found.judgements] == [0, 0]
    assert found.order_share == 1
    assert found.first_shown_share == 1


def test_judge_equal_texts_are_a_tie_without_requests(endpoint: Endpoint, tmp_path: Path) -> None:
    found, cost = Court(endpoint, tmp_path, (("same", "same "),)).run()
    assert found.judgements[0].outcome == 0
    assert (found.num_same, cost.num_asks, len(endpoint.bodies)) == (1, 0, 0)


def test_judge_response_without_verdict_is_counted_and_left_out(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    # The reference scripts reuse the pair before; here it must not be a second win.
    found, _ = Court(endpoint, tmp_path, (("longer", "s"), ("mumble", "m"))).run()
    assert found.num_unread == 1
    rate = found.rates[0][1]
    assert rate is not None
    assert (rate.wins, rate.losses, rate.ties) == (1, 0, 0)


def test_judge_answer_without_an_end_is_no_verdict_and_not_cached(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    court = Court(endpoint, tmp_path, (("cut off", "x"), ("odd one", "s")))
    found, _ = court.run()
    assert str(found.judgements[0].outcome) == "nan"
    assert found.judgements[1].outcome == 1
    assert len(found.refused) == 2
    _, cost = court.run()
    assert (cost.num_asks, cost.num_cached) == (2, 2)


def test_judge_cache_prevents_repeated_requests(endpoint: Endpoint, tmp_path: Path) -> None:
    court = Court(endpoint, tmp_path, (("longer", "s"), ("a", "bb")))
    first, cost = court.run()
    again, nothing = court.run()
    assert (cost.num_asks, nothing.num_asks, nothing.num_cached) == (4, 0, 4)
    assert len(endpoint.bodies) == 4
    assert again.judgements == first.judgements


def test_judge_interrupted_run_continues_from_the_cache(endpoint: Endpoint, tmp_path: Path) -> None:
    court = Court(endpoint, tmp_path, tuple((f"longer {n}", f"s {n}") for n in range(6)))
    whole, _ = court.run()
    cache = tmp_path / "cache.jsonl"
    kept = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"".join(kept[:7]) + kept[7][:20])  # killed in the middle of a line
    endpoint.bodies.clear()
    again, cost = court.run()
    assert (cost.num_asks, len(endpoint.bodies)) == (5, 5)
    assert again.judgements == whole.judgements
    assert court.run()[1].num_asks == 0


def test_judge_bounds_concurrent_requests(endpoint: Endpoint, tmp_path: Path) -> None:
    answers = tuple((f"longer {n}", f"s {n}") for n in range(20))
    Court(endpoint, tmp_path, answers, concurrency=2).run()
    assert len(endpoint.bodies) == 40
    assert endpoint.most_at_once <= 2


def test_judge_retries_when_busy(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults += [429, 503]
    found, _ = Court(endpoint, tmp_path, (("longer", "s"),)).run()
    assert found.judgements[0].outcome == 1
    assert len(endpoint.bodies) == 4


def test_judge_refused_request_fails_only_its_pair(endpoint: Endpoint, tmp_path: Path) -> None:
    found, _ = Court(endpoint, tmp_path, (("too long", "x"), ("longer", "s"))).run()
    assert str(found.judgements[0].outcome) == "nan"
    assert found.judgements[1].outcome == 1
    assert len(found.refused) == 2
    assert "the context is too long" in found.refused[0]


def test_judge_wrong_key_stops_the_run_and_keeps_the_cache(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    court = Court(endpoint, tmp_path, (("longer", "s"), ("longest", "t")), concurrency=1)
    court.run()
    more = Court(endpoint, tmp_path, (*court.answers, ("new", "n")), concurrency=1)
    endpoint.faults += [401]
    with pytest.raises(StudyError, match="returned 401"):
        more.run()
    assert more.run()[1].num_cached == 4


def test_judge_estimates_the_cost_first(endpoint: Endpoint, tmp_path: Path) -> None:
    _, cost = Court(endpoint, tmp_path, (("longer", "s"), ("same", "same"))).run()
    characters = sum(len(one["content"]) for body in endpoint.bodies for one in body["messages"])
    assert (cost.num_asks, cost.num_same) == (2, 1)
    assert cost.prompt_tokens == characters // 4
    assert cost.max_answer_tokens == 100
    assert cost.money == pytest.approx((characters // 4 * 1.0 + 100 * 2.0) / 1e6)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Verdict: A", Choice.A),
        ("**Verdict:** B.", Choice.B),
        ("Verdict: A? No.\nverdict: tie", Choice.TIE),
        ("Both are fine. Verdict: `Tie`", Choice.TIE),
        ("Verdict: Apples are better", None),
        ("Verdict: a close call", None),
        ("Verdict: A tie", Choice.TIE),
        ("Verdict: A or B", None),
        ("Verdict: A/B", None),
        ("The verdict is B.", Choice.B),
        ("Verdict: [[A]]", Choice.A),
        ("Verdict: A (it is longer)", Choice.A),
        ("My verdict: a good answer. Verdict: B", Choice.B),
        ("<think>Verdict: A?</think>Verdict: B", Choice.B),
        ("<think>Verdict: A", None),
        ("A is better", None),
        ("", None),
    ],
)
def test_parse_verdict_reads_the_last_one(text: str, choice: Choice | None) -> None:
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [
        ("A", "B", 1),
        ("B", "A", -1),
        ("A", "A", 0),
        ("B", "B", 0),
        ("A", "tie", 0),
        ("tie", "tie", 0),
    ],
)
def test_judge_win_requires_both_orders(forward: str, backward: str, outcome: float) -> None:
    assert outcome_of(Choice(forward), Choice(backward)) == outcome


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, text in (("one", "a longer answer"), ("two", "short")):
        line = json.dumps({"prompt": "p", "completion": text})
        (tmp_path / f"{name}.jsonl").write_text(line)
    return [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]


def judge(endpoint: Endpoint, files: list[str], cache: Path, *flags: str) -> int:
    at = ["--endpoint", endpoint.url, "--model", "wise", "--cache", str(cache)]
    return main(["judge", *files, *at, *flags])


def test_judge_command_without_anything_to_ask_writes_no_cache(
    endpoint: Endpoint, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache.jsonl"
    assert judge(endpoint, [f"a={files[0]}", f"b={files[0]}"], cache) == 0
    assert not cache.exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "1 pairs of equal texts are ties" in said
    assert "shown first" not in said


def test_judge_command_writes_a_report(
    endpoint: Endpoint,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    out = tmp_path / "out"
    flags = ("--yes", "--json", "--out", str(out), "--body", '{"temperature": null}')
    assert judge(endpoint, files, tmp_path / "cache", *flags) == 0
    shown = capsys.readouterr()
    assert "2 requests to wise" in shown.err
    assert json.loads(shown.out)["judgements"][0]["outcome"] == 1
    assert endpoint.bodies[0].keys() == {"model", "max_tokens", "messages"}
    assert "sesame" not in shown.out + shown.err + (out / "report.html").read_text()


def test_judge_command_without_terminal_requires_yes(
    endpoint: Endpoint, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(endpoint, files, tmp_path / "cache") == 1
    assert "no requests were sent" in capsys.readouterr().err
    assert judge(endpoint, files, tmp_path / "cache", "--cost") == 0
    assert endpoint.bodies == []


@pytest.mark.parametrize(
    "content",
    [
        "# Notes\n",
        '{"prompt": "?", "completion": "a"}\n',
        '{"key":"k","text":"a"}\nnotes\n',
        "\x00\x01",
    ],
)
@pytest.mark.parametrize("flag", ["--yes", "--cost"])
def test_judge_cache_that_is_another_file_is_refused_unchanged(
    content: str,
    flag: str,
    endpoint: Endpoint,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    cache.write_text(content)
    assert judge(endpoint, files, cache, flag) == 1
    assert "is not a judge's answer: --cache must be a new file" in capsys.readouterr().err
    assert cache.read_text() == content
    assert endpoint.bodies == []


@pytest.mark.parametrize("key", ["sé-same", "se\nsame", "se\x01same"])
def test_judge_key_invalid_in_a_header_is_refused(
    key: str,
    endpoint: Endpoint,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert judge(endpoint, files, tmp_path / "cache", "--yes") == 1
    told = capsys.readouterr().err
    assert told.startswith("alarm: OPENAI_API_KEY: the key has ")
    assert "same" not in told
    monkeypatch.setenv("OPENAI_API_KEY", "sesame\n")
    assert judge(endpoint, files, tmp_path / "cache", "--yes", "--json") == 0
    assert set(endpoint.keys) == {"Bearer sesame"}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://[::1", "http://h:port", ""])
def test_judge_without_address_is_refused(
    url: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(Endpoint(url), files, tmp_path / "cache", "--yes") == 1
    told = capsys.readouterr().err
    assert told.startswith("alarm: --endpoint")
    assert told.count("\n") == 1


def test_judge_accepts_address_ranges_in_no_proxy(
    endpoint: Endpoint, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "fd00:10:244::/56")
    monkeypatch.setenv("no_proxy", "fd00:10:244::/56")
    assert judge(endpoint, files, tmp_path / "cache", "--yes", "--json") == 0


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"choices": []},
        {"choices": [{"message": {"content": ["Verdict: A"]}}]},
        {"choices": [{"message": {"content": "Verdict: A"}}], "usage": [1]},
        {"choices": [{"message": {"content": "Verdict: A"}}], "usage": {"prompt_tokens": "x"}},
        {"choices": "x" * 100_000},
    ],
)
def test_judge_with_unexpected_response_format_stops_with_a_sentence(
    answer: Any,
    endpoint: Endpoint,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "answer", lambda _: (200, answer))
    assert judge(endpoint, files, tmp_path / "cache", "--yes") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("alarm: the judge's response is not a valid chat completion")
    assert len(told) < 400
