"""Checkpoints with custom classes: run if trusted, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tolerance import computed

from alarm_models.errors import CheckpointError
from zoo import builders, cards
from zoo.cases import load, sample, scores

pytestmark = pytest.mark.numeric

_CLASS = """
import torch
from torch import nn
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class OwnReward(Qwen2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = 1
        self.model = Qwen2Model(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        states = self.model(input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None].to(states.dtype)
        value = 3 * torch.tanh(self.score((states * mask).sum(1) / mask.sum(1)))  # [batch, 1]
        return {answer}
"""


def _write(folder: Path, answer: str, auto: str = "AutoModelForSequenceClassification") -> Any:
    """Write a class that pools and squashes, as no stock class does; return its card."""
    base, head = builders.base(hf.Qwen2Config, pad_token_id=0), builders.linear()
    builders.write_base(
        folder, base, builders.named("score", head), architectures=["OwnReward"],
        auto_map={auto: "modeling_own.OwnReward"}, id2label={"0": "LABEL_0"},
    )  # fmt: skip
    (folder / "modeling_own.py").write_text(_CLASS.replace("{answer}", answer), "utf-8")
    builders.qwen_tokenizer(folder)

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        ids = torch.tensor([cards.chat_ids(folder, sent)])
        state = base(input_ids=ids).last_hidden_state[0].mean(0)
        return float(3 * torch.tanh(head(state)).item())

    return card


@pytest.mark.parametrize("auto", ["AutoModelForSequenceClassification", "AutoModel"])
@pytest.mark.parametrize(
    "answer",
    [
        "SequenceClassifierOutputWithPast(logits=value)",
        "SequenceClassifierOutputWithPast(logits=value[:, 0])",
        "{'rewards': value, 'states': states}",
        "(value, states)",
        "value",
    ],
)
def test_trusted_class_is_run_by_its_own_forward(answer: str, auto: str, tmp_path: Path) -> None:
    card = _write(tmp_path, answer, auto)
    got = scores(load(tmp_path, {"trust_remote_code": True}), cards.ALL)
    assert got == {name: computed(card(sent)) for name, sent in cards.ALL.items()}


def test_untrusted_class_is_not_replaced_by_a_stock_one(tmp_path: Path) -> None:
    _write(tmp_path, "SequenceClassifierOutputWithPast(logits=value)")
    with pytest.raises(CheckpointError, match=r"OwnReward.*trust_remote_code = true"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{'states': states}", r"returns dict of states \[1, 6, 32\]"),
        ("'a word'", "returns str without a tensor"),
        ("self.score(states)[..., 0]", "returns one number per token"),
        ("self.nothing", "does not run on input_ids and attention_mask: AttributeError"),
        ("value.numpy()[5]", "does not run on input_ids"),
    ],
)
def test_trusted_class_without_one_number_per_sample_is_refused(
    answer: str, says: str, tmp_path: Path
) -> None:
    _write(tmp_path, answer)
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path, {"trust_remote_code": True})


def test_trusted_class_with_several_outputs_is_refused_by_sequence(tmp_path: Path) -> None:
    _write(tmp_path, "value.repeat(1, 4)")
    with pytest.raises(CheckpointError, match="the checkpoint has 4"):
        load(tmp_path, {"trust_remote_code": True})


def test_trusted_code_for_another_transformers_version_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "value")
    code = tmp_path / "modeling_own.py"
    gone = "from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING\n"
    code.write_text(gone + code.read_text("utf-8"), "utf-8")
    with pytest.raises(CheckpointError, match="does not run with transformers 5") as refused:
        load(tmp_path, {"trust_remote_code": True})
    assert "LLAMA_INPUTS_DOCSTRING" in str(refused.value)
    assert 'head = "score"' in str(refused.value)


def _math_rm(folder: Path) -> Callable[[cards.Sent], float]:
    base, head = builders.base(hf.Qwen2Config, pad_token_id=0), builders.layers(32, 32, 1)
    builders.write_base(
        folder, base, builders.named("score", head), architectures=["Qwen2ForRewardModel"],
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnReward"
        },
    )  # fmt: skip
    (folder / "configuration_own.py").write_text(
        "from transformers import Qwen2Config\n\n\nclass OwnConfig(Qwen2Config):\n"
        "    model_type = 'qwen2'\n"
    )
    layers = "nn.Sequential(nn.Linear(config.hidden_size, 32), nn.ReLU(), nn.Linear(32, 1))"
    code = _CLASS.replace("nn.Linear(config.hidden_size, 1, bias=False)", layers)
    code = code.replace("{answer}", "SequenceClassifierOutputWithPast(logits=value)")
    config = "from .configuration_own import OwnConfig\n"
    code = config + code.replace(
        "    def __init__", "    config_class = OwnConfig\n\n    def __init__", 1
    )
    code = code.replace(
        "3 * torch.tanh(self.score((states * mask).sum(1) / mask.sum(1)))",
        "self.score(states)[:, -1]",
    )
    (folder / "modeling_own.py").write_text(code)
    builders.qwen_tokenizer(folder)
    return lambda sent: cards.at_last(base, head, cards.chat_ids(folder, sent))


@pytest.mark.parametrize(
    "recipe",
    [
        {"head": "score"},
        {"head": "score", "trust_remote_code": True},
        {"trust_remote_code": True},
    ],
    ids=["head", "head_trusted", "own_forward"],
)
def test_reward_class_in_automodel_scores_by_head_or_forward(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    card = _math_rm(tmp_path)
    got = scores(load(tmp_path, recipe), cards.ALL)
    assert got == {name: computed(card(sent)) for name, sent in cards.ALL.items()}


def test_reward_token_of_a_configuration_is_what_texts_end_with(tmp_path: Path) -> None:
    card = _write(tmp_path, "value")
    reward = hf.AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<|reward|>")
    builders.edit_config(tmp_path, reward_token_id=reward)
    with pytest.raises(CheckpointError, match=r'write `suffix = "<\|reward\|>"`'):
        load(tmp_path, {"trust_remote_code": True})
    model = load(tmp_path, {"trust_remote_code": True, "suffix": "<|reward|>"})
    (features,) = model.prepare([sample(cards.ALL["single"])])
    assert features.ids == (*cards.chat_ids(tmp_path, cards.ALL["single"]), reward)
    assert card(cards.ALL["single"]) != computed(
        scores(model, {"single": cards.ALL["single"]})["single"]
    )
