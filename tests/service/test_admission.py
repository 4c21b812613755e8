import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest
from served import serving, until_set
from standin import Words, recipe

from alarm_models.types import Message, Sample
from alarm_service.engine.admission import Admission, Throughput, content_of, estimate_tokens
from alarm_service.engine.fair_queueing import Caller
from alarm_service.errors import Overloaded


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def queue(max_tokens: int, *, max_queue_s: float = 0, tokens_per_s: float = 1000) -> Admission:
    throughput = Throughput(tokens_per_s)
    throughput.observe(int(1000 * tokens_per_s), 1000)  # as was assumed
    return Admission(max_tokens, max_queue_s=max_queue_s, throughput=throughput, now=Clock())


def caller(number: int) -> Caller:
    return Caller(connection=f"10.0.0.1:{number}")


def is_admitted(admission: Admission, num_tokens: int, number: int) -> bool:
    """Ask for room and hold it if there is any; a caller's requests have its number as content."""
    place = admission.admit(num_tokens, caller(number), partial(int, number))
    try:
        place.__enter__()
    except Overloaded:
        return False
    held.append(place)  # it would be given back where nobody had it
    return True


held: list[AbstractContextManager[None]] = []


def test_admission_empty_queue_admits_any_request() -> None:
    admission = queue(10)
    with admission.admit(1000):
        assert admission.num_queued == 1000


def test_admission_queue_fills_up_to_its_limit() -> None:
    admission = queue(10)
    with admission.admit(4), admission.admit(6), pytest.raises(Overloaded), admission.admit(1):
        pass


def test_admission_releases_tokens_after_an_exception() -> None:
    admission = queue(10)
    with pytest.raises(ValueError, match="no"), admission.admit(4):
        raise ValueError("no")
    assert admission.num_queued == 0


@pytest.mark.parametrize(
    ("tokens_per_s", "seconds"),
    [(1000, 1), (25, 2), (1, 50)],  # 100 tokens are queued: half of them take 50 / rate
)
def test_admission_retry_after_is_when_half_is_done(tokens_per_s: float, seconds: int) -> None:
    admission = queue(100, tokens_per_s=tokens_per_s)
    with admission.admit(100), pytest.raises(Overloaded) as refused, admission.admit(1):
        pass
    assert refused.value.retry_after_s == seconds


def test_admission_retry_after_counts_reservations_ahead() -> None:
    admission = queue(100, tokens_per_s=1)
    with admission.admit(100):
        told = []
        for number in range(3):
            with (
                pytest.raises(Overloaded) as refused,
                admission.admit(80, caller(number), partial(int, number)),
            ):
                pass
            told.append(refused.value.retry_after_s)
    # 100 + 80 - 100 tokens have to go, then 80 and 160 more.
    assert told == [80, 160, 240]


def test_admission_retry_after_is_short_before_throughput_is_measured() -> None:
    admission = Admission(100, throughput=Throughput(1))
    with admission.admit(100), pytest.raises(Overloaded) as refused, admission.admit(1):
        pass
    assert refused.value.retry_after_s == 5


@pytest.mark.parametrize(
    ("tokens_per_s", "room"),
    [(2, 20), (9, 90), (50, 100)],  # ten seconds of it, and no more than 100
)
def test_admission_capacity_is_seconds_of_throughput_up_to_max_tokens(
    tokens_per_s: float, room: int
) -> None:
    assert queue(100, max_queue_s=10, tokens_per_s=tokens_per_s).max_tokens() == room


def test_throughput_is_measured_while_the_queue_is_busy() -> None:
    clock = Clock()
    throughput = Throughput(1000)
    admission = Admission(100, max_queue_s=1, throughput=throughput, now=clock)
    with admission.admit(10):  # less than a quarter of the queue
        clock.seconds += 100
    assert throughput.tokens_per_s == 1000
    with admission.admit(50):
        clock.seconds += 1
    # The second that is assumed has lost a 60th of its weight's half-life.
    kept = 0.5 ** (1 / 60)
    assert throughput.tokens_per_s == pytest.approx((1000 * kept + 50) / (kept + 1), rel=1e-9)


