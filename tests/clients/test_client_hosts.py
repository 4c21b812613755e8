"""A client of several servers: turns, failover, and groups that must meet on one server."""

from __future__ import annotations

import logging
from collections import Counter

import httpx
import pytest
from client_stand_in import StandIn, refusal
from restarting_servers import ask_while_one_restarts, restarting_servers

from alarm_client import (
    AlarmClient,
    AlarmConnectionError,
    AsyncAlarmClient,
    DeadlineExceeded,
    Retries,
    Sample,
)
from alarm_client._address import find_addresses

URLS = ["http://one", "http://two"]
SAMPLE = Sample(prompt="p", completion="four")
HELD = Sample(prompt="p", completion="four", group="g", group_size=2)


class Network:
    """Two servers by their names.

    Those that are `down` refuse connections; those that are `silent` never answer.
    """

    def __init__(self) -> None:
        self.servers = {"one": StandIn(), "two": StandIn()}
        self.down: set[str] = set()
        self.silent: set[str] = set()
        self.tried: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.tried.append(host)
        if host in self.down:
            raise httpx.ConnectError("refused")
        if host in self.silent:
            raise httpx.ReadTimeout("no answer")
        return self.servers[host](request)

    def client(self, **more: object) -> AlarmClient:
        return AlarmClient(URLS, transport=httpx.MockTransport(self), **more)


def test_calls_go_to_the_servers_in_turn():
    network = Network()
    client = network.client()
    for _ in range(4):
        client.score([SAMPLE])
    assert Counter(network.tried) == {"one": 2, "two": 2}


def test_retry_goes_to_the_next_server_at_once_and_the_other_is_skipped():
    network = Network()
    network.down.add("one")
    client = network.client(retries=Retries(first=100))
    results = [client.score([SAMPLE]) for _ in range(4)]
    assert [result.scores[0].score for result in results] == [4.0] * 4
    assert Counter(network.tried) == {"one": 1, "two": 4}


def test_retry_keeps_the_id_of_its_call():
    network = Network()
    network.servers["one"].script = [refusal(503, "loading", "starting")] * 2
    client = network.client()
    client.score([SAMPLE])
    client.score([SAMPLE])
    refused = network.servers["one"].requests[0].headers["x-request-id"]
    taken = [one.headers["x-request-id"] for one in network.servers["two"].requests]
    assert refused.rpartition("-")[0] in {one.rpartition("-")[0] for one in taken}


async def test_async_client_goes_to_the_next_server():
    network = Network()
    network.down.add("two")
    async with AsyncAlarmClient(URLS, transport=httpx.MockTransport(network)) as client:
        for _ in range(2):
            await client.hierarchical_reward([SAMPLE])
    assert Counter(network.tried) == {"one": 2, "two": 1}


def test_server_that_answers_nothing_until_the_deadline_is_skipped_by_later_calls():
    network = Network()
    network.silent.add("one")
    client = network.client()
    num_failed = 0
    for _ in range(6):
        try:
            client.score([SAMPLE])
        except DeadlineExceeded:
            num_failed += 1
    assert (num_failed, network.tried.count("one")) == (1, 1)


async def test_server_that_stops_and_restarts_under_load_loses_no_score():
    async with restarting_servers(3) as servers:
        urls = [one.url for one in servers]
        async with AsyncAlarmClient(urls, retries=Retries(first=0.05)) as client:

            async def ask(index: int) -> float:
                result = await client.score([Sample(prompt="p", completion="x" * index)])
                return result.scores[0].score

            answers = await ask_while_one_restarts(ask, servers, 200)
    assert answers == [*range(200), *range(5)]


def test_call_fails_when_all_servers_are_down_and_names_the_last():
    network = Network()
    network.down |= {"one", "two"}
    client = network.client(connect_timeout=0.05, retries=Retries(first=0.01))
    with pytest.raises(AlarmConnectionError, match=r"http://(one|two)/score: cannot connect"):
        client.score([SAMPLE])
    assert {"one", "two"} <= set(network.tried)


def test_samples_that_the_server_holds_go_to_the_first_server():
    network = Network()
    client = network.client()
    for _ in range(3):
        client.hierarchical_reward([HELD])
    assert network.tried == ["one"] * 3
    network.down.add("one")
    client.hierarchical_reward([HELD])
    assert network.tried[3:] == ["one", "two"]


def test_samples_that_the_server_holds_wait_for_a_full_queue_of_their_server():
    network = Network()
    client = network.client(retries=Retries(first=0.01))
    client.hierarchical_reward([HELD])
    network.servers["one"].script = [refusal(429, "overloaded", "queue full")] * 2
    client.hierarchical_reward([HELD])
    assert network.tried == ["one"] * 4


def test_samples_that_the_server_holds_go_where_others_were_refused():
    network = Network()
    client = network.client(retries=Retries(first=100))
    network.servers["one"].script = [refusal(429, "overloaded", "queue full")]
    for sample in (SAMPLE, SAMPLE, HELD):
        client.hierarchical_reward([sample])
    assert Counter(network.tried[:-1]) == {"one": 1, "two": 2}
    assert network.tried[-1] == "one"


def test_other_samples_go_to_the_next_server_if_a_queue_is_full():
    network = Network()
    client = network.client(retries=Retries(first=100))
    network.servers["one"].script = [refusal(429, "overloaded", "queue full")]
    for _ in range(3):
        client.hierarchical_reward([SAMPLE])
    assert Counter(network.tried) == {"one": 1, "two": 3}


def test_server_that_is_back_is_used_again(caplog):
    network = Network()
    network.down.add("one")
    client = network.client(retries=Retries(first=0.0))
    client.hierarchical_reward([HELD])
    network.down.clear()
    with caplog.at_level(logging.WARNING):
        client.hierarchical_reward([HELD])
    assert network.tried == ["one", "two", "one"]
    assert "http://one is available again" in caplog.text


def test_wait_ready_returns_when_one_server_is_ready():
    network = Network()
    network.down.add("one")
    network.client().wait_ready(5)
    assert network.tried == ["one", "two"]


def test_admin_changes_are_made_on_all_servers():
    network = Network()
    for server in network.servers.values():
        server.script = [httpx.Response(200, json={})]
    network.client().sleep()
    assert sorted(network.tried) == ["one", "two"]


@pytest.mark.parametrize("given", [URLS, "http://one/ , http://two", ("http://one", "http://two/")])
def test_urls_are_a_list_or_have_commas_between_them(given):
    client = AlarmClient(given, transport=httpx.MockTransport(StandIn()))
    assert client.url == "http://one,http://two"


def test_comma_of_a_password_separates_no_urls():
    (address,) = find_addresses("http://any:a,b@one", None)
    assert address.url == "http://one"


def test_urls_of_the_environment_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("ALARM_URL", "http://one,https://two")
    assert [one.url for one in find_addresses(None, None)] == ["http://one", "https://two"]


@pytest.mark.parametrize(
    ("urls", "told"),
    [([], "a list without a URL"), (["http://one", ""], "an empty"), (URLS * 2, "is twice")],
)
def test_unusable_list_of_urls_is_refused(urls, told):
    with pytest.raises(ValueError, match=told):
        find_addresses(urls, None)
