"""Runs scripts in a trainer's Python environment against our server."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients"


def run_in(venv: str, script: str, url: str, folder: Path, **environment: str) -> Any:
    """Run a script of this folder with a trainer's Python; return its JSON output.

    `ALARM_TRAINER_VENVS` names the folder of the environments; skip if it is missing.
    """
    python = Path(os.environ.get("ALARM_TRAINER_VENVS", "")) / venv / "bin" / "python"
    if "ALARM_TRAINER_VENVS" not in os.environ or not python.exists():
        pytest.skip(f"ALARM_TRAINER_VENVS names no folder with an environment {venv!r}")
    written = folder / "written.json"
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given |= {
        "PYTHONPATH": str(CLIENT),
        "ALARM_URL": url,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(python), str(HERE / script), str(written)],
        env=given | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads(written.read_text())