def test_throughput_failed_request_does_not_count() -> None:
    clock = Clock()
    admission = Admission(100, now=clock, throughput=Throughput(1000))
    place = admission.admit(100)
    place.__enter__()
    clock.seconds += 1
    place.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert admission.throughput.tokens_per_s == 1000


def test_throughput_small_requests_during_a_large_one_do_not_count() -> None:
    clock = Clock()
    throughput = Throughput(10)
    throughput.observe(10_000, 1000)  # as was assumed
    admission = Admission(1000, max_queue_s=60, throughput=throughput, now=clock)
    with admission.admit(500):
        for _ in range(50):
            with admission.admit(1):
                clock.seconds += 1  # in which 10 tokens are done, 9 of the large one's
        assert throughput.tokens_per_s == pytest.approx(10)
        with pytest.raises(Overloaded) as refused, admission.admit(600):
            pass
        assert refused.value.retry_after_s == 50
    assert throughput.tokens_per_s == pytest.approx(10, rel=0.1)


def test_throughput_cancelled_large_request_discards_its_seconds() -> None:
    clock = Clock()
    throughput = Throughput(10)
    admission = Admission(1000, max_queue_s=60, throughput=throughput, now=clock)
    place = admission.admit(500)
    place.__enter__()
    with admission.admit(1):
        clock.seconds += 20
    clock.seconds += 20
    place.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    with admission.admit(300):
        clock.seconds += 30
    assert throughput.tokens_per_s == pytest.approx(10)


def test_admission_refused_request_has_a_reservation() -> None:
    admission = queue(100)
    with admission.admit(100):
        assert not is_admitted(admission, 80, 1)
    with admission.admit(30):
        assert not is_admitted(admission, 60, 2)  # beyond the half that is open to anybody
        assert is_admitted(admission, 15, 3)
        assert not is_admitted(admission, 7, 4)
        assert is_admitted(admission, 80, 1)  # its turn, as no more than half is taken


def test_admission_each_caller_may_queue_its_share_of_the_seconds() -> None:
    admission = queue(1000, max_queue_s=1, tokens_per_s=90)
    assert is_admitted(admission, 500, 1)
    assert is_admitted(admission, 45, 2)  # half of 90
    assert not is_admitted(admission, 31, 3)  # a third
    assert is_admitted(admission, 5, 4)  # before caller 3, which waits for 31
    assert not is_admitted(admission, 2, 2)


def test_admission_share_is_within_max_queued_tokens() -> None:
    admission = queue(100, max_queue_s=1, tokens_per_s=1000)
    assert is_admitted(admission, 100, 1)
    assert not is_admitted(admission, 1, 2)


def test_admission_unused_reservation_expires() -> None:
    clock = Clock()
    admission = Admission(100, now=clock, throughput=Throughput(1000))
    with admission.admit(60):
        assert not is_admitted(admission, 80, 1)  # told 1 s: expected within 1.5 s and 10
        assert not is_admitted(admission, 30, 2)
        clock.seconds = 11.6
        assert is_admitted(admission, 30, 2)


def test_admission_retry_on_another_connection_keeps_its_reservation() -> None:
    admission = queue(100)
    again = Caller(connection="10.0.0.1:99")
    with admission.admit(60):
        assert not is_admitted(admission, 80, 1)
        with pytest.raises(Overloaded) as refused, admission.admit(80, again, content=lambda: 1):
            pass
    assert "are reserved before" not in refused.value.message


def test_admission_equal_requests_of_two_callers_are_distinguished_once_both_retried() -> None:
    admission = queue(100)
    one, other = caller(1), caller(2)
    told = []
    with admission.admit(100):
        for sender in (one, other, one, other):
            with (
                pytest.raises(Overloaded) as refused,
                admission.admit(80, sender, content=lambda: 7),
            ):
                pass
            told.append("are reserved before" in refused.value.message)
    assert told == [False, False, True, False]


