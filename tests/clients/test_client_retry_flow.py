"""The retry flow, run without network and with a fake clock."""

from dataclasses import dataclass, field

import pytest

from alarm_client._operations import CachedLimits, await_ready, run_payload
from alarm_client._payloads import score_payload
from alarm_client._retry import (
    Availability,
    Call,
    Clocks,
    Host,
    Reply,
    Retries,
    Send,
    Sleep,
    request,
    request_with_retries,
    start_call,
)
from alarm_client.errors import (
    AlarmConnectionError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    StatusError,
    Unauthorized,
    Unavailable,
)

OK = Reply(200, {}, b"{}")
BROKEN = AlarmConnectionError("cannot connect", retryable=True)
RETRIES = Retries(first=1.0, longest=8.0, max_reconnects=2)


def busy(status: int = 429, after: str | None = None) -> Reply:
    headers = {} if after is None else {"retry-after": after}
    body = b'{"error": {"code": "busy", "message": "queue full", "retryable": true}}'
    return Reply(status, headers, body)


@dataclass
class FlowDriver:
    """Runs a flow as a runner would; a request takes one second, a sleep its own seconds."""

    replies: list
    now: float = 0.0
    timeouts: list = field(default_factory=list)
    sleeps: list = field(default_factory=list)

    def call(self, timeout: float = 100.0) -> Call:
        clocks = Clocks(now=lambda: self.now, wall=lambda: 0.0, jitter=lambda: 0.0)
        return start_call([Host("http://server", Availability())], timeout, RETRIES, clocks)

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


def test_request_answered_at_once_is_sent_once():
    driver = FlowDriver([OK])
    assert driver.take(request(driver.call(), "GET", "/models")) is OK
    assert (driver.timeouts, driver.sleeps) == ([100.0], [])


def test_request_attempt_gets_the_time_that_is_left():
    driver = FlowDriver([busy(after="2"), busy(after="3"), OK])
    driver.take(request(driver.call(), "GET", "/models"))
    assert (driver.timeouts, driver.sleeps) == ([100.0, 97.0, 93.0], [2.0, 3.0])


def test_request_without_retry_after_backs_off_exponentially():
    driver = FlowDriver([busy(), busy(502), busy(503), busy(504), OK])
    assert driver.take(request(driver.call(), "GET", "/models")) is OK
    assert driver.sleeps == [0.5, 1.0, 2.0, 4.0]


def test_request_without_server_stops_after_max_reconnects():
    driver = FlowDriver([BROKEN, BROKEN, OK])
    assert driver.take(request(driver.call(), "GET", "/models")) is OK
    driver = FlowDriver([BROKEN, BROKEN, BROKEN, OK])
    with pytest.raises(AlarmConnectionError, match="cannot connect"):
        driver.take(request(driver.call(), "GET", "/models"))


@pytest.mark.parametrize(
    ("status", "kind"), [(400, InvalidRequest), (401, Unauthorized), (422, InvalidRequest)]
)
def test_request_with_final_status_is_not_retried(status, kind):
    driver = FlowDriver([busy(status), OK])
    with pytest.raises(kind, match=f"http://server/score answered {status}: queue full"):
        driver.take(request(driver.call(), "POST", "/score", b"{}"))
    assert len(driver.timeouts) == 1


@pytest.mark.parametrize(
    "body", [b'{"error": {"code": "garbled"}}', b"Invalid HTTP request received."]
)
def test_request_corrupted_on_the_way_is_retried(body):
    driver = FlowDriver([Reply(400, {}, body), OK])
    assert driver.take(request(driver.call(), "POST", "/score", b"{}")) is OK
    assert len(driver.timeouts) == 2


@pytest.mark.parametrize("status", [500, 503, 504])
def test_request_with_retryable_false_is_not_retried(status):
    body = b'{"error": {"code": "too_slow", "message": "one pass", "retryable": false}}'
    driver = FlowDriver([Reply(status, {}, body), OK])
    with pytest.raises(StatusError, match="one pass") as caught:
        driver.take(request(driver.call(), "POST", "/score", b"{}"))
    assert (len(driver.timeouts), caught.value.retryable) == (1, False)


def test_request_past_the_deadline_raises_the_last_failure():
    driver = FlowDriver([])
    with pytest.raises(
        DeadlineExceeded, match=r"gave up after 3 attempts.*5 s.*queue full"
    ) as caught:
        driver.take(request(driver.call(timeout=5.0), "GET", "/models"))
    assert (caught.value.status, caught.value.code) == (503, "busy")
    assert isinstance(caught.value.__cause__, Unavailable)


def test_request_does_not_sleep_past_the_deadline():
    driver = FlowDriver([busy(after="60"), OK])
    with pytest.raises(DeadlineExceeded) as caught:
        driver.take(request(driver.call(timeout=30.0), "GET", "/models"))
    assert driver.sleeps == []
    assert isinstance(caught.value.__cause__, Overloaded)


