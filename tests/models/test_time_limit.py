"""time_limit interrupts an endless block and nothing after it."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn

import pytest

from alarm_models.time_limit import TimeLimitExceeded, time_limit


def loop() -> NoReturn:
    while True:
        pass


def test_endless_loop_is_ended() -> None:
    with pytest.raises(TimeLimitExceeded, match="took too long"), time_limit(0.01):
        loop()


def test_loop_that_swallows_the_error_once_is_ended() -> None:
    def stubborn() -> NoReturn:
        with suppress(Exception):
            loop()
        loop()

    with pytest.raises(TimeLimitExceeded), time_limit(0.01):
        stubborn()


def test_block_within_its_time_is_left_alone() -> None:
    for _ in range(1000):
        with time_limit(60):
            pass


def test_threads_have_times_of_their_own() -> None:
    ended = threading.Event()

    def endless() -> str:
        with suppress(TimeLimitExceeded), time_limit(0.01):
            loop()
        ended.set()
        return "ended"

    def patient() -> str:
        with time_limit(600):
            assert ended.wait(60)
        return "patient"

    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(lambda call: call(), (patient, endless))] == ["patient", "ended"]


def test_ended_block_leaves_no_exception_pending_in_the_interpreter() -> None:
    # With one pending that is never raised, CPython 3.11 does not get past a profiled call.
    code = (
        "import sys\n"
        "from alarm_models.time_limit import time_limit\n"
        "with time_limit(60):\n    pass\n"
        "def called(): return 'called'\n"
        "sys.setprofile(lambda *_: None)\n"
        "told = called()\n"
        "sys.setprofile(None)\n"
        "print(told)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "called\n"


def test_error_that_comes_as_the_block_ends_is_not_raised_behind_it() -> None:
    for _ in range(200):
        with suppress(TimeLimitExceeded), time_limit(-1):  # over at once
            pass
        for _ in range(100):
            pass