def test_admission_large_request_is_not_starved_by_small_ones() -> None:
    """400 callers of a queue of 60 s: each round of them is 800 s of work, so all wait a while."""
    waits = overload(seconds=900, tokens_per_s=1000, patience=lambda told: 5.0)
    assert all(waits[LARGE]), "each caller of 1,024 samples gets in"
    assert all(waits[MIDDLE])
    assert min(map(len, waits[SMALL])) >= 10
    # The whole round is 350 * 1920 + 48 * 60 + 2 * 61440 tokens: 798 s.
    assert max(wait for waited in waits[LARGE] for wait in waited) <= 798 + 2 * 61
    # A small request waits for what is queued, not for those that wait for room.
    assert max(wait for waited in waits[SMALL] for wait in waited) <= 2 * 61.44 + 1


def test_admission_client_that_waits_retry_after_is_admitted_and_devices_never_idle() -> None:
    waits = overload(seconds=900, tokens_per_s=5000, patience=lambda told: 1.25 * told)
    assert all(waits[LARGE])
    numbers = [len(waited) for waited in waits[MIDDLE]]
    # A round is 160 s: some five of them, for everybody alike.
    assert 4 <= min(numbers) <= max(numbers) <= 9


def test_admission_lasting_connection_is_not_starved_by_new_ones() -> None:
    """30 requests of 50 tokens wait, and each try of theirs has a connection of its own."""
    admission = queue(1000)
    places: deque[AbstractContextManager[None]] = deque()

    def ask(num_tokens: int, connection: str, content: int) -> bool:
        sender = Caller(connection=connection)
        place = admission.admit(num_tokens, sender, partial(int, content))
        with suppress(Overloaded):
            place.__enter__()
            places.append(place)
            return True
        return False

    def is_served(num_rounds: int) -> bool:
        others = list(range(30))
        for number in range(num_rounds):
            for index, content in enumerate(others):
                if ask(50, f"{number}-{index}", content):
                    others[index] += 30
            if ask(120, "lasting", -1):
                return True
            places.popleft().__exit__(None, None, None)
        return False

    assert ask(1, "first", -2)
    assert ask(120, "lasting", -1)
    places.pop().__exit__(None, None, None)
    # 31 take turns, and 50 tokens are done in a round: each gets 2 * 120 tokens in 150 rounds.
    assert is_served(200)


LARGE, MIDDLE, SMALL = 1024 * 60, 32 * 60, 60


def overload(
    *, seconds: float, tokens_per_s: float, patience: Callable[[int], float]
) -> dict[int, list[list[float]]]:
    """Let 400 callers ask again and again, of a device that does tokens in the order they came.

    Returns, by the tokens of a request, how long each caller's requests took that were done. The
    device is idle for less than a second.
    """
    clock = Clock()
    admission = Admission(10**6, max_queue_s=60, now=clock, throughput=Throughput())
    sizes = [MIDDLE] * 350 + [SMALL] * 48 + [LARGE] * 2
    done: list[list[float]] = [[] for _ in sizes]
    asked = [number / 4000 for number in range(len(sizes))]
    events = [(at, number, False) for number, at in enumerate(asked)]
    held: dict[int, AbstractContextManager[None]] = {}
    free_at = idle_s = 0.0
    while events[0][0] <= seconds:
        clock.seconds, number, is_done = heapq.heappop(events)
        if is_done:
            held.pop(number).__exit__(None, None, None)
            done[number].append(clock.seconds - asked[number])
            asked[number] = clock.seconds
        place = admission.admit(sizes[number], caller(number), partial(int, number))
        try:
            place.__enter__()
        except Overloaded as refused:
            again = clock.seconds + patience(refused.retry_after_s or 0)
            heapq.heappush(events, (again, number, False))
            continue
        held[number] = place
        idle_s += max(0.0, clock.seconds - free_at)
        free_at = max(free_at, clock.seconds) + sizes[number] / tokens_per_s
        heapq.heappush(events, (free_at, number, True))
    assert idle_s < 1
    by_size: dict[int, list[list[float]]] = {LARGE: [], MIDDLE: [], SMALL: []}
    for size, waits in zip(sizes, done, strict=True):
        by_size[size].append(waits)
    return by_size


