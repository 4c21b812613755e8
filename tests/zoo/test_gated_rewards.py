"""QRM's quantiles and gate, and URM's weighed means, against writings of their forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tolerance import computed
from torch import nn

from alarm_models.errors import CheckpointError
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from zoo import builders, cards
from zoo.cases import load, sample, scores

pytestmark = pytest.mark.numeric

_LLAMA_END = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
_GEMMA_END = "<end_of_turn>\n<start_of_turn>model\n"
_QUANTILES = 19


def _gate(objectives: int) -> nn.ModuleList:
    """Make QRM's gate: linear, ReLU and batch normalization, three times, then linear."""
    torch.manual_seed(41)
    layers: list[nn.Module] = []
    width = builders.HIDDEN
    for _ in range(3):
        norm = nn.BatchNorm1d(16)
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.running_mean = 0.3 * torch.randn(16)
        norm.running_var = 0.5 + torch.rand(16)
        layers += [nn.Linear(width, 16, bias=False), nn.ReLU(), norm]
        width = 16
    layers.append(nn.Linear(width, objectives))
    nn.init.normal_(layers[-1].weight, 0, 4)
    return nn.ModuleList(layers).eval()


def _write_qrm(
    folder: Path, config: Any, tokenizer: Callable[[Path], None], end: str, objectives: int
) -> tuple[cards.Card, Callable[[cards.Sent], list[float]]]:
    """Write a QRM; return what its card computes: score and rewards."""
    base, gate = builders.base(config, pad_token_id=0), _gate(objectives)
    regression = builders.linear(objectives * _QUANTILES)
    torch.manual_seed(42)
    transform = torch.eye(objectives) + 0.1 * torch.randn(objectives, objectives)
    scale = torch.tensor([1.4])
    heads = builders.named("regression_layer", regression) | builders.named("gating.layers", gate)
    heads |= {"reward_transform_matrix": transform, "gating.logit_scale": scale}
    builders.write_base(
        folder, base, heads, parts=2, architectures=["LlamaForRewardModelWithGating"],
        auto_map={"AutoModelForSequenceClassification": "m.LlamaForRewardModelWithGating"},
        gating_temperature=5.0, num_quantiles=_QUANTILES, num_objectives=objectives,
        id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, loss="quantile_regression",
    )  # fmt: skip
    tokenizer(folder)
    pattern = hf.AutoTokenizer.from_pretrained(folder)(end, add_special_tokens=False).input_ids

    @torch.no_grad()
    def rewards(sent: cards.Sent) -> torch.Tensor:
        states = _states(folder, base, sent)[-1]
        quantiles = regression(states).reshape(objectives, _QUANTILES)
        return quantiles.mean(1) @ transform

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        ids = cards.chat_ids(folder, sent)
        at = max(i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern)
        x = _states(folder, base, sent)[at][None]
        for layer in gate:
            x = layer(x)
        return float((x[0] / 5).softmax(-1) * scale @ rewards(sent))

    return card, lambda sent: rewards(sent).tolist()


def _states(folder: Path, base: Any, sent: cards.Sent) -> torch.Tensor:
    ids = torch.tensor([cards.chat_ids(folder, sent)])
    states: torch.Tensor = base(input_ids=ids).last_hidden_state[0]
    return states


def _outputs(model: Any, sent: cards.Sent) -> dict[str, float]:
    prepared = model.prepare([sample(sent)])
    got: dict[str, float] = model.read(prepared[0], model.forward(prepared)[0]).outputs
    return got


