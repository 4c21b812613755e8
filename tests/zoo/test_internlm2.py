"""InternLM2-reward and POLAR, without code of their own, against a writing of their forward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers as hf
from tolerance import computed
from torch.nn import functional as F

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inputs import BatchLayout
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.types import Sample
from zoo import builders, cards
from zoo.cases import load, scores

pytestmark = pytest.mark.numeric

_HEADS, _GROUPS, _WIDTH, _LAYERS = 8, 2, 4, 2
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|reward|>", "[UNUSED_TOKEN_130]")
_CHAT = "{{ bos_token }}" + builders.CHATML
_REWARD = "<|reward|>"
_POLAR = "[UNUSED_TOKEN_130]"


def _tensors(*, bias: bool = False) -> dict[str, torch.Tensor]:
    """Draw random tensors in the published layout."""
    torch.manual_seed(31)
    size, wide = builders.HIDDEN, 48
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (560, size)}
    for at in range(_LAYERS):
        layer = f"model.layers.{at}"
        shapes[f"{layer}.attention.wqkv.weight"] = ((_HEADS + 2 * _GROUPS) * _WIDTH, size)
        shapes[f"{layer}.attention.wo.weight"] = (size, _HEADS * _WIDTH)
        if bias:
            shapes[f"{layer}.attention.wqkv.bias"] = ((_HEADS + 2 * _GROUPS) * _WIDTH,)
            shapes[f"{layer}.attention.wo.bias"] = (size,)
        shapes[f"{layer}.feed_forward.w1.weight"] = (wide, size)
        shapes[f"{layer}.feed_forward.w2.weight"] = (size, wide)
        shapes[f"{layer}.feed_forward.w3.weight"] = (wide, size)
    tensors = {name: 0.25 * torch.randn(shape) for name, shape in shapes.items()}
    norms = [f"model.layers.{at}.{one}" for at in range(_LAYERS) for one in ("attention", "ffn")]
    for name in [*(f"{one}_norm" for one in norms), "model.norm"]:
        tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(size)
    tensors["v_head.weight"] = 0.4 * torch.randn(1, size)
    return tensors


def _write(
    folder: Path, tensors: Mapping[str, torch.Tensor], reward_token: str = _REWARD, **more: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    builders.llama2_tokenizer(folder, _CHAT, name="InternLM2Tokenizer", extra=_SPECIAL)
    own = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    _edit(folder / "tokenizer_config.json", auto_map=own)
    reward_id = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (at,) = (one["id"] for one in reward_id["added_tokens"] if one["content"] == reward_token)
    builders.write_weights(folder, tensors, parts=2)
    config = {
        "architectures": ["InternLM2ForRewardModel"], "model_type": "internlm2", "bias": False,
        "attn_implementation": "eager", "vocab_size": 560, "hidden_size": builders.HIDDEN,
        "intermediate_size": 48, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "num_key_value_heads": _GROUPS, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": None, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "reward_token_id": at, "tie_word_embeddings": False,
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more), "utf-8")


def _edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | keys), "utf-8")


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def _rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Turn ``[heads, tokens, width]`` by position, halves against each other."""
    half = _WIDTH // 2
    frequencies = theta ** (-torch.arange(half).double() * 2 / _WIDTH)
    angles = torch.arange(x.shape[1]).double()[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _forward(
    tensors: Mapping[str, torch.Tensor], ids: list[int], theta: float = 1e6
) -> torch.Tensor:
    """Compute InternLM2's last states ``[tokens, hidden]`` from the published tensors."""
    x = tensors["model.tok_embeddings.weight"][ids]
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    each = _HEADS // _GROUPS
    for at in range(_LAYERS):
        own = {
            name.removeprefix(f"model.layers.{at}."): one
            for name, one in tensors.items()
            if name.startswith(f"model.layers.{at}.")
        }
        inside = _normed(x, own["attention_norm.weight"])
        rows = F.linear(inside, own["attention.wqkv.weight"], own.get("attention.wqkv.bias"))
        rows = rows.view(len(ids), _GROUPS, each + 2, _WIDTH)
        mixed = []
        for group in range(_GROUPS):
            key = _rotated(rows[:, group, each].unsqueeze(0), theta)[0]
            value = rows[:, group, each + 1]
            for head in range(each):
                query = _rotated(rows[:, group, head].unsqueeze(0), theta)[0]
                weights = (query @ key.T / _WIDTH**0.5).masked_fill(future, -torch.inf)
                mixed.append(weights.softmax(-1) @ value)
        attended = torch.cat(mixed, -1)
        x = x + F.linear(attended, own["attention.wo.weight"], own.get("attention.wo.bias"))
        inside = _normed(x, own["ffn_norm.weight"])
        gate = F.silu(F.linear(inside, own["feed_forward.w1.weight"]))
        wide = gate * F.linear(inside, own["feed_forward.w3.weight"])
        x = x + F.linear(wide, own["feed_forward.w2.weight"])
    return _normed(x, tensors["model.norm.weight"])


def _fast(folder: Path) -> Any:
    return hf.PreTrainedTokenizerFast.from_pretrained(folder)


def _reward_id(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text("utf-8"))["reward_token_id"])


