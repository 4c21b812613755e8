"""How many files a newcomer has to read to follow one request."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WALK = Path(__file__).parents[2] / "benchmarks" / "walk.py"


@pytest.mark.slow
def test_request_passes_at_most_52_files() -> None:
    # In a process of its own: it profiles every thread.
    done = subprocess.run([sys.executable, WALK], capture_output=True, text=True, check=True)
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["files"] <= 52, done.stdout
