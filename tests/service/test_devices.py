"""A missing device is reported in a sentence."""

from pathlib import Path

import pytest
import torch

from alarm_models.errors import CheckpointError
from alarm_service.cli.main import main
from alarm_service.engine.devices import load_models


def test_load_models_missing_gpu_is_named() -> None:
    num = torch.cuda.device_count()
    with pytest.raises(CheckpointError, match=f"there is no cuda:{num}; torch finds {num} "):
        load_models({}, torch.device("cuda", num), max_remembered_bytes=0)


def test_command_with_missing_gpu_prints_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"prompt": "a", "completion": "b"}\n')
    assert main(["score", str(samples), "--device", "cuda:99"]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines()[-1].startswith("alarm: --device: there is no cuda:99")
    assert "Traceback" not in written.err