def test_request_after_the_deadline_is_not_sent():
    driver = FlowDriver([OK])
    call = driver.call(timeout=5.0)
    driver.now = 5.0
    with pytest.raises(DeadlineExceeded, match="the timeout of 5 s has passed"):
        driver.take(request(call, "GET", "/models"))
    assert driver.timeouts == []


def test_request_error_without_json_quotes_the_body():
    driver = FlowDriver([Reply(500, {}, b"<html>oops")])
    with pytest.raises(Exception, match="answered 500: <html>oops") as caught:
        driver.take(request(driver.call(), "GET", "/models"))
    assert (caught.value.status, caught.value.code) == (500, None)


def test_await_ready_polls_until_ready():
    driver = FlowDriver([BROKEN] * 9 + [busy(503), DeadlineExceeded("slow"), OK])
    assert driver.take(await_ready(driver.call())) is None
    assert driver.sleeps == [1.0] * 11


def test_await_ready_past_the_deadline_raises_the_servers_reason():
    loading = Reply(503, {}, b'{"status": "loading", "reason": "loading ultrarm"}')
    driver = FlowDriver([loading] * 9)
    with pytest.raises(Unavailable, match=r"not ready within 6 s.*loading ultrarm") as caught:
        driver.take(await_ready(driver.call(timeout=6.0)))
    assert caught.value.code == "loading"


def test_await_ready_without_server_raises_connection_error():
    driver = FlowDriver([BROKEN] * 9)
    with pytest.raises(AlarmConnectionError, match=r"not ready within 6 s: cannot connect"):
        driver.take(await_ready(driver.call(timeout=6.0)))


def test_await_ready_with_wrong_key_raises_at_once():
    driver = FlowDriver([busy(401)])
    with pytest.raises(Unauthorized, match="ALARM_API_KEY"):
        driver.take(await_ready(driver.call()))


def refused(url: str = "http://server") -> AlarmConnectionError:
    return AlarmConnectionError(f"{url}/score: cannot connect (refused)", retryable=True)


DEFAULT = Retries()
SCORED = Reply(200, {}, b'{"scores": []}')
LOADING = Reply(
    503, {}, b'{"error": {"code": "draining", "message": "loading", "retryable": true}}'
)
OF_VLLM = Reply(404, {}, b'{"error": {"message": "Not Found", "type": "NotFound", "code": 404}}')
GATEWAY = Reply(503, {}, b"<html>no upstream")


@dataclass
class Clock(FlowDriver):
    """As FlowDriver, with requests that take no time, as refused connections do."""

    server: Availability = field(default_factory=Availability)
    connects: list = field(default_factory=list)

    def call(self, timeout: float = 480.0, connect_timeout: float = 60.0) -> Call:
        clocks = Clocks(now=lambda: self.now, wall=lambda: 0.0, jitter=lambda: 0.5)
        return start_call(
            [Host("http://server", self.server)],
            timeout,
            DEFAULT,
            clocks,
            connect_timeout=connect_timeout,
        )

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
            self.connects.append(action.connect_timeout)
            answer = self.replies.pop(0) if self.replies else refused()
            if isinstance(answer, tuple):  # after so many seconds
                self.now += answer[0]
                answer = answer[1]
            if isinstance(answer, Exception):
                failure = answer


def ask(clock: Clock, **options):
    return clock.take(request_with_retries(clock.call(**options), "POST", "/score", b"{}"))


@pytest.mark.parametrize("connect_timeout", [10.0, 60.0])
def test_request_to_server_never_reached_ends_after_connect_timeout(connect_timeout):
    clock = Clock([])
    message = rf"cannot connect \(refused\); no ALaRM server has answered.*{connect_timeout:g} s"
    with pytest.raises(AlarmConnectionError, match=message):
        ask(clock, connect_timeout=connect_timeout)
    assert connect_timeout - 1 < clock.now <= connect_timeout
    assert not clock.server.has_answered


@pytest.mark.parametrize("answer", [LOADING, busy(), busy(401), busy(422)])
def test_request_to_server_reached_before_retries_until_the_deadline(answer):
    clock = Clock([answer])
    if answer.status in {401, 422}:
        assert ask(clock) is answer
    with pytest.raises(DeadlineExceeded, match=r"within 480 s.*cannot connect \(refused\)"):
        ask(clock)
    assert 479 < clock.now <= 480
    assert max(clock.sleeps) <= 5.0


@pytest.mark.parametrize("reply", [GATEWAY, Reply(502, {}, b""), Reply(404, {}, b"nginx"), OF_VLLM])
def test_gateway_reply_does_not_count_as_answer(reply):
    clock = Clock([reply])
    if reply.status == 404:
        assert ask(clock) is reply
    with pytest.raises(AlarmConnectionError, match="no ALaRM server has answered"):
        ask(clock)
    assert not clock.server.has_answered


