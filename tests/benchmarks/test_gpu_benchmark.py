"""The GPU benchmark: a rehearsal with toy sizes, and what it reports of sections that fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import Outcome, markdown, require_device

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def rehearse(out: Path, *arguments: str) -> dict[str, dict[str, object]]:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--toy", "--out", out, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.with_suffix(".md").exists()
    sections: dict[str, dict[str, object]] = json.loads(out.read_text())["sections"]
    return sections


@pytest.mark.slow
def test_rehearsal_of_the_cheap_sections_measures_them(tmp_path: Path) -> None:
    only = ["tests", "peak", "attention"]
    found = rehearse(tmp_path / "gpu.json", "--limit-factor", "3", "--only", *only)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(only, "done")
    assert max(row["plain error"] for row in found["attention"]["rows"]) <= 0.05  # type: ignore[attr-defined]


@pytest.mark.slow
def test_section_out_of_time_is_reported(tmp_path: Path) -> None:
    found = rehearse(tmp_path / "gpu.json", "--limit-factor", "0.01", "--only", "peak")
    assert str(found["peak"]["status"]).startswith("out of time")


def test_markdown_has_a_table_and_the_last_line_of_an_error() -> None:
    outcomes = {
        "one": Outcome("One", "done", 2, [{"ms": 1.25}, {"same bits": True}]),
        "two": Outcome("Two", "failed", 3, [], "Traceback\nRuntimeError: no"),
    }
    text = "\n".join(markdown({"torch": "2"}, outcomes))
    assert "| ms | same bits |\n|---|---|\n| 1.25 | - |\n| - | yes |" in text
    assert "failed, 3 s\n\n`RuntimeError: no`" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_without_cuda_is_refused() -> None:
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        require_device("cuda:0", is_toy=False)
