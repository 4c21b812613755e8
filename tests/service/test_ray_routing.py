from collections import Counter

from alarm_service.ray.leases import Leases
from alarm_service.ray.routing import NUM_SLOTS, choose_replica, rendezvous_order

FOUR = frozenset("abcd")
SLOTS = range(NUM_SLOTS)


def test_rendezvous_order_is_stable() -> None:
    idle = dict.fromkeys(FOUR, 0)
    assert {choose_replica(7, 100, idle) for _ in range(10)} == {rendezvous_order(7, FOUR)[0]}


def test_rendezvous_order_spreads_slots() -> None:
    owned = Counter(rendezvous_order(slot, FOUR)[0] for slot in SLOTS)
    assert set(owned) == FOUR
    assert max(owned.values()) <= 2 * NUM_SLOTS / 4


def test_rendezvous_order_new_replica_moves_only_its_slots() -> None:
    more = FOUR | {"e"}
    moved = [
        slot for slot in SLOTS if rendezvous_order(slot, FOUR)[0] != rendezvous_order(slot, more)[0]
    ]
    assert 0 < len(moved) < NUM_SLOTS / 2
    assert {rendezvous_order(slot, more)[0] for slot in moved} == {"e"}


def test_choose_replica_with_less_than_a_batch_keeps_its_slots() -> None:
    first = rendezvous_order(7, FOUR)[0]
    assert choose_replica(7, 1000, dict.fromkeys(FOUR, 0) | {first: 7000}) == first


def test_choose_replica_overloaded_passes_work_to_the_next() -> None:
    first, second, *_ = rendezvous_order(7, FOUR)
    assert choose_replica(7, 1000, dict.fromkeys(FOUR, 0) | {first: 20000}) == second


def test_choose_replica_equally_busy_keep_their_slots() -> None:
    assert choose_replica(7, 1000, dict.fromkeys(FOUR, 50_000)) == rendezvous_order(7, FOUR)[0]


def test_chunk_that_fits_no_replica_goes_to_an_idle_one() -> None:
    first = rendezvous_order(7, FOUR)[0]
    assert choose_replica(7, 10**6, dict.fromkeys(FOUR, 0)) == first
    assert choose_replica(7, 10**6, dict.fromkeys(FOUR, 10) | {"c": 0}) == "c"


def test_choose_replica_failed_work_goes_to_another() -> None:
    order = rendezvous_order(7, FOUR)
    idle = dict.fromkeys(FOUR, 0)
    assert [choose_replica(7, 1, idle, num_passed=passed) for passed in range(5)] == [
        *order,
        order[0],
    ]


def test_choose_replica_bounds_load_to_a_quarter_above_mean() -> None:
    loads = dict.fromkeys(FOUR, 0)
    for number in range(1000):
        loads[choose_replica(number % NUM_SLOTS, 1000, loads)] += 1000
    assert max(loads.values()) <= 1.25 * 250_000 + 1000


def test_leases_last_holder_releases_the_deployment() -> None:
    leases = Leases()
    assert [leases.take("rm", holder) for holder in ("a", "b")] == [True, False]
    assert not leases.release("rm", "a")
    assert leases.names_of("a") == []
    assert leases.names_of("b") == ["rm"]
    assert leases.release("rm", "b")
    assert not leases.release("rm", "b")
    assert leases.take("rm", "c")
