"""Process reward models from their checkpoints alone; the score is that of the worst step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tolerance import computed

from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from zoo import builders, cards
from zoo.cases import load, scores

pytestmark = pytest.mark.numeric

SAMPLES: dict[str, cards.Sent] = {
    "two": {"prompt": "6 times 7 less 2?", "completion": "6 times 7 is 42.\n\n42 less 2 is 40."},
    "one": {"prompt": "6 times 7?", "completion": "It is 42."},
    "three": {"prompt": "Quoi?", "completion": "Ça va.\n\nNaïve 日本語.\n\nThe answer is 40."},
}


def _steps(sent: cards.Sent) -> list[str]:
    return [one for one in sent["completion"].split("\n\n") if one.strip()]


def _write_causal(folder: Path, model: type[Any], config: type[Any], tokenizer: Any) -> Any:
    torch.manual_seed(31)
    made = model(config(**builders.DECODER)).eval()
    made.save_pretrained(folder)
    tokenizer(folder)
    return made


def _math_shepherd(folder: Path) -> cards.Card:
    model = _write_causal(
        folder, hf.MistralForCausalLM, hf.MistralConfig,
        lambda where: builders.llama2_tokenizer(where, None, extra=("ки",)),
    )  # fmt: skip
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    plus, minus, tag = map(tokenizer.convert_tokens_to_ids, ("▁+", "▁-", "ки"))

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        steps = "\n".join(f"Step {at}: {one} ки" for at, one in enumerate(_steps(sent), 1))
        ids = tokenizer(f"{sent['prompt']} {steps}", return_tensors="pt")["input_ids"]
        grades = model(ids).logits[0][:, [plus, minus]].softmax(-1)[:, 0]
        return float(grades[ids[0] == tag].min())

    return card


def _rlhflow(folder: Path) -> cards.Card:
    model = _write_causal(folder, hf.LlamaForCausalLM, hf.LlamaConfig, builders.llama3_tokenizer)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    plus, minus = (tokenizer.encode(one, add_special_tokens=False)[-1] for one in "+-")

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        grades, chat = [], []
        for at, one in enumerate(_steps(sent)):
            chat += [cards.user(one if at else f"{sent['prompt']} {one}"), cards.assistant("+")]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            # The answer "+" is the last but one token: what comes before it is asked.
            grades.append(model(ids).logits[0, -3, [plus, minus]].softmax(-1)[0].item())
        return min(grades)

    return card


def _skywork(folder: Path) -> cards.Card:
    base, head = builders.base(hf.Qwen2Config, pad_token_id=0), builders.linear(bias=True)
    builders.write_base(
        folder, base, builders.named("v_head.summary", head), architectures=["Qwen2ForPrmModel"]
    )
    builders.qwen_tokenizer(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        ids, ends = tokenizer.encode(f"<|endoftext|>{sent['prompt']}\n"), []
        for one in _steps(sent):
            ids += [*tokenizer.encode(one), *tokenizer.encode("\n")]
            ends.append(len(ids) - 1)
        states = base(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return float(head(states[ends]).sigmoid().min())

    return card


def _qwen_math(folder: Path) -> cards.Card:
    base, head = builders.base(hf.Qwen2Config, pad_token_id=0), builders.layers(32, 32, 2)
    builders.write_base(
        folder, base, builders.named("score", head), architectures=["Qwen2ForProcessRewardModel"]
    )
    builders.qwen_tokenizer(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    mark = tokenizer.convert_tokens_to_ids("<extra_0>")

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        answer = "".join(f"{one}<extra_0>" for one in _steps(sent))
        ids = torch.tensor([cards.chat_ids(folder, {**sent, "completion": answer})])
        states = base(input_ids=ids).last_hidden_state[0]
        return float(head(states[ids[0] == mark]).softmax(-1)[:, 1].min())

    return card


def _versaprm(folder: Path) -> cards.Card:
    mark = " \n\n\n\n"
    model = _write_causal(
        folder, hf.LlamaForCausalLM, hf.LlamaConfig,
        lambda where: builders.llama3_tokenizer(where, extra=(mark,)),
    )  # fmt: skip
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    plus, minus = (tokenizer.encode(one, add_special_tokens=False)[-1] for one in (" +", " -"))

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        answer = "".join(f"{one}{mark}" for one in _steps(sent))
        ids = tokenizer(f"{sent['prompt']} {answer}", return_tensors="pt")["input_ids"]
        grades = model(ids).logits[0][:, [plus, minus]].softmax(-1)[:, 0]
        return float(grades[ids[0] == tokenizer.convert_tokens_to_ids(mark)].min())

    return card


def _trl(folder: Path) -> cards.Card:
    auto = hf.AutoModelForTokenClassification
    builders.write_classifier(
        folder, hf.Qwen2Config, builders.qwen_tokenizer, auto=auto, num_labels=2, pad_token_id=0
    )
    model = auto.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        ids, ends = tokenizer.encode(sent["prompt"]), []
        for one in _steps(sent):
            ids += [*tokenizer.encode(one), *tokenizer.encode("\n")]
            ends.append(len(ids) - 1)
        return float(model(torch.tensor([ids])).logits[0].softmax(-1)[ends, 1].min())

    return card


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("math-shepherd-mistral-7b-prm", _math_shepherd),
        ("RLHFlow_Llama3.1-8B-PRM-Deepseek-Data", _rlhflow),
        ("Skywork-o1-Open-PRM-Qwen-2.5-7B", _skywork),
        ("Qwen2.5-Math-PRM-7B", _qwen_math),
        ("Llama-VersaPRM-8B", _versaprm),
        ("trl-prm", _trl),
    ],
)
def test_recipe_of_process_reward_model_scores_as_its_card(
    name: str, build: Callable[[Path], cards.Card], tmp_path: Path
) -> None:
    card = build(tmp_path / name)
    table = recipe_of_checkpoint(str(tmp_path / name)).table
    got = scores(load(tmp_path / name, table["models"]["rm"]), SAMPLES)
    assert got == {key: computed(card(sent)) for key, sent in SAMPLES.items()}
