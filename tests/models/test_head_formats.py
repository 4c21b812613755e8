"""Heads of checkpoints with custom code are read without running the code."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tiny import Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.recipe.specs import SequenceSpec, StepsSpec
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

SAMPLES = [Sample("What is the capital of France?", "Paris."), Sample("Hi", "a long answer " * 9)]
TEMPLATE = "{prompt} {completion}"


def layers(outputs: int) -> torch.nn.Sequential:
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, outputs, bias=False)
    )


def foreign(folder: Path, outputs: int, name: str = "score") -> Checkpoint:
    """Make a Llama with layers for a head, whose configuration names a class in its own file."""
    tensors = {f"{name}.{key}": value for key, value in layers(outputs).state_dict().items()}
    checkpoint = tiny.base_with(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "own.OwnConfig"}
    config["architectures"] = ["OwnModel"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('this ran')")
    (folder / "own.py").write_text("raise SystemExit('this ran')")
    return checkpoint


def test_mlp_head_gives_the_score_of_its_layers(tmp_path: Path) -> None:
    checkpoint = foreign(tmp_path, outputs=1)
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, head="score"))
    for sample, one in zip(SAMPLES, score(model, SAMPLES), strict=True):
        inputs = checkpoint.tokenizer(f"{sample.prompt} {sample.completion}", return_tensors="pt")
        with torch.inference_mode():
            wanted = layers(1)(checkpoint.model(**inputs).last_hidden_state[0, -1])
        assert one.value == computed(wanted.item())


def test_steps_with_named_head_needs_no_remote_code(tmp_path: Path) -> None:
    foreign(tmp_path, outputs=2)
    (one,) = score(load(StepsSpec(checkpoint=str(tmp_path), head="score")), SAMPLES[:1])
    assert one.value is not None


@pytest.mark.parametrize("head", ["v_head", "scor"])
def test_missing_head_is_named_in_the_error(head: str, tmp_path: Path) -> None:
    foreign(tmp_path, outputs=1)
    with pytest.raises(CheckpointError, match=rf"no tensor {head}\.weight"):
        load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, head=head))
