"""Connections that are cut, delayed or corrupted never give a wrong reward."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from callers import Tally, ask, load
from proxy import Proxy, proxied
from restarts import Restartable

from alarm_client._retry import Retries
from alarm_client.client import AlarmClient

PATIENT = Retries(first=0.02, longest=0.2, max_reconnects=50)


def through(proxy: Proxy, truth: Mapping[int, float], num_calls: int = 30) -> Tally:
    with proxied(proxy), AlarmClient(proxy.url, timeout=30, retries=PATIENT) as client:
        return load(client, truth, num_callers=4, num_calls=num_calls)


def test_cut_connections_are_retried_and_lose_no_reward(
    server: Restartable, truth: Mapping[int, float]
) -> None:
    proxy = Proxy(server.address, cut=0.1)
    tally = through(proxy, truth)
    assert proxy.seen["cut"] > 5
    assert (tally.right, tally.wrong, tally.errors) == (120, [], {})


def test_delayed_data_changes_no_reward(server: Restartable, truth: Mapping[int, float]) -> None:
    proxy = Proxy(server.address, delayed=0.3, longest_s=0.03)
    tally = through(proxy, truth)
    assert proxy.seen["delayed"] > 20
    assert (tally.right, tally.wrong, tally.errors) == (120, [], {})


@pytest.mark.parametrize("seed", range(2))
def test_corrupted_bytes_cause_an_error_or_a_retry_and_no_wrong_reward(
    server: Restartable, truth: Mapping[int, float], seed: int
) -> None:
    proxy = Proxy(server.address, garbled=0.1, cut=0.01, seed=seed)
    with proxied(proxy), AlarmClient(proxy.url, timeout=2, retries=PATIENT) as client:
        tally = load(client, truth, num_callers=4, num_calls=30)
    assert proxy.seen["garbled"] >= 5  # of some hundred pieces; a fast server's are fewer
    assert tally.wrong == []
    assert tally.right > 60  # garbled bodies are sent again; garbled heads may be an error


@dataclass
class Forging(Proxy):
    """Replaces each of the given bytes once, in either direction."""

    garbled: float = 1.0
    pieces_between: int = 0
    piece_bytes: int = 1 << 16
    changes: tuple[tuple[bytes, bytes], ...] = ()
    made: set[bytes] = field(default_factory=set)

    def _garble(self, piece: bytes) -> bytes:
        for old, new in self.changes:
            if old not in self.made and old in piece:
                self.made.add(old)
                piece = piece.replace(old, new, 1)
        return piece


@pytest.mark.parametrize(
    "changes",
    [
        ((b"So say 7 of us", b"So say 8 of us"),),
        ((b'"reward":', b'"reward":1'),),
        ((b"\r\ncontent-digest", b"\r\nxontent-digest"),),
        ((b"/hierarchical_reward HTTP/1.1", b"/hierarchical_reward HTUP/1.1"),),
    ],
    ids=["a request", "an answer", "the name of an answer's digest", "a head that is no HTTP"],
)
def test_request_or_response_changed_in_transit_is_sent_again(
    server: Restartable, truth: Mapping[int, float], changes: tuple[tuple[bytes, bytes], ...]
) -> None:
    proxy = Forging(server.address, changes=changes)
    tally = Tally()
    with proxied(proxy), AlarmClient(proxy.url, timeout=30, retries=PATIENT) as client:
        ask(client, truth, tally, 7, 1)
    assert proxy.made == {old for old, _ in changes}
    assert (tally.right, tally.wrong, tally.errors) == (1, [], {})
