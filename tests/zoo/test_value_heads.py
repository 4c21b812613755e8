"""Reward heads next to a base model, named by `head`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from tolerance import computed

from zoo import builders, cards
from zoo.cases import Case, assert_as_card, load, parameters, scores

pytestmark = pytest.mark.numeric

_Head = Callable[[], torch.nn.Module]


def _after_chat(
    name: str,
    head: _Head,
    config: Any = hf.Qwen2Config,
    tokenizer: Any = builders.qwen_tokenizer,
    special: bool = False,
    end: str = "",
    more: Any = None,
    **written: Any,
) -> Callable[[Path], cards.Card]:
    """Read a head at the last token of the chat, as most cards do."""

    def build(folder: Path) -> cards.Card:
        base, layer = builders.base(config, pad_token_id=0), head()
        heads = builders.named(name, layer) | (more() if more else {})
        builders.write_base(folder, base, heads, **written)
        tokenizer(folder)
        return lambda sent: cards.at_last(
            base, layer, cards.chat_ids(folder, sent, special=special, end=end)
        )

    return build


def _after_text(
    name: str,
    head: _Head,
    text: Callable[[cards.Sent], str],
    config: Any,
    tokenizer: Callable[..., None] = builders.llama2_tokenizer,
    **written: Any,
) -> Callable[[Path], cards.Card]:
    """Read a head at the last token of the card's own text."""

    def build(folder: Path) -> cards.Card:
        base, layer = builders.base(config, pad_token_id=0), head()
        builders.write_base(folder, base, builders.named(name, layer), **written)
        tokenizer(folder, None)
        return lambda sent: cards.at_last(base, layer, cards.text_ids(folder, text(sent)))

    return build


def _ultrarm(sent: cards.Sent) -> str:
    names = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}
    return "\n".join(names[one["role"]] + one["content"] for one in cards.turns(sent))


def _starling(sent: cards.Sent) -> str:
    return "\n".join(
        f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>" for one in cards.turns(sent)
    )


def _starling_7b(sent: cards.Sent) -> str:
    return f"<s>[INST] {sent['prompt']} </s> [/INST] {sent['completion']}</s>"


def _deepspeed_chat(sent: cards.Sent) -> str:
    return f"Human: {sent['prompt']} Assistant: {sent['completion']}"


def _eurus(sent: cards.Sent) -> str:
    return f"[INST] {sent['prompt']} [/INST] {sent['completion']}"


def _beaver(sent: cards.Sent) -> str:
    return f"BEGINNING OF CONVERSATION: USER: {sent['prompt']} ASSISTANT:{sent['completion']}"


