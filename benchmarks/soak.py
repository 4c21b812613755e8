"""Runs a server under load with all the faults of tests/faults; prints the counts.

Callers send requests through a proxy that cuts, delays and corrupts them; other clients send bodies
that never end or do not read responses; the server is killed repeatedly. Exits with 1 if a reward
was wrong or lost, if memory grew, or if the server does not recover afterwards.
"""

import argparse
import contextlib
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]  # the faults come from the tests

from callers import Tally, ask, load, sample, truth_of  # noqa: E402
from proxy import Proxy, proxied  # noqa: E402
from raw import head, resident_mib  # noqa: E402
from restarts import Restartable, restartable  # noqa: E402

from alarm_client._retry import Retries  # noqa: E402
from alarm_client.client import AlarmClient  # noqa: E402

NUM_TEXTS = 500
SAMPLES_A_CALL = 4
FLAGS = ("--max-queued-tokens", "2000", "--max-body-bytes", str(1 << 20), "--body-timeout-s", "2")
MOST_GROWTH_MIB = 200


@dataclass
class Soak:
    """The results of a run; `tally` has the callers' counts."""

    tally: Tally = field(default_factory=Tally)
    num_calls: int = 0
    num_kills: int = 0
    num_rude: int = 0
    resident_mib: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_good(self) -> bool:
        """Whether every reward was right, every call ended, and memory did not grow."""
        lost = self.num_calls * SAMPLES_A_CALL - self.tally.right - len(self.tally.wrong)
        lost -= sum(self.tally.errors.values()) * SAMPLES_A_CALL
        growth = max(self.resident_mib) - self.resident_mib[0]
        return not self.tally.wrong and lost == 0 and growth < MOST_GROWTH_MIB

    def report(self, proxy: Proxy) -> dict[str, object]:
        """Return the results as JSON types."""
        return {
            "calls": self.num_calls,
            "rewards_right": self.tally.right,
            "rewards_wrong": self.tally.wrong[:10],
            "calls_refused": dict(self.tally.errors),
            "kills": self.num_kills,
            "rude_callers": self.num_rude,
            "proxy": proxy.seen,
            "resident_mib": {
                "first": round(self.resident_mib[0]),
                "most": round(max(self.resident_mib)),
                "last": round(self.resident_mib[-1]),
            },
        }


def main() -> int:
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--kill-every", type=float, default=300, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its server is stopped too
    with restartable(*FLAGS) as server:
        with AlarmClient(server.url) as client:
            client.wait_ready(timeout=120)
        truth = truth_of(server.url, NUM_TEXTS)
        address = ("127.0.0.1", server.port)
        proxy = Proxy(address, cut=0.01, delayed=0.05, garbled=0.01, seed=options.seed)
        soak = Soak(resident_mib=[resident_mib(server.popen.pid)])
        with proxied(proxy):
            disturb(soak, server, proxy, truth, options)
        print(json.dumps(soak.report(proxy)), flush=True)
        with AlarmClient(server.url) as client:
            after = load(client, truth, num_callers=4, num_calls=50, size=SAMPLES_A_CALL)
    print(json.dumps({"left_alone": after.right, "of": 50 * SAMPLES_A_CALL}))
    return 0 if soak.is_good and after.right == 50 * SAMPLES_A_CALL else 1


def disturb(
    soak: Soak,
    server: Restartable,
    proxy: Proxy,
    truth: Mapping[int, float],
    options: argparse.Namespace,
) -> None:
    """Run callers and faults concurrently until the time is up."""
    threads = [
        threading.Thread(target=call, args=(soak, proxy, truth, number))
        for number in range(options.callers)
    ]
    threads.append(threading.Thread(target=be_rude, args=(soak, server, options.seed)))
    for thread in threads:
        thread.start()
    try:
        watch(soak, server, proxy, options)
    finally:
        soak.over.set()
        for thread in threads:
            thread.join()


def watch(soak: Soak, server: Restartable, proxy: Proxy, options: argparse.Namespace) -> None:
    """Kill the server from time to time, record its memory, and print a line per minute."""
    told = killed = started = time.monotonic()
    while (now := time.monotonic()) - started < options.minutes * 60:
        time.sleep(1)
        soak.resident_mib.append(resident_mib(server.popen.pid))
        if now - killed > options.kill_every:
            killed = now
            server.kill()
            server.start()
            soak.num_kills += 1
        if now - told > 60:
            told = now
            print(json.dumps(soak.report(proxy)), flush=True)


def call(soak: Soak, proxy: Proxy, truth: Mapping[int, float], number: int) -> None:
    """Send requests in a loop, with a connection of its own."""
    retries = Retries(first=0.1, longest=2.0, max_reconnects=100)
    with AlarmClient(proxy.url, timeout=60, retries=retries) as client:
        start = number * 61
        while not soak.over.is_set():
            ask(client, truth, soak.tally, start, SAMPLES_A_CALL)
            start += SAMPLES_A_CALL
            with soak.lock:
                soak.num_calls += 1


def be_rude(soak: Soak, server: Restartable, seed: int) -> None:
    """Send endless bodies, or complete ones whose responses are not read, eight at a time."""
    rng = random.Random(seed)
    one = sample(1)
    whole = json.dumps({"samples": [{"prompt": one.prompt, "completion": one.completion}] * 30})
    kinds = [
        head(Content_Length=1 << 20) + b" " * (1 << 19),
        head(Transfer_Encoding="chunked") + b"5\r\n{",
        head(Content_Type="application/json", Content_Length=len(whole)) + whole.encode(),
        head(Content_Length=1 << 30),
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
    ]
    while not soak.over.wait(rng.uniform(0, 2)):
        with contextlib.ExitStack() as connections:
            for _ in range(8):
                with contextlib.suppress(OSError):  # the server may be down
                    address = ("127.0.0.1", server.port)
                    caller = connections.enter_context(socket.create_connection(address, 1))
                    caller.sendall(rng.choice(kinds))
                    soak.num_rude += 1
            soak.over.wait(rng.uniform(0, 3))


if __name__ == "__main__":
    sys.exit(main())