def test_only_a_valid_result_counts_as_answer():
    answer = b'{"model": "rm", "fingerprint": "f", "scores": [], "usage": {}}'
    clock = Clock([Reply(200, {}, b"<html>welcome"), Reply(200, {}, answer)])
    with pytest.raises(ProtocolError):
        clock.take(run_payload(clock.call(), score_payload([], None), CachedLimits()))
    assert not clock.server.has_answered
    clock.take(run_payload(clock.call(), score_payload([], None), CachedLimits()))
    assert clock.server.has_answered


def test_connection_broken_after_long_work_gets_a_new_connect_timeout():
    clock = Clock([(100.0, refused()), (0.0, SCORED)])
    assert ask(clock) is SCORED
    clock = Clock([(100.0, refused())])
    with pytest.raises(AlarmConnectionError, match="no ALaRM server"):
        ask(clock)
    assert 150 < clock.now <= 160


def test_request_to_silent_host_ends_after_connect_timeout():
    clock = Clock([(5.0, refused())] * 99)
    with pytest.raises(AlarmConnectionError, match="no ALaRM server"):
        ask(clock)
    assert 55 < clock.now <= 65
    assert clock.connects[0] == 5.0
    clock = Clock([])
    with pytest.raises(AlarmConnectionError, match="no ALaRM server"):
        ask(clock, connect_timeout=0.5)
    assert max(clock.connects) == 0.5


def test_request_with_permanent_connection_error_is_not_retried():
    clock = Clock([AlarmConnectionError("the proxy is one of SOCKS")])
    with pytest.raises(AlarmConnectionError, match="SOCKS"):
        ask(clock)
    assert clock.sleeps == []
    clock = Clock([AlarmConnectionError("the proxy is one of SOCKS")])
    with pytest.raises(AlarmConnectionError, match="SOCKS"):
        clock.take(await_ready(clock.call()))
    assert clock.sleeps == []


def warnings_of(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


def test_outage_is_logged_at_start_every_30_seconds_and_at_end(caplog):
    clock = Clock([])
    clock.server.has_answered = True
    call = clock.call()
    steps = request_with_retries(call, "POST", "/score", b"{}")
    next(steps)
    steps.throw(refused())  # at once, before any waiting
    [first] = warnings_of(caplog)
    assert first.startswith("http://server/score: cannot connect (refused) (retrying for up")
    clock.replies = [refused() for _ in range(30)] + [SCORED]
    clock.take(request_with_retries(call, "POST", "/score", b"{}"))
    *told, last = warnings_of(caplog)
    assert 4 <= len(told) <= 5  # 0, 30, 60, 90 and, where it comes to that, 120 s
    assert last == f"http://server is available again after {clock.now:.1f} s"
    caplog.clear()
    clock.replies = [SCORED]
    ask(clock)
    assert warnings_of(caplog) == []


def test_outage_of_several_calls_is_logged_once(caplog):
    clock = Clock([])
    for _ in range(8):
        clock.replies = [refused(), SCORED]
        steps = request_with_retries(clock.call(), "POST", "/score", b"{}")
        next(steps)
        steps.throw(refused())
    assert len(warnings_of(caplog)) == 1


def test_attempt_started_before_recovery_starts_no_outage(caplog):
    server = Availability()
    assert server.failed("refused", 1.0, 1.0, 60.0)
    server.recovered("http://server", 3.0)
    assert not server.failed("refused", 2.0, 4.0, 60.0)
    assert len(warnings_of(caplog)) == 2
    assert server.failed("refused", 5.0, 5.0, 60.0)


def test_503_is_logged_as_outage_and_429_as_retry(caplog):
    caplog.set_level("INFO")
    ask(Clock([LOADING, SCORED]))
    first, last = warnings_of(caplog)
    assert "answered 503: loading" in first
    assert "is available again" in last
    caplog.clear()
    ask(Clock([busy(after="2"), SCORED]))
    assert warnings_of(caplog) == []
    [retry] = [one.getMessage() for one in caplog.records]
    assert retry == "http://server/score answered 429: queue full (attempt 2 follows in 2.5 s)"


def test_await_ready_logs_the_outage(caplog):
    driver = FlowDriver([BROKEN] * 40 + [OK])
    driver.take(await_ready(driver.call()))
    told = warnings_of(caplog)
    assert [("cannot connect" in line) for line in told] == [True, True, True, False]
    assert "is available again" in told[-1]


def test_each_request_of_a_call_has_its_own_id():
    driver = FlowDriver([])
    call = driver.call()
    ids = [call.next_request_id() for _ in range(3)]
    assert ids == [f"{call.id}-1", f"{call.id}-2", f"{call.id}-3"]
    assert driver.call().id != call.id
