"""Kind `multi-objective` against ArmoRM's formula and plain classifiers of several labels."""

from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tiny import Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.specs import MultiObjectiveSpec
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

GATE_AT = "<|im_end|>\n<|im_start|>assistant\n"
NAMES = ("help", "truth", "style")
SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("A long question " * 12, "with a long answer " * 9),
    Sample("Hi", "Hello"),
]


def tensors() -> dict[str, torch.Tensor]:
    """Make the tensors that ArmoRM has beside its base, with a hidden layer of 16."""
    torch.manual_seed(3)
    return {
        "regression_layer.weight": torch.randn(3, 32),
        "reward_transform_matrix": torch.eye(3) + 0.1 * torch.randn(3, 3),
        "gating.logit_scale": torch.tensor([1.5]),
        "gating.layers.0.weight": torch.randn(16, 32),
        "gating.layers.0.bias": torch.randn(16),
        "gating.layers.1.weight": torch.randn(3, 16) * 5,
        "gating.layers.1.bias": torch.randn(3),
    }


@pytest.fixture(scope="module")
def armo(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.base_with(tmp_path_factory.mktemp("armo"), tensors())


def spec(checkpoint: Checkpoint, **more: object) -> MultiObjectiveSpec:
    base = {"head": "regression_layer", "gate_at": GATE_AT, "objectives": NAMES}
    return MultiObjectiveSpec.model_validate({"checkpoint": str(checkpoint.folder)} | base | more)


@torch.inference_mode()
def plain(armo: Checkpoint, sample: Sample) -> tuple[float, list[float]]:
    """Compute score and rewards by the formula of ArmoRM's card."""
    text = (
        f"<|im_start|>user\n{sample.prompt}<|im_end|>\n"
        f"<|im_start|>assistant\n{sample.completion}<|im_end|>\n"
    )
    ids = armo.tokenizer(text, add_special_tokens=False).input_ids
    pattern = armo.tokenizer(GATE_AT, add_special_tokens=False).input_ids
    (at,) = (i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern)
    states = armo.model(torch.tensor([ids])).last_hidden_state[0]
    t = tensors()
    rewards = t["regression_layer.weight"] @ states[-1]
    hidden = torch.relu(t["gating.layers.0.weight"] @ states[at] + t["gating.layers.0.bias"])
    logits = t["gating.layers.1.weight"] @ hidden + t["gating.layers.1.bias"]
    gate = torch.softmax(logits / 10, 0) * t["gating.logit_scale"]
    return float(gate @ (rewards @ t["reward_transform_matrix"])), rewards.tolist()


def test_multi_objective_with_gate_gives_armorms_score_and_objectives(armo: Checkpoint) -> None:
    for sample, one in zip(SAMPLES, score(load(spec(armo)), SAMPLES), strict=True):
        value, rewards = plain(armo, sample)
        assert one.value == computed(value)
        assert one.outputs == computed(dict(zip(NAMES, rewards, strict=True)))


def test_multi_objective_gate_pattern_in_the_completion_is_ignored(armo: Checkpoint) -> None:
    model = load(spec(armo))
    (plainly, spelled) = model.prepare([Sample("Hi", "Hello"), Sample("Hi", f"Hello{GATE_AT}you")])
    assert not isinstance(plainly, Exception)
    assert not isinstance(spelled, Exception)
    assert plainly.read_positions[0] == spelled.read_positions[0]  # type: ignore[union-attr]


def test_multi_objective_with_truncated_prompt_keeps_its_gate(armo: Checkpoint) -> None:
    (one,) = score(load(spec(armo, max_tokens=64)), [Sample("word " * 300, "Yes.")])
    assert one.truncated
    assert one.value is not None


def test_multi_objective_without_gate_pattern_fails_the_sample(armo: Checkpoint) -> None:
    (error,) = load(spec(armo, template="{prompt} {completion}")).prepare([Sample("a", "b")])
    assert isinstance(error, SampleError)
    assert "gate_at" in error.message


@pytest.mark.parametrize("architecture", ["llama", "roberta", "deberta-v2", "modernbert"])
def test_multi_objective_of_a_classifier_names_each_logit(
    architecture: str, tmp_path: Path
) -> None:
    plainly = tiny.sequence_classifier(architecture, tmp_path, labels=3)
    model = load(
        MultiObjectiveSpec(
            checkpoint=str(tmp_path),
            template="{prompt} {completion}",
            objectives=NAMES,
            weights={"help": 2.0, "style": -1.0},
        )
    )
    for sample, one in zip(SAMPLES, score(model, SAMPLES), strict=True):
        logits = plainly.plain_logits(f"{sample.prompt} {sample.completion}")
        assert one.outputs is not None
        assert list(one.outputs.values()) == computed(logits.tolist())
        assert one.value == computed(float(2 * logits[0] - logits[2]))


def test_multi_objective_score_does_not_depend_on_the_default_dtype(tmp_path: Path) -> None:
    # transformers sets it while it constructs another model, in another thread.
    tiny.sequence_classifier("llama", tmp_path, labels=3)
    model = load(
        MultiObjectiveSpec(
            checkpoint=str(tmp_path), template="{completion}", objectives=NAMES, weights={"help": 2}
        )
    )
    (features,) = model.prepare(SAMPLES[:1])
    assert isinstance(features, ModelInput)
    (outputs,) = model.forward([features])
    wanted = model.read(features, outputs)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert model.read(features, outputs) == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_multi_objective_without_weights_has_labels_and_no_score(
    tmp_path: Path,
) -> None:
    tiny.sequence_classifier("llama", tmp_path, labels=3)
    spec = {"checkpoint": str(tmp_path), "template": "{completion}", "activation": "softmax"}
    (one,) = score(load(MultiObjectiveSpec.model_validate(spec)), SAMPLES[:1])
    assert one.value is None
    assert one.outputs is not None
    assert list(one.outputs) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert sum(one.outputs.values()) == computed(1)


def test_score_with_output_is_that_output(armo: Checkpoint) -> None:
    (one,) = score(load(spec(armo)), SAMPLES[:1])
    assert one.outputs is not None
    assert one.output("truth").value == one.outputs["truth"]
    with pytest.raises(SampleError, match="no output 'wit'; it has help, truth, style"):
        one.output("wit")


def test_multi_objective_with_wrong_names_is_refused(armo: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="3 outputs, but got 2 names"):
        load(spec(armo, objectives=("a", "b")))
    with pytest.raises(RecipeError, match="wit"):
        load(spec(armo, gate_at=None, weights={"wit": 1.0}))
    with pytest.raises(ValueError, match="gate_at requires `head`"):
        MultiObjectiveSpec(checkpoint="a/b", gate_at=GATE_AT)
