"""The protocol driven by hand: no network, no clock but a number."""

from dataclasses import dataclass, field

import pytest

from alarm_client import (
    AlarmConnectionError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Retries,
    Unauthorized,
    Unavailable,
)
from alarm_client.actions import Reply, Send, Sleep
from alarm_client.calls import await_ready
from alarm_client.exchange import Call, Clocks, exchange, start_call

OK = Reply(200, {}, b"{}")
BROKEN = AlarmConnectionError("cannot connect", retryable=True)
RETRIES = Retries(first=1.0, longest=8.0, max_reconnects=2)


def busy(status: int = 429, after: str | None = None) -> Reply:
    headers = {} if after is None else {"retry-after": after}
    body = b'{"error": {"code": "busy", "message": "queue full", "retryable": true}}'
    return Reply(status, headers, body)


@dataclass
class Walk:
    """Takes steps as a driver would; each request lasts one second, and a sleep its seconds."""

    replies: list
    now: float = 0.0
    timeouts: list = field(default_factory=list)
    sleeps: list = field(default_factory=list)

    def call(self, timeout: float = 100.0) -> Call:
        clocks = Clocks(now=lambda: self.now, wall=lambda: 0.0, dice=lambda: 0.0)
        return start_call("http://server", timeout, RETRIES, clocks)

    def take(self, steps):
        answer = failure = None
        while True:
            try:
                action = steps.throw(failure) if failure else steps.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = failure = None
            if isinstance(action, Sleep):
                self.sleeps.append(action.seconds)
                self.now += action.seconds
                continue
            assert isinstance(action, Send)
            self.timeouts.append(action.timeout)
            self.now += 1.0
            answer = self.replies.pop(0) if self.replies else busy(503)
            if isinstance(answer, Exception):
                failure = answer


def test_one_request_is_enough_where_the_server_answers():
    walk = Walk([OK])
    assert walk.take(exchange(walk.call(), "GET", "/models")) is OK
    assert (walk.timeouts, walk.sleeps) == ([100.0], [])


def test_each_try_has_the_time_that_is_left():
    walk = Walk([busy(after="2"), busy(after="3"), OK])
    walk.take(exchange(walk.call(), "GET", "/models"))
    assert (walk.timeouts, walk.sleeps) == ([100.0, 97.0, 93.0], [2.0, 3.0])


def test_delays_double_where_the_server_names_none():
    walk = Walk([busy(), busy(502), busy(503), busy(504), OK])
    assert walk.take(exchange(walk.call(), "GET", "/models")) is OK
    assert walk.sleeps == [0.5, 1.0, 2.0, 4.0]


def test_a_server_that_does_not_answer_is_tried_a_few_times():
    walk = Walk([BROKEN, BROKEN, OK])
    assert walk.take(exchange(walk.call(), "GET", "/models")) is OK
    walk = Walk([BROKEN, BROKEN, BROKEN, OK])
    with pytest.raises(AlarmConnectionError, match="cannot connect"):
        walk.take(exchange(walk.call(), "GET", "/models"))


@pytest.mark.parametrize(
    ("status", "kind"), [(400, InvalidRequest), (401, Unauthorized), (422, InvalidRequest)]
)
def test_a_refusal_of_the_request_itself_is_not_tried_again(status, kind):
    walk = Walk([busy(status), OK])
    with pytest.raises(kind, match=f"http://server/score answered {status}: queue full"):
        walk.take(exchange(walk.call(), "POST", "/score", b"{}"))
    assert len(walk.timeouts) == 1


@pytest.mark.parametrize(
    "body", [b'{"error": {"code": "garbled"}}', b"Invalid HTTP request received."]
)
def test_a_request_that_did_not_arrive_as_it_was_sent_is_sent_again(body):
    walk = Walk([Reply(400, {}, body), OK])
    assert walk.take(exchange(walk.call(), "POST", "/score", b"{}")) is OK
    assert len(walk.timeouts) == 2


def test_the_last_refusal_shows_when_the_time_runs_out():
    walk = Walk([])
    with pytest.raises(DeadlineExceeded, match=r"gave up after 3 tries.*5 s.*queue full") as caught:
        walk.take(exchange(walk.call(timeout=5.0), "GET", "/models"))
    assert (caught.value.status, caught.value.code) == (503, "busy")
    assert isinstance(caught.value.__cause__, Unavailable)


def test_a_wait_past_the_deadline_is_not_begun():
    walk = Walk([busy(after="60"), OK])
    with pytest.raises(DeadlineExceeded) as caught:
        walk.take(exchange(walk.call(timeout=30.0), "GET", "/models"))
    assert walk.sleeps == []
    assert isinstance(caught.value.__cause__, Overloaded)


def test_no_request_is_sent_once_the_time_is_over():
    walk = Walk([OK])
    call = walk.call(timeout=5.0)
    walk.now = 5.0
    with pytest.raises(DeadlineExceeded, match="5 s of this call are over"):
        walk.take(exchange(call, "GET", "/models"))
    assert walk.timeouts == []


def test_an_error_without_the_contracts_body_shows_what_came():
    walk = Walk([Reply(500, {}, b"<html>oops")])
    with pytest.raises(Exception, match="answered 500: <html>oops") as caught:
        walk.take(exchange(walk.call(), "GET", "/models"))
    assert (caught.value.status, caught.value.code) == (500, None)


def test_readiness_is_asked_for_until_it_comes():
    walk = Walk([BROKEN] * 9 + [busy(503), DeadlineExceeded("slow"), OK])
    assert walk.take(await_ready(walk.call())) is None
    assert walk.sleeps == [1.0] * 11


def test_a_server_that_does_not_get_ready_says_why():
    loading = Reply(503, {}, b'{"status": "loading", "reason": "loading ultrarm"}')
    walk = Walk([loading] * 9)
    with pytest.raises(Unavailable, match=r"not ready within 6 s.*loading ultrarm") as caught:
        walk.take(await_ready(walk.call(timeout=6.0)))
    assert caught.value.code == "loading"


def test_waiting_where_nothing_listens_says_so():
    walk = Walk([BROKEN] * 9)
    with pytest.raises(AlarmConnectionError, match=r"not ready within 6 s: cannot connect"):
        walk.take(await_ready(walk.call(timeout=6.0)))


def test_waiting_with_a_wrong_key_does_not_wait():
    walk = Walk([busy(401)])
    with pytest.raises(Unauthorized, match="ALARM_API_KEY"):
        walk.take(await_ready(walk.call()))
