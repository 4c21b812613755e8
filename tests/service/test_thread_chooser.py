"""The number of threads of a forward pass: the fastest, with and without busy neighbors."""

from collections.abc import Callable

import torch
from served import serving

from alarm_service.engine.worker import ThreadChooser

#: Seconds of a pass of 100 tokens, and the time for which its threads ran, by their number.
Machine = Callable[[int], tuple[float, float]]


def quiet(num_threads: int) -> tuple[float, float]:
    """All threads share the work."""
    return 0.04 / num_threads, 0.04


def crowded(num_threads: int) -> tuple[float, float]:
    """Each operation waits for the thread whose core is taken."""
    return (0.04, 0.04) if num_threads == 1 else (0.2, 0.25)


def ten_times(machine: Machine) -> Machine:
    """Passes that are ten times as long."""

    def longer(num_threads: int) -> tuple[float, float]:
        seconds, cpu_seconds = machine(num_threads)
        return 10 * seconds, 10 * cpu_seconds

    return longer


def run(chooser: ThreadChooser, machine: Machine, num_passes: int) -> list[int]:
    """Run passes; return the number of threads of each."""
    used = []
    for _ in range(num_passes):
        num_threads = chooser.choose("m", 100)
        chooser.record("m", 100, 100, num_threads, *machine(num_threads))
        used.append(num_threads)
    return used


def test_chooser_on_a_quiet_machine_uses_all_threads_and_rarely_tries_one() -> None:
    used = run(ThreadChooser(2), quiet, 1000)
    assert used[:3] == [2, 1, 2]
    assert used.count(1) <= 8


def test_chooser_on_a_quiet_machine_never_tries_fewer_threads_in_long_passes() -> None:
    assert 1 not in run(ThreadChooser(2), ten_times(quiet), 1000)


def test_chooser_on_a_crowded_machine_uses_one_thread_if_that_is_faster_twice() -> None:
    for machine in (crowded, ten_times(crowded)):
        used = run(ThreadChooser(2), machine, 1000)
        assert used[:5] == [2, 1, 2, 1, 1]
        assert used.count(2) <= 16


def test_chooser_after_one_disturbed_pass_keeps_all_threads() -> None:
    chooser = ThreadChooser(2)
    run(chooser, ten_times(quiet), 5)
    chooser.record("m", 100, 100, 2, *ten_times(crowded)(2))
    assert run(chooser, ten_times(quiet), 1000) == [1, *[2] * 999]


def test_chooser_compares_passes_by_the_tokens_that_they_computed() -> None:
    """The first pass of a group computes its prompt, which is cached for the second."""
    chooser, used = ThreadChooser(2), []
    for _ in range(100):
        for num_tokens, num_computed in ((7972, 1700), (5964, 400)):
            num_threads = chooser.choose("m", num_tokens)
            seconds = num_computed * (0.002 if num_threads == 2 else 0.0035)
            # Something else uses the cores, but one thread is slower.
            chooser.record("m", num_tokens, num_computed, num_threads, seconds, 1.2 * seconds)
            used.append(num_threads)
    assert 1 <= used.count(1) <= 8


def test_chooser_after_a_long_pass_whose_threads_ran_all_the_time_keeps_them() -> None:
    chooser = ThreadChooser(2)
    for seconds in (0.1, 1.0):
        assert chooser.choose("m", 100) == 2
        chooser.record("m", 100, 100, 2, seconds, 1.9 * seconds)
    assert chooser.choose("m", 100) == 2


def test_chooser_when_a_core_is_taken_changes_after_a_slow_pass() -> None:
    for machine in (lambda one: one, ten_times):
        chooser = ThreadChooser(2)
        run(chooser, machine(quiet), 1000)
        assert run(chooser, machine(crowded), 10) == [2, 1, 2, *[1] * 7]


def test_chooser_when_the_core_is_free_again_changes_back() -> None:
    chooser = ThreadChooser(2)
    run(chooser, quiet, 100)
    run(chooser, crowded, 1000)
    assert run(chooser, quiet, 300)[-1] == 2


def test_chooser_on_many_cores_tries_one_thread_for_short_passes_only() -> None:
    def slow(num_threads: int) -> tuple[float, float]:
        return 64.0 / num_threads, 32.0

    assert 1 not in run(ThreadChooser(64), slow, 100)
    assert 1 in run(ThreadChooser(64), quiet, 100)


def test_chooser_knows_models_and_sizes_apart() -> None:
    chooser = ThreadChooser(2)
    run(chooser, crowded, 4)
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
