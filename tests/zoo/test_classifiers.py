"""Classifiers of transformers: one logit for a chat or for a text pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tolerance import computed

from zoo import builders, cards
from zoo.cases import Case, assert_as_card, load, parameters, scores

pytestmark = pytest.mark.numeric


def _chat(config: Any, tokenizer: Any, **more: Any) -> Any:
    def build(folder: Path) -> cards.Card:
        builders.write_classifier(folder, config, tokenizer, **more)
        return cards.chat_classifier(folder)

    return build


def _pair(config: Any, tokenizer: Any, **more: Any) -> Any:
    def build(folder: Path) -> cards.Card:
        builders.write_classifier(folder, config, tokenizer, **more)
        return cards.pair_classifier(folder)

    return build


def _mistral(folder: Path) -> None:
    builders.llama2_tokenizer(folder)


def _llama2(folder: Path) -> cards.Card:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    builders.write_classifier(folder, hf.LlamaConfig, builders.llama2_tokenizer, **ids)
    return cards.text_pipeline(folder)


_QWEN = {"pad_token_id": 0, "eos_token_id": 2}
_LLAMA3 = {"pad_token_id": 6, "bos_token_id": 0, "eos_token_id": 4}
_DEBERTA = {
    "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "type_vocab_size": 0, "pooler_hidden_size": 32,
}  # fmt: skip
_NO_SYSTEM = {name: one for name, one in cards.ALL.items() if name != "system"}

CASES = [
    Case("skywork_v2_qwen3", _chat(hf.Qwen3Config, builders.qwen_tokenizer, **_QWEN)),
    Case(
        "skywork_v2_llama31_in_parts",
        _chat(hf.LlamaConfig, builders.llama3_tokenizer, shard="60KB", **_LLAMA3),
    ),
    Case(
        "skywork_gemma2",
        _chat(
            hf.Gemma2Config, builders.gemma_tokenizer, pad_token_id=0, eos_token_id=1,
            bos_token_id=2, sliding_window=16, query_pre_attn_scalar=8,
        ),
        samples=_NO_SYSTEM,
    ),
    Case(
        "acemath_pad_is_eos",
        _chat(hf.Qwen2Config, builders.qwen_tokenizer, pad_token_id=2, eos_token_id=2),
    ),
    Case("llama2_classifier", _llama2, samples=_NO_SYSTEM),
    Case(
        "openassistant_deberta",
        _pair(hf.DebertaV2Config, builders.deberta_tokenizer, **_DEBERTA),
        {"template": "{prompt}[SEP]{completion}"},
        cards.PLAIN,
    ),
    Case(
        "bert_cross_encoder",
        _pair(hf.BertConfig, builders.bert_tokenizer),
        {"pair": True},
        cards.PLAIN,
    ),
    Case(
        "openassistant_electra",
        _pair(hf.ElectraConfig, builders.bert_tokenizer, embedding_size=32),
        {"pair": True},
        cards.PLAIN,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_classifier_scores_as_its_card(case: Case, tmp_path: Path) -> None:
    assert_as_card(case, tmp_path)


def test_chat_template_with_date_gets_fixed_date(tmp_path: Path) -> None:
    def tokenizer(folder: Path) -> None:
        builders.llama3_tokenizer(folder, builders.LLAMA32)

    builders.write_classifier(tmp_path, hf.LlamaConfig, tokenizer, **_LLAMA3)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    read = hf.AutoTokenizer.from_pretrained(tmp_path)

    def on(date: str, sent: cards.Sent) -> float:
        text = read.apply_chat_template(cards.turns(sent), tokenize=False, date_string=date)
        ids = read(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return float(model(ids).logits[0, 0].item())

    wanted = {name: on("26 Jul 2024", sent) for name, sent in cards.ALL.items()}
    assert on("27 Jul 2024", cards.ALL["single"]) != computed(wanted["single"])
    got = scores(load(tmp_path, {}), cards.ALL)
    assert got == {name: computed(value) for name, value in wanted.items()}


def test_chat_template_without_system_role_fails_only_its_sample(tmp_path: Path) -> None:
    builders.write_classifier(
        tmp_path, hf.Gemma2Config, builders.gemma_tokenizer, pad_token_id=0, sliding_window=16
    )
    got = scores(load(tmp_path, {}), cards.ALL)
    assert "System role not supported" in str(got.pop("system"))
    assert all(isinstance(one, float) for one in got.values())


def test_several_ends_of_text_in_a_configuration_are_read(tmp_path: Path) -> None:
    builders.write_classifier(tmp_path, hf.LlamaConfig, builders.llama3_tokenizer, pad_token_id=6)
    builders.edit_config(tmp_path, eos_token_id=[1, 5])
    card = cards.chat_classifier(tmp_path)
    got = scores(load(tmp_path, {}), cards.PLAIN)
    assert got == {name: computed(card(sent)) for name, sent in cards.PLAIN.items()}


def test_chat_template_without_the_tokenizers_bos_is_told(tmp_path: Path) -> None:
    chat = "{% for one in messages %}<|{{ one.role }}|>\n{{ one.content }}\n{% endfor %}"

    def tokenizer(folder: Path) -> None:
        builders.llama3_tokenizer(folder, chat)

    builders.write_classifier(tmp_path, hf.LlamaConfig, tokenizer, **_LLAMA3)
    (note,) = load(tmp_path, {}).notes
    assert "does not begin with <|begin_of_text|>" in note
    assert "`special_tokens = true`" in note
    assert load(tmp_path, {"special_tokens": True}).notes == ()


def test_date_that_a_chat_template_is_given_is_told(tmp_path: Path) -> None:
    def tokenizer(folder: Path) -> None:
        builders.llama3_tokenizer(folder, builders.LLAMA32)

    builders.write_classifier(tmp_path, hf.LlamaConfig, tokenizer, **_LLAMA3)
    assert ["26 Jul 2024" in note for note in load(tmp_path, {}).notes] == [True]
    dated = load(tmp_path, {"template_arguments": {"date_string": "27 Jul 2024"}})
    assert dated.notes == ()
