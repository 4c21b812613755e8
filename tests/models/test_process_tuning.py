"""Process settings made before torch is imported."""

import os
import subprocess
import sys

import pytest

from alarm_models.process_tuning import limit_openmp_spin

_TRIMMED = """
from alarm_models.process_tuning import disable_malloc_trim, trim_malloc

def resident_mb():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 >> 20

disable_malloc_trim()
before = resident_mb()
blocks = [b"x" * (1 << 20) for _ in range(128)]
del blocks
kept = resident_mb() - before
trim_malloc()
print(kept, resident_mb() - before)
"""


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "set, to be put back")
        monkeypatch.delenv(name)


def test_openmp_threads_spin_briefly_before_they_sleep() -> None:
    limit_openmp_spin()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 300_000  # the runtime's own count


def test_openmp_setting_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_openmp_spin()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_openmp_spin()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trim_malloc_gives_freed_memory_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TRIMMED], capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 100 > 20 > left
