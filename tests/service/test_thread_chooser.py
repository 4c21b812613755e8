"""The number of threads of a forward pass: the fastest, with and without busy neighbors."""

from collections.abc import Callable

import torch
from served import serving

from alarm_service.engine.worker import ThreadChooser

#: Seconds of a pass of 100 tokens, by its number of threads.
Machine = Callable[[int], float]


def quiet(num_threads: int) -> float:
    """All threads share the work."""
    return 0.1 / num_threads


def crowded(num_threads: int) -> float:
    """Each operation waits for the thread whose core is taken."""
    return 0.1 if num_threads == 1 else 0.5


def run(chooser: ThreadChooser, machine: Machine, num_passes: int) -> list[int]:
    """Run passes; return the number of threads of each."""
    used = []
    for _ in range(num_passes):
        num_threads = chooser.choose("m", 100)
        chooser.record("m", 100, num_threads, machine(num_threads))
        used.append(num_threads)
    return used


def test_chooser_on_a_quiet_machine_uses_all_threads_and_rarely_tries_one() -> None:
    used = run(ThreadChooser(2), quiet, 1000)
    assert used[:3] == [2, 1, 2]
    assert used.count(1) <= 8


def test_chooser_on_a_crowded_machine_uses_one_thread_from_the_second_pass_on() -> None:
    used = run(ThreadChooser(2), crowded, 1000)
    assert used[:3] == [2, 1, 1]
    assert used.count(2) <= 8


def test_chooser_when_a_core_is_taken_changes_after_one_slow_pass() -> None:
    chooser = ThreadChooser(2)
    run(chooser, quiet, 1000)
    assert run(chooser, crowded, 10) == [2, *[1] * 9]


def test_chooser_when_the_core_is_free_again_changes_back() -> None:
    chooser = ThreadChooser(2)
    run(chooser, quiet, 100)
    run(chooser, crowded, 1000)
    assert run(chooser, quiet, 300)[-1] == 2


def test_chooser_on_many_cores_tries_one_thread_for_short_passes_only() -> None:
    def slow(num_threads: int) -> float:
        return 64.0 / num_threads

    assert 1 not in run(ThreadChooser(64), slow, 100)
    assert 1 in run(ThreadChooser(64), quiet, 100)


def test_chooser_knows_models_and_sizes_apart() -> None:
    chooser = ThreadChooser(2)
    run(chooser, crowded, 2)
    assert chooser.choose("m", 100) == 1
    assert chooser.choose("m", 1000) == 2
    assert chooser.choose("other", 100) == 2


def test_chooser_if_fixed_uses_all_threads() -> None:
    assert set(run(ThreadChooser(2, is_fixed=True), crowded, 50)) == {2}


async def test_passes_of_a_server_leave_the_number_of_threads_as_it_was() -> None:
    num_threads = torch.get_num_threads()
    async with serving() as server:
        for _ in range(4):
            assert (await server.score("a")).status_code == 200
    assert torch.get_num_threads() == num_threads
