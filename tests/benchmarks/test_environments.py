"""The packages of the peers fit together; pip resolves them from the package index."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "environments.py"


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["infinity", "vllm"])
def test_environment_of_a_peer_resolves(peer: str) -> None:
    command = [sys.executable, str(SCRIPT), "--resolve", peer]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