def _card(folder: Path, tensors: Mapping[str, torch.Tensor], theta: float = 1e6) -> cards.Card:
    """`get_score` of InternLM2-reward: the chat's text, and the reward token at its end."""
    tokenizer = _fast(folder)

    def card(sent: cards.Sent) -> float:
        text = tokenizer.apply_chat_template(cards.turns(sent), tokenize=False)
        ids = tokenizer.encode(text, add_special_tokens=False)
        ids += [] if ids[-1] == _reward_id(folder) else [_reward_id(folder)]
        return float(_forward(tensors, ids, theta)[-1] @ tensors["v_head.weight"][0])

    return card


@pytest.mark.parametrize("bias", [False, True])
def test_checkpoint_alone_scores_as_internlm2_does(tmp_path: Path, bias: bool) -> None:
    tensors = _tensors(bias=bias)
    _write(tmp_path, tensors, bias=bias)
    card = _card(tmp_path, tensors)
    model = load(tmp_path, recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"])
    assert model.read_token == _REWARD
    assert model.cost is BatchLayout.PREFIX_SHARED
    assert model.notes == ()
    assert scores(model, cards.ALL) == {
        name: computed(card(sent)) for name, sent in cards.ALL.items()
    }


def test_polar_compares_with_the_reference(tmp_path: Path) -> None:
    folder, tensors = tmp_path / "POLAR-7B", _tensors()
    # As POLAR's: no scaling within its 262144 positions.
    scaling = {"factor": 2.0, "type": "dynamic"}
    _write(folder, tensors, _POLAR, rope_scaling=scaling, rope_theta=50000000)
    tokenizer = _fast(folder)
    samples = {
        name: {**sent, "fields": {"reference": "A kite rises."}} for name, sent in cards.ALL.items()
    }

    def card(sent: cards.Sent) -> float:
        prompt = sent["prompt"]
        if not isinstance(prompt, str):
            prompt = "\n".join(one["content"] for one in prompt)
        text = f"{prompt}\nA kite rises.<|reward|>{prompt}\n{sent['completion']}{_POLAR}"
        states = _forward(tensors, tokenizer(text)["input_ids"], 5e7)
        return float(states[-1] @ tensors["v_head.weight"][0])

    model = load(folder, recipe_of_checkpoint(str(folder)).table["models"]["rm"])
    assert model.read_token == _POLAR
    assert scores(model, samples) == {name: computed(card(sent)) for name, sent in samples.items()}


def test_other_token_than_the_configured_reward_token_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _tensors())
    with pytest.raises(CheckpointError, match=r"reward_token_id 5.*write `suffix = ") as refused:
        load(tmp_path, {"head": "v_head", "suffix": _POLAR})
    assert _REWARD in str(refused.value)


def test_other_reward_token_of_an_unknown_name_is_refused_with_both_ways(tmp_path: Path) -> None:
    _write(tmp_path / "rm", _tensors(), _POLAR)
    with pytest.raises(CheckpointError) as refused:
        recipe_of_checkpoint(str(tmp_path / "rm"))
    assert f'suffix = "{_POLAR}"' in str(refused.value)
    assert '"{prompt}\\n{reference}<|reward|>{prompt}\\n{completion}"' in str(refused.value)


def test_rows_that_the_heads_do_not_make_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, _tensors(), num_key_value_heads=4)
    with pytest.raises(CheckpointError, match=r"wqkv.weight has 48 rows; .* make 64"):
        load(tmp_path, {"head": "v_head", "suffix": _REWARD})


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_sentencepiece_model_alone_is_read_as_sentencepiece_reads_it(
    tmp_path: Path, dummy_prefix: bool
) -> None:
    _write(tmp_path, _tensors())
    (tmp_path / "tokenizer.json").unlink()
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(builders.CORPUS), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(file), model_prefix=str(tmp_path / "tokenizer"), vocab_size=420,
        model_type="bpe", byte_fallback=True, add_dummy_prefix=dummy_prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=[_POLAR], pad_id=-1, minloglevel=2,
    )  # fmt: skip
    added = {
        str(420 + at): {"content": one, "special": True, "normalized": False}
        for at, one in enumerate(["<|im_start|>", "<|im_end|>", "<|reward|>"])
    }
    _edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=added, add_bos_token=True)
    _edit(tmp_path / "config.json", reward_token_id=422)
    model = load(tmp_path, {"head": "v_head", "suffix": _REWARD, "template": "{completion}"})
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    # Behind a token of its own, InternLM2's fast class begins a text anew, sentencepiece does not.
    texts = [
        "A red kite, naïve 🪁.",
        " two  spaces\n\n",
        *([] if dummy_prefix else [f"a{_POLAR}b"]),
    ]
    for text in texts:
        (features,) = model.prepare([Sample("", text)])
        assert list(features.ids) == [1, *own.encode(text), 422]