@pytest.mark.parametrize("error", [None, ValueError])
async def test_admission_requests_that_waited_release_everything(
    error: type[Exception] | None,
) -> None:
    """Those that get capacity at the same moment, too, whatever they do with it."""
    tokens: list[tuple[int, int]] = []
    admission = Admission(1000, observe=lambda *found: tokens.append(found))

    async def request(number: int) -> None:
        async with admission.admit_waiting(400, caller(number)):
            await asyncio.sleep(0)
            if error is not None:
                raise error

    outcomes = await asyncio.gather(*map(request, range(10)), return_exceptions=True)
    assert [type(one) for one in outcomes] == [error or type(None)] * 10
    assert max(queued for queued, _ in tokens) == 800
    assert tokens[-1] == (0, 0)
    with admission.admit(1000):
        pass


@pytest.mark.parametrize(("max_queued", "line"), [(20, 1_000_000), (200_000, 1_600_000)])
async def test_admission_eight_queues_or_a_million_tokens_may_wait(
    max_queued: int, line: int
) -> None:
    admission = Admission(max_queued)

    async def admitted(num_tokens: int) -> None:
        async with admission.admit_waiting(num_tokens):
            pass

    with admission.admit(max_queued):
        waiting = asyncio.create_task(admitted(line - 10))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await admitted(11)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        eleven = asyncio.create_task(admitted(11))
        await asyncio.sleep(0)
        assert not eleven.done()
    await eleven


async def test_admission_cancelled_request_that_waits_releases_everything() -> None:
    tokens: list[tuple[int, int]] = []
    admission = Admission(1000, observe=lambda *found: tokens.append(found))

    async def request(number: int) -> None:
        async with admission.admit_waiting(600, caller(number)):
            await asyncio.sleep(3600)

    waiting = [asyncio.create_task(request(number)) for number in range(4)]
    await asyncio.sleep(0)
    for task in waiting:  # the first is in its block, the second gets capacity as it is cancelled
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert tokens[-1] == (0, 0)


def test_estimate_tokens_counts_characters() -> None:
    sample = Sample("1234", (Message("assistant", "12345678"),), fields={"question": "1234"})
    assert estimate_tokens([sample, sample]) == 2 * (16 + 4)


def test_content_of_equal_texts_is_equal() -> None:
    one, other = Sample("a" * 200, "b"), Sample("a" * 200, "c")
    assert content_of([one]) == content_of([replace(one, id="7")])
    assert len({content_of(samples) for samples in ([one], [other], [one, one], [])}) == 4


async def test_full_queue_is_429_with_retry_after() -> None:
    async with serving(max_queued_tokens=20) as server:
        first = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        refused = await server.score("one")
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.json()["error"]["retryable"]
        server.words.release.set()
        assert (await first).status_code == 200
        assert (await server.score("one")).status_code == 200


async def test_full_queue_refuses_both_routes() -> None:
    async with serving(max_queued_tokens=20) as server:
        first = asyncio.create_task(server.reward("hold"))
        await until_set(server.words.held)
        assert (await server.score("one")).status_code == 429
        assert (await server.reward("one")).status_code == 429
        server.words.release.set()
        await first


async def test_admission_counts_a_request_once_for_several_models() -> None:
    async with serving(recipe(aspects={"again": {"model": "words"}}), words=Words()) as server:
        request = asyncio.create_task(server.reward("hold", aspects="all"))
        await until_set(server.words.held)
        assert server.engine.admission.num_queued == 16 + 1
        server.words.release.set()
        await request
        assert server.engine.admission.num_queued == 0


@pytest.mark.parametrize("completion", ["boom", "nan", "choke", "long"])
async def test_admission_failed_sample_releases_its_tokens(completion: str) -> None:
    async with serving() as server:
        await server.score(completion)
        assert server.engine.admission.num_queued == 0


async def test_admission_refused_override_releases_its_tokens() -> None:
    async with serving() as server:
        refused = await server.reward("one", overrides={"weights": {"nobody": 1}})
        assert refused.status_code == 422
        assert server.engine.admission.num_queued == 0


async def test_admission_passed_deadline_releases_its_tokens() -> None:
    async with serving() as server:
        late = await server.score("hold", **{"X-Request-Timeout-Ms": "1"})
        assert late.status_code == 504
        assert server.engine.admission.num_queued == 0