CASES = [
    Case(
        "ultrarm_bin_in_parts",
        _after_text(
            "regression_head", builders.linear, _ultrarm, hf.LlamaConfig, suffix="bin", parts=3,
            architectures=["LlamaRewardModel"],
        ),
        {
            "head": "regression_head",
            "template": "Human: {prompt}\nAssistant: {completion}",
        },
        cards.PLAIN,
    ),
    Case(
        "eurus",
        _after_text(
            "regression_head", builders.linear, _eurus, hf.MistralConfig,
            architectures=["EurusRewardModel"],
            auto_map={"AutoModel": "modeling_eurus_rm.EurusRewardModel"},
        ),
        {"head": "regression_head", "template": "[INST] {prompt} [/INST] {completion}"},
        cards.PLAIN,
    ),
    Case(
        "beaver",
        _after_text(
            "score_head", lambda: builders.linear(bias=True), _beaver, hf.LlamaConfig,
            suffix="bin", parts=2, architectures=["LlamaForScore"], do_normalize=False,
            mean=[1.5], var=[2.0],
        ),
        {
            "head": "score_head",
            "template": "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{completion}",
        },
        cards.PLAIN,
    ),
    Case(
        "inf_orm",
        _after_chat(
            "score", lambda: builders.layers(32, 32, 1), hf.LlamaConfig,
            builders.llama3_tokenizer, architectures=["INFORMForSequenceClassification"],
        ),
        {"head": "score"},
    ),
    Case(
        "qwen_math_rm",
        _after_chat(
            "score", lambda: builders.layers(32, 32, 1), architectures=["Qwen2ForRewardModel"],
            auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"}, parts=2,
        ),
        {"head": "score"},
    ),
    Case(
        "acecoderm",
        _after_chat(
            "v_head.summary", lambda: builders.linear(bias=True),
            more=lambda: {"lm_head.weight": torch.ones(520, 32)},
            architectures=["Qwen2ForCausalRM"],
        ),
        {"head": "v_head.summary"},
    ),
    Case(
        "grm_sftreg_two_bos",
        _after_chat(
            "v_head.summary", lambda: builders.layers(32, 40, 1), hf.LlamaConfig,
            builders.llama3_tokenizer, special=True, architectures=["GRewardModel"],
            auto_map={"AutoModelForSequenceClassification": "modeling_grm.GRewardModel"},
        ),
        {"head": "v_head.summary", "special_tokens": True},
    ),
    Case(
        "athene_class_token",
        _after_chat(
            "v_head", builders.linear, hf.LlamaConfig, builders.llama3_tokenizer, special=True,
            end="<|reserved_special_token_1|>", architectures=["AtheneForSequenceClassification"],
        ),
        {"head": "v_head", "suffix": "<|reserved_special_token_1|>", "special_tokens": True},
    ),
    Case(
        "starling_34b_prefix",
        _after_text(
            "v_head", builders.linear, _starling, hf.LlamaConfig, builders.qwen_tokenizer,
            prefix="transformer.", architectures=["LlamaForSequenceClassification"],
        ),
        {
            "head": "v_head",
            "prefix": "transformer.",
            "template": "<|im_start|>user\n{prompt}<|im_end|>\n"
            "<|im_start|>assistant\n{completion}<|im_end|>",
        },
        cards.PLAIN,
    ),
    Case(
        "starling_7b_two_bos",
        _after_text(
            "v_head", builders.linear, _starling_7b, hf.LlamaConfig, suffix="bin",
            prefix="transformer.", architectures=["LlamaForSequenceClassification"],
        ),
        {
            "head": "v_head",
            "prefix": "transformer.",
            "template": "<s>[INST] {prompt} </s> [/INST] {completion}</s>",
            "special_tokens": True,
        },
        cards.PLAIN,
    ),
    Case(
        "deepspeed_chat",
        _after_text(
            "v_head", builders.linear, _deepspeed_chat, hf.LlamaConfig, suffix="bin",
            prefix="rwtransformer.", architectures=None,
        ),
        {
            "head": "v_head",
            "prefix": "rwtransformer.",
            "template": "Human: {prompt} Assistant: {completion}",
        },
        cards.PLAIN,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_head_scores_as_its_card_does(case: Case, tmp_path: Path) -> None:
    assert_as_card(case, tmp_path)


def test_llama_factory_value_head_in_separate_file_is_found(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = hf.Qwen2Config(**builders.DECODER, pad_token_id=0)
    model = hf.Qwen2ForCausalLM(made).eval()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    builders.qwen_tokenizer(tmp_path)
    head = builders.linear(bias=True)
    save_file(builders.named("v_head.summary", head), tmp_path / "value_head.safetensors")
    got = scores(load(tmp_path, {"head": "v_head.summary"}), cards.ALL)
    assert got == {
        name: computed(cards.at_last(model.model, head, cards.chat_ids(tmp_path, sent)))
        for name, sent in cards.ALL.items()
    }


def test_armorm_scores_as_its_card_does(tmp_path: Path) -> None:
    base, objectives = builders.base(hf.LlamaConfig, pad_token_id=6), 5
    regression, gate = builders.linear(objectives), builders.layers(32, 16, 16, objectives)
    transform = torch.eye(objectives) + 0.1 * torch.ones(objectives, objectives)
    scale = torch.tensor([1.4])
    heads = builders.named("regression_layer", regression) | {
        # Its layers are a list, and the ReLUs between them are in its code.
        f"gating.layers.{at}.{key}": one
        for at, layer in enumerate(one for one in gate if isinstance(one, torch.nn.Linear))
        for key, one in layer.state_dict().items()
    }
    heads |= {"reward_transform_matrix": transform, "gating.logit_scale": scale}
    builders.write_base(
        tmp_path, base, heads, architectures=["LlamaForRewardModelWithGating"],
        auto_map={"AutoModelForSequenceClassification": "m.LlamaForRewardModelWithGating"},
        gating_temperature=10,
    )  # fmt: skip
    builders.llama3_tokenizer(tmp_path)
    end_of_prompt = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    pattern = hf.AutoTokenizer.from_pretrained(tmp_path)(end_of_prompt, add_special_tokens=False)
    width = len(pattern["input_ids"])

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        ids = cards.chat_ids(tmp_path, sent)
        ends = [at for at in range(len(ids)) if ids[at : at + width] == pattern["input_ids"]]
        states = base(input_ids=torch.tensor([ids])).last_hidden_state[0]
        weights = (gate(states[ends[-1]]) / 10).softmax(-1) * scale
        return float(weights @ (regression(states[-1]) @ transform))

    recipe = {
        "kind": "multi-objective",
        "head": "regression_layer",
        "gate_at": end_of_prompt,
        "objectives": list("abcde"),
    }
    got = scores(load(tmp_path, recipe), cards.ALL)
    assert got == {name: computed(card(sent)) for name, sent in cards.ALL.items()}


def test_nemotron_reads_the_first_logit_of_the_vocabulary(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = hf.LlamaConfig(**builders.DECODER, pad_token_id=6)
    model = hf.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    builders.llama3_tokenizer(tmp_path)
    got = scores(load(tmp_path, {"kind": "generative", "positive": 0}), cards.ALL)
    with torch.no_grad():
        wanted = {
            name: model(torch.tensor([cards.chat_ids(tmp_path, sent)])).logits[0, -1, 0].item()
            for name, sent in cards.ALL.items()
        }
    assert got == {name: computed(value) for name, value in wanted.items()}
