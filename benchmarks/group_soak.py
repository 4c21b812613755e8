"""Sends the samples of groups one by one, and loses, repeats, reorders, delays and drops them.

A real server scores groups by `mo_grpo`. Each reward is compared with that of the whole group in
one request. Prints the counts as JSON; exits with 1 if a reward was wrong or a request hung.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from restarts import restartable  # noqa: E402

GROUP_TIMEOUT_S = 5.0
#: How much longer than the group's timeout a request may take: it is scored as well.
GRACE_S = 20.0
WORDS = ["the", "answer", "is", "a", "river", "near", "old", "stone", "house", "with", "green"]
LARGEST_DIFFERENCE = 1e-4

Sample = dict[str, Any]


@dataclass
class Tally:
    """What became of the samples."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)


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


async def post(client: httpx.AsyncClient, samples: list[Sample], tally: Tally) -> list[Any]:
    """Return the results of samples; a request that hangs is noted."""
    started = time.monotonic()
    try:
        answer = await client.post(
            "/hierarchical_reward", json={"samples": samples}, timeout=GROUP_TIMEOUT_S + GRACE_S
        )
    except httpx.TimeoutException as error:
        seconds = time.monotonic() - started
        tally.hung.append(f"{samples[0]['group']} {samples[0]['id']}: {error!r}, {seconds:.1f} s")
        return []
    answer.raise_for_status()
    results: list[Any] = answer.json()["rewards"]
    return results


async def send(
    client: httpx.AsyncClient, sample: Sample, rng: random.Random, tally: Tally
) -> list[Any]:
    """Send one sample late, twice, or after a connection that was dropped; return its results."""
    await asyncio.sleep(rng.random() * 0.5)
    fate = rng.random()
    if fate < 0.15:
        tally.counts["disconnected"] += 1
        try:
            await asyncio.wait_for(post(client, [sample], Tally()), rng.random() * 0.3)
        except TimeoutError:
            await asyncio.sleep(rng.random() * 0.3)
    elif fate < 0.25:
        tally.counts["sent twice"] += 1
        twice = await asyncio.gather(*(post(client, [sample], tally) for _ in range(2)))
        return [result for results in twice for result in results]
    elif fate < 0.3:
        tally.counts["answer lost"] += 1
        await post(client, [sample], tally)
    return await post(client, [sample], tally)


async def one_group(client: httpx.AsyncClient, name: str, rng: random.Random, tally: Tally) -> None:
    """Send a group with faults, and compare each result with that of the whole group."""
    samples = group_of(name, rng)
    together = [{**sample, "group": f"whole {name}"} for sample in samples]
    wanted = [one["reward"] for one in await post(client, together, tally)]
    if not wanted:  # which was noted
        return
    fault = rng.random()
    sent = list(enumerate(samples))
    if fault < 0.15:
        lost = sent.pop(rng.randrange(len(sent)))
        tally.counts["lost"] += bool(lost)
    elif fault < 0.25:
        other = {**samples[0], "completion": samples[0]["completion"] + " Or not."}
        if fault < 0.2:
            other["id"] = f"{name}-more"
        tally.counts["contradicting or too many"] += 1
        sent.append((-1, other))
    rng.shuffle(sent)
    results = await asyncio.gather(*(send(client, sample, rng, tally) for _, sample in sent))
    tally.counts["groups"] += 1
    for (index, sample), found in zip(sent, results, strict=True):
        for result in found:
            if result["error"] is not None:
                tally.counts[result["error"]["code"]] += 1
                if len(sent) == len(samples) and index >= 0 and fault >= 0.25:
                    tally.wrong.append(f"{sample['id']}: {result['error']['message']}")
            elif len(sent) < len(samples):
                tally.wrong.append(f"{sample['id']} has a reward without its whole group")
            elif index < 0 or fault < 0.25:
                # Which of two contradicting samples is taken depends on which comes first.
                tally.counts["not compared"] += 1
            elif abs(result["reward"] - wanted[index]) > LARGEST_DIFFERENCE:
                tally.wrong.append(f"{sample['id']}: {result['reward']} for {wanted[index]}")
            else:
                tally.counts["right"] += 1


async def run(url: str, seconds: float, concurrency: int, seed: int) -> Tally:
    """Send groups for some seconds."""
    tally, ends = Tally(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

    async with httpx.AsyncClient(base_url=url, limits=limits) as client:

        async def worker(number: int) -> None:
            rng = random.Random(seed * 1000 + number)
            step = 0
            while time.monotonic() < ends:
                await one_group(client, f"{number}/{step}", rng, tally)
                step += 1

        await until_ready(client)
        await asyncio.gather(*(worker(number) for number in range(concurrency)))
        metrics = (await client.get("/metrics")).text
    names = ("alarm_open_groups", "alarm_waiting_members", "alarm_groups_total")
    for line in metrics.splitlines():
        if line.startswith(names):
            name, value = line.rsplit(maxsplit=1)
            tally.counts[name] = int(float(value))
    return tally


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until the models are loaded."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/health/ready")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.2)


def main() -> int:
    """Run against a server of the recipe `mini`; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flags = ["--set", "hierarchy.rule=mo_grpo", "--set", f"group_timeout_s={GROUP_TIMEOUT_S:g}"]
    with restartable("--recipe", "mini", *flags) as server:
        found = run(server.url, options.seconds, options.concurrency, options.seed)
        tally = asyncio.run(found)
    print(json.dumps({**tally.counts, "wrong": tally.wrong, "hung": tally.hung}, indent=2))
    return 1 if tally.wrong or tally.hung else 0


if __name__ == "__main__":
    sys.exit(main())