def test_qrm_of_llama_alone_scores_as_its_card_does(tmp_path: Path) -> None:
    card, rewards = _write_qrm(
        tmp_path, hf.LlamaConfig, builders.llama3_tokenizer, _LLAMA_END, 19
    )  # fmt: skip
    made = recipe_of_checkpoint(str(tmp_path)).table
    assert "output" not in made["holistic"]
    model = load(tmp_path, made["models"]["rm"])
    assert scores(model, cards.ALL) == {
        name: computed(card(sent)) for name, sent in cards.ALL.items()
    }
    got = _outputs(model, cards.ALL["single"])
    assert list(got)[4] == "helpsteer-verbosity"
    assert list(got.values()) == [computed(one) for one in rewards(cards.ALL["single"])]


def test_qrm_of_gemma_alone_scores_as_its_card_does(tmp_path: Path) -> None:
    card, _ = _write_qrm(tmp_path, hf.Gemma2Config, builders.gemma_tokenizer, _GEMMA_END, 5)
    model = load(tmp_path, recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"])
    samples = {name: sent for name, sent in cards.ALL.items() if name != "system"}
    assert scores(model, samples) == {name: computed(card(sent)) for name, sent in samples.items()}


def test_quantiles_that_the_gate_does_not_weigh_are_refused(tmp_path: Path) -> None:
    _write_qrm(tmp_path, hf.LlamaConfig, builders.llama3_tokenizer, _LLAMA_END, 19)
    recipe = recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"]
    builders.edit_config(tmp_path, num_quantiles=18)
    with pytest.raises(CheckpointError, match=r"19 objectives of 18 quantiles, .* has 361"):
        load(tmp_path, recipe)


def _write_urm(folder: Path) -> Callable[[cards.Sent], tuple[float, list[float]]]:
    """Write a URM; return what its class computes: the score, and the ten outputs."""
    base, score = builders.base(hf.LlamaConfig, pad_token_id=6), builders.linear(10)
    torch.manual_seed(43)
    width = builders.HIDDEN
    weights = nn.Sequential(
        nn.Linear(width, width), nn.SELU(), nn.Linear(width, width), nn.SELU(), nn.Linear(width, 5)
    )
    builders.write_base(
        folder, base, builders.named("score", score) | builders.named("weights.fc", weights),
        id2label={str(at): f"LABEL_{at}" for at in range(10)}, parts=2,
        architectures=["LlamaForSequenceClassificationWithNormal_Weights"],
        auto_map={
            "AutoModelForSequenceClassification":
            "modeling_custom.LlamaForSequenceClassificationWithNormal_Weights"
        },
    )  # fmt: skip
    builders.llama3_tokenizer(folder)

    @torch.no_grad()
    def card(sent: cards.Sent) -> tuple[float, list[float]]:
        ids = torch.tensor([cards.chat_ids(folder, sent, special=True)])
        states = base(input_ids=ids).last_hidden_state
        outputs = score(states)
        means = outputs.view(-1, 5, 2)[:, :, 0].view(1, -1, 5)
        value = (means * weights(states)).sum(-1)[0, -1]
        return value.item(), outputs[0, -1].tolist()

    return card


def test_urm_alone_scores_as_its_class_does(tmp_path: Path) -> None:
    card = _write_urm(tmp_path)
    made = recipe_of_checkpoint(str(tmp_path)).table
    assert "output" not in made["holistic"]
    model = load(tmp_path, made["models"]["rm"])
    (note,) = model.notes
    assert note.startswith("its card tokenizes the chat's text with special tokens")
    assert scores(model, cards.ALL) == {
        name: computed(card(sent)[0]) for name, sent in cards.ALL.items()
    }
    got = _outputs(model, cards.ALL["single"])
    assert list(got)[:3] == ["helpfulness", "helpfulness-spread", "correctness"]
    assert list(got.values()) == [computed(one) for one in card(cards.ALL["single"])[1]]


def test_gate_that_weighs_another_number_is_refused(tmp_path: Path) -> None:
    _write_urm(tmp_path)
    keys = recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"] | {"head": "weights.fc"}
    with pytest.raises(CheckpointError, match=r"weights 5 attributes, .* has 5 outputs, not two"):
        load(tmp_path, keys)
