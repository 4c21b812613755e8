"""Sends the samples of groups one by one, and loses, repeats, reorders, delays and drops them.

A real server scores groups by `mo_grpo`. Each reward is compared with that of the whole group in
one request. The report, as JSON, tells apart

- `wrong`: rewards that differ, or that a group without all its samples has
- `hung`: requests of members that the server held longer than the group's timeout and the time
  for scoring, which is `--grace` or, on a slow machine, twice that of the slowest whole group
- `errors`: samples with a named error, by code, and `late`: those of groups whose samples were all
  sent within the timeout, which the server was too slow to read
- `client`: what the client did itself: tries after 429, 503 or a broken connection, the longest
  time before a request was on its way, and how late its own event loop was

Exits with 1 if a reward was wrong or a request hung.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from restarts import restartable  # noqa: E402

WORDS = ["the", "answer", "is", "a", "river", "near", "old", "stone", "house", "with", "green"]
LARGEST_DIFFERENCE = 1e-4
#: Statuses that say to send the request again; a try waits as long as the server says.
RETRIED = frozenset({429, 503})
MOST_TRIES = 10
#: A request without an answer for this long is given up.
LONGEST_S = 120.0

Sample = dict[str, Any]


@dataclass
class Tally:
    """What became of the samples."""

    faults: Counter[str] = field(default_factory=Counter)
    num_groups: int = 0
    num_right: int = 0
    num_not_compared: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    #: Seconds from a request to its answer: of whole groups, and of members by their names.
    whole_s: list[float] = field(default_factory=list)
    member_s: list[tuple[float, str]] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    longest_unsent_s: float = 0.0
    largest_lag_s: float = 0.0
    metrics: dict[str, int] = field(default_factory=dict)

    def hung(self, group_timeout_s: float, grace_s: float) -> list[str]:
        """Return the members that waited past their deadline."""
        scoring_s = max([grace_s, *(2 * seconds for seconds in self.whole_s)])
        return [
            f"{name}: {seconds:.1f} s"
            for seconds, name in self.member_s
            if seconds > group_timeout_s + scoring_s
        ]

    def report(self, group_timeout_s: float, grace_s: float) -> dict[str, Any]:
        """Return the results as JSON types."""
        return {
            "groups": self.num_groups,
            "faults": dict(self.faults),
            "right": self.num_right,
            "wrong": self.wrong,
            "hung": self.hung(group_timeout_s, grace_s),
            "errors": dict(self.errors),
            "late": dict(self.late),
            "not_compared": self.num_not_compared,
            "slowest_whole_group_s": round(max(self.whole_s, default=0), 2),
            "slowest_member_s": round(max(self.member_s, default=(0.0, ""))[0], 2),
            "client": {
                "retries": dict(self.retries),
                "longest_unsent_s": round(self.longest_unsent_s, 2),
                "largest_lag_s": round(self.largest_lag_s, 2),
            },
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class Answer:
    """The results of a request, and when the last try of it had been sent."""

    results: Sequence[Any]
    sent: float


class Sender:
    """Sends samples, and notes what the server and what the client took long for."""

    def __init__(self, client: httpx.AsyncClient, tally: Tally) -> None:
        self._client = client
        self._tally = tally

    async def post(self, samples: Sequence[Sample]) -> Answer:
        """Return the results of samples; a request without an answer has none."""
        for _ in range(MOST_TRIES):
            try:
                answer = await self._try(samples)
            except httpx.TransportError as error:
                self._tally.retries[type(error).__name__] += 1
                await asyncio.sleep(0.1)
                continue
            if not isinstance(answer, httpx.Response):
                return answer
            self._tally.retries[str(answer.status_code)] += 1
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        raise RuntimeError(f"no answer in {MOST_TRIES} tries")

    async def _try(self, samples: Sequence[Sample]) -> Answer | httpx.Response:
        """Return the answer, or a refusal that may be tried again."""
        begun = time.monotonic()
        sent = begun

        async def trace(event: str, _: object) -> None:
            nonlocal sent
            if event.endswith("send_request_body.complete"):
                sent = time.monotonic()

        try:
            response = await self._client.post(
                "/hierarchical_reward",
                json={"samples": samples},
                timeout=LONGEST_S,
                extensions={"trace": trace},
            )
        except httpx.ReadTimeout:
            self._note(samples, time.monotonic() - sent)
            return Answer((), sent)
        # What passed before the request was on its way is not the server's time.
        self._tally.longest_unsent_s = max(self._tally.longest_unsent_s, sent - begun)
        self._note(samples, time.monotonic() - sent)
        if response.status_code in RETRIED:
            return response
        response.raise_for_status()
        return Answer(response.json()["rewards"], sent)

    def _note(self, samples: Sequence[Sample], seconds: float) -> None:
        if samples[0]["group_size"] == len(samples):
            self._tally.whole_s.append(seconds)
        else:
            self._tally.member_s.append((seconds, samples[0]["id"]))


def group_of(name: str, rng: random.Random) -> list[Sample]:
    """Return the samples of one group."""
    prompt = f"question: what is {' '.join(rng.choices(WORDS, k=6))}? context: none"
    size = rng.randint(2, 8)
    return [
        {
            "id": f"{name}-{index}",
            "prompt": prompt,
            "completion": " ".join(rng.choices(WORDS, k=rng.randint(1, 30))) + ".",
            "group": name,
            "group_size": size,
        }
        for index in range(size)
    ]


async def send(sender: Sender, sample: Sample, rng: random.Random, tally: Tally) -> list[Answer]:
    """Send one sample late, twice, or after a connection that was dropped."""
    await asyncio.sleep(rng.random() * 0.5)
    fate = rng.random()
    times = 1
    if fate < 0.15:
        tally.faults["disconnected"] += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sender.post([sample]), rng.random() * 0.3)
        await asyncio.sleep(rng.random() * 0.3)
    elif fate < 0.25:
        tally.faults["sent twice"] += 1
        times = 2
    elif fate < 0.3:
        tally.faults["answer lost"] += 1
        await sender.post([sample])
    return await asyncio.gather(*(sender.post([sample]) for _ in range(times)))


@dataclass(frozen=True)
class Plan:
    """The samples of a group as they are sent, with their places, and what is wrong with them."""

    samples: Sequence[Sample]
    sent: Sequence[tuple[int, Sample]]
    fault: str | None

    @classmethod
    def draw(cls, name: str, rng: random.Random, loss: float) -> Plan:
        """Draw a group, of which some lack a sample and some have one that does not belong."""
        samples = group_of(name, rng)
        sent = list(enumerate(samples))
        chance, fault = rng.random(), None
        if chance < loss:
            fault = "lost"
            sent.pop(rng.randrange(len(sent)))
        elif chance < loss + 0.1:
            fault = "contradicting or too many"
            other = {**samples[0], "completion": samples[0]["completion"] + " Or not."}
            if chance < loss + 0.05:
                other["id"] = f"{name}-more"
            sent.append((-1, other))
        rng.shuffle(sent)
        return cls(samples, sent, fault)


async def one_group(
    sender: Sender, plan: Plan, rng: random.Random, group_timeout_s: float, tally: Tally
) -> None:
    """Send a group with faults, and compare each result with that of the whole group."""
    whole = await sender.post([{**one, "group": f"whole {one['group']}"} for one in plan.samples])
    if not whole.results:
        return
    wanted = [one["reward"] for one in whole.results]
    if plan.fault is not None:
        tally.faults[plan.fault] += 1
    answers = await asyncio.gather(*(send(sender, sample, rng, tally) for _, sample in plan.sent))
    tally.num_groups += 1
    times = [answer.sent for found in answers for answer in found]
    in_time = max(times) - min(times) < group_timeout_s
    for (index, sample), found in zip(plan.sent, answers, strict=True):
        for result in (one for answer in found for one in answer.results):
            if result["error"] is not None:
                code = result["error"]["code"]
                tally.errors[code] += 1
                if plan.fault is None and in_time:
                    tally.late[code] += 1
            elif plan.fault == "lost":
                tally.wrong.append(f"{sample['id']} has a reward without its whole group")
            elif plan.fault is not None:
                # Which of two contradicting samples is taken depends on which comes first.
                tally.num_not_compared += 1
            elif abs(result["reward"] - wanted[index]) > LARGEST_DIFFERENCE:
                tally.wrong.append(f"{sample['id']}: {result['reward']} for {wanted[index]}")
            else:
                tally.num_right += 1


async def run(url: str, options: argparse.Namespace) -> Tally:
    """Send groups for some seconds."""
    tally = Tally()
    pool = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

    async with httpx.AsyncClient(base_url=url, limits=pool) as client:
        sender = Sender(client, tally)
        await until_ready(client)
        ends = time.monotonic() + options.seconds

        async def worker(number: int) -> None:
            rng = random.Random(options.seed * 1000 + number)
            step = 0
            while time.monotonic() < ends:
                plan = Plan.draw(f"{number}/{step}", rng, options.loss)
                await one_group(sender, plan, rng, options.group_timeout, tally)
                step += 1

        lag = asyncio.create_task(measure_lag(tally))
        await asyncio.gather(*(worker(number) for number in range(options.concurrency)))
        lag.cancel()
        tally.metrics = dict(group_metrics((await client.get("/metrics")).text))
    return tally


async def measure_lag(tally: Tally) -> None:
    """Note by how much this event loop wakes late."""
    while True:
        asked = time.monotonic() + 0.05
        await asyncio.sleep(0.05)
        tally.largest_lag_s = max(tally.largest_lag_s, time.monotonic() - asked)


def group_metrics(text: str) -> Iterator[tuple[str, int]]:
    """Yield the server's own counts of groups."""
    for line in text.splitlines():
        if line.startswith(("alarm_open_groups", "alarm_waiting_members", "alarm_groups_total")):
            name, value = line.rsplit(maxsplit=1)
            yield name, int(float(value))


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until the models are loaded."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/health/ready")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.2)


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-timeout", type=float, default=5.0)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds for scoring")
    parser.add_argument("--loss", type=float, default=0.15, help="part of groups to lose one of")
    parser.add_argument("--url", help="of a running server; by default one is started")
    return parser.parse_args(arguments)


def main() -> int:
    """Run against a server of the recipe `mini`; return the exit code."""
    options = options_of()
    if options.url:
        tally = asyncio.run(run(options.url, options))
    else:
        flags = ["--set", "hierarchy.rule=mo_grpo"]
        flags += ["--set", f"group_timeout_s={options.group_timeout:g}"]
        with restartable("--recipe", "mini", *flags) as server:
            tally = asyncio.run(run(server.url, options))
    report = tally.report(options.group_timeout, options.grace)
    print(json.dumps(report, indent=2))
    return 1 if report["wrong"] or report["hung"] else 0


if __name__ == "__main__":
    sys.exit(main())
