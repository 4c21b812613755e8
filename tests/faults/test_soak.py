"""Runs benchmarks/soak.py for two minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

SOAK = Path(__file__).parent.parent.parent / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_soak_of_two_minutes_passes() -> None:
    command = [sys.executable, str(SOAK), "--minutes", "2", "--kill-every", "40"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    *_, told, after = map(json.loads, done.stdout.splitlines())
    assert told["rewards_wrong"] == []
    assert told["rewards_right"] > 100
    assert told["kills"] >= 2
    assert min(told["proxy"].values()) > 0
    assert after["left_alone"] == after["of"]
