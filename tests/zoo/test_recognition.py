"""What identifies a checkpoint: names, its card, its files, or the keys that a user sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.modeling.families import match_family
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.recipe.loader import load_recipe
from alarm_models.reward_models.registry import CheckpointState
from zoo import builders, cards
from zoo.cases import load, scores

_GRM = "Ray2333/GRM-Llama3-8B-rewardmodel-ft"


def _causal(folder: Path) -> None:
    hf.LlamaForCausalLM(hf.LlamaConfig(**builders.DECODER)).save_pretrained(folder)
    builders.llama3_tokenizer(folder)


def _classifier(folder: Path) -> None:
    builders.write_classifier(folder, hf.LlamaConfig, builders.llama3_tokenizer, pad_token_id=6)


def _family(folder: Path) -> str | None:
    family = match_family(inspect_folder(folder), str(folder))
    return family and family.name


def _made(folder: Path, *settings: str) -> Any:
    """Load the model of a checkpoint alone, as `serve --model` does."""
    (spec,) = load_recipe(f"checkpoint:{folder}", settings).models.values()
    keys = spec.model_dump(exclude_defaults=True) | {"kind": spec.kind}
    return load(folder, {key: one for key, one in keys.items() if key != "checkpoint"})


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("nvidia/Llama-3.1-Nemotron-70B-Reward-HF", "Nemotron Reward"),
        ("models--nvidia--Llama-3.1-Nemotron-70B-Reward-HF/snapshots/0a1b", "Nemotron Reward"),
        ("RLHFlow/Llama3.1-8B-PRM-Deepseek-Data", "RLHFlow PRM"),
        ("RLHFlow/My-PRM", "RLHFlow PRM"),
        ("nemotron-reward-run/checkpoint-500", None),
        ("rlhflow-prm/run/model", None),
    ],
)
def test_name_is_that_of_the_folder_or_hub_id(
    path: str, family: str | None, tmp_path: Path
) -> None:
    _causal(tmp_path / path)
    assert _family(tmp_path / path) == family


def test_folder_above_with_a_judges_name_does_not_count(tmp_path: Path) -> None:
    _classifier(tmp_path / "prometheus" / "rm-r1")
    assert _family(tmp_path / "prometheus" / "rm-r1") == "sequence classifier of one label"


@pytest.mark.numeric
def test_hub_id_in_the_code_of_the_card_identifies_a_model(tmp_path: Path) -> None:
    _classifier(tmp_path)
    card = "Compare https://huggingface.co/Skywork/Skywork-Reward-Llama-3.1-8B\n```python\n"
    card += f"tokenizer = AutoTokenizer.from_pretrained('{_GRM}')\n```\n"
    (tmp_path / "README.md").write_text(card, "utf-8")
    assert _family(tmp_path) == "GRM, fine-tuned classifiers"
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    sent = cards.ALL["turns"]
    with torch.no_grad():
        ids = cards.chat_ids(tmp_path, sent, special=True)
        wanted = model(torch.tensor([ids])).logits.item()
    assert scores(_made(tmp_path), {"turns": sent}) == {"turns": computed(wanted)}


def test_id_in_the_text_of_a_card_does_not_count(tmp_path: Path) -> None:
    _classifier(tmp_path)
    (tmp_path / "README.md").write_text(f"Better than '{_GRM}'.\n", "utf-8")
    assert _family(tmp_path) == "sequence classifier of one label"


def test_model_that_a_known_one_was_trained_from_is_not_taken_for_it(tmp_path: Path) -> None:
    _classifier(tmp_path)
    builders.edit_config(tmp_path, _name_or_path="sfairXC/FsfairX-LLaMA3-RM-v0.1")
    assert _family(tmp_path) == "sequence classifier of one label"


@pytest.mark.parametrize(
    ("name", "is_noted"), [("model", True), ("Skywork-Reward-V2-Llama-3.1-8B", False)]
)
def test_classifier_that_no_name_identifies_has_a_note(
    name: str, is_noted: bool, tmp_path: Path
) -> None:
    _classifier(tmp_path / name)
    notes = _made(tmp_path / name).notes
    assert any("its text is not verified" in note for note in notes) == is_noted


def test_note_of_a_recipe_does_not_change_its_fingerprint(tmp_path: Path) -> None:
    _classifier(tmp_path)
    plain = load(tmp_path, {})
    noted = _made(tmp_path)
    assert plain.notes == ()
    assert noted.fingerprint == plain.fingerprint
    (spec,) = load_recipe(f"checkpoint:{tmp_path}").models.values()
    shown_alike = load(tmp_path, {"thinking": "strip"})
    assert CheckpointState(torch.device("cpu")).matches(spec, {}, shown_alike.fingerprint)


@pytest.mark.parametrize("name", ["model", "Math-Shepherd"])
def test_added_step_token_identifies_a_process_reward_model(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    hf.MistralForCausalLM(hf.MistralConfig(**builders.DECODER)).save_pretrained(folder)
    builders.llama2_tokenizer(folder, None, extra=("ки",))
    assert recipe_of_checkpoint(str(folder)).table["models"]["rm"]["step_token"] == "ки"


def test_causal_model_without_a_name_is_refused_with_the_keys_of_named_ones(
    tmp_path: Path,
) -> None:
    _causal(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        recipe_of_checkpoint(str(tmp_path))
    message = str(refused.value)
    assert 'Nemotron Reward: `kind = "generative", positive = 0`' in message
    assert "RLHFlow PRM: " in message
    assert "--set models.rm.KEY=VALUE" in message
    assert len(message) < 1500


@pytest.mark.numeric
def test_keys_of_a_refusal_serve_the_checkpoint(tmp_path: Path) -> None:
    _causal(tmp_path)
    model = _made(tmp_path, "models.rm.kind=generative", "models.rm.positive=0")
    causal = hf.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = {
            name: causal(torch.tensor([cards.chat_ids(tmp_path, sent)])).logits[0, -1, 0].item()
            for name, sent in cards.CHATS.items()
        }
    assert scores(model, cards.CHATS) == {name: computed(one) for name, one in wanted.items()}


def test_trust_in_its_own_class_makes_a_recipe(tmp_path: Path) -> None:
    builders.write_base(
        tmp_path, builders.base(hf.Qwen2Config), builders.named("score", builders.linear()),
        architectures=["PooledRewardModel"],
        auto_map={"AutoModelForSequenceClassification": "modeling_pooled.PooledRewardModel"},
    )  # fmt: skip
    recipe = load_recipe(f"checkpoint:{tmp_path}", ["models.rm.trust_remote_code=true"])
    (spec,) = recipe.models.values()
    assert (spec.kind, spec.trust_remote_code) == ("sequence", True)  # type: ignore[union-attr]


def _value_head(folder: Path) -> None:
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), builders.named("v_head", builders.linear()),
        prefix="transformer.", architectures=["LlamaForSequenceClassification"],
    )  # fmt: skip
    builders.llama2_tokenizer(folder, None)


def test_value_head_without_a_text_is_refused_until_it_is_given(tmp_path: Path) -> None:
    _value_head(tmp_path)
    with pytest.raises(CheckpointError, match="For Starling-RM-34B write `turns ="):
        recipe_of_checkpoint(str(tmp_path))
    text = "models.rm.template={prompt}\n{completion}"
    assert scores(_made(tmp_path, text), cards.PLAIN)


_CHATS: Mapping[str, cards.Sent] = {
    "text": cards.PLAIN["single"],
    "one": {"prompt": [cards.user("6 times 7?")], "completion": "42"},
    **cards.CHATS,
}


def test_chat_for_a_text_template_is_refused_by_a_made_recipe(tmp_path: Path) -> None:
    _value_head(tmp_path)
    template = "models.rm.template={prompt}\n{completion}"
    model = _made(tmp_path, template)
    got = scores(model, _CHATS)
    assert not any("no turns" in note for note in model.notes)
    assert [name for name, one in got.items() if isinstance(one, str)] == ["turns", "system"]
    assert "3 messages" in str(got["turns"])
    assert "`turns = { user = ..., assistant = ... }`" in str(got["turns"])
    turns = 'models.rm.turns={ user = "U {}", assistant = "A {}", system = "{}" }'
    assert not any(isinstance(one, str) for one in scores(_made(tmp_path, turns), _CHATS).values())


@pytest.mark.numeric
def test_chat_for_a_text_template_is_joined_by_a_written_recipe(tmp_path: Path) -> None:
    _value_head(tmp_path)
    keys = {"head": "v_head", "prefix": "transformer.", "template": "{prompt}\n{completion}"}
    model = load(tmp_path, keys)
    assert any("the template has no turns" in note for note in model.notes)
    got = scores(model, _CHATS)
    joined = {"prompt": "Be brief.\n\n6 times 7?", "completion": "42"}
    (wanted,) = scores(model, {"joined": joined}).values()
    assert isinstance(wanted, float)
    assert got["system"] == computed(wanted)


def test_question_with_several_messages_is_refused_by_a_made_recipe(tmp_path: Path) -> None:
    _causal(tmp_path)
    model = _made(
        tmp_path, "models.rm.kind=generative", "models.rm.positive=0",
        "models.rm.ask=Is {completion} right for {prompt}?",
    )  # fmt: skip
    got = scores(model, _CHATS)
    assert [name for name, one in got.items() if isinstance(one, str)] == ["turns", "system"]


@pytest.mark.parametrize(
    ("config", "is_noted"),
    [
        ({"mean": 0.5, "std": 2.0}, True),
        ({"mean": [0.5], "var": [4.0]}, True),
        ({"mean": 0.5, "std": 2.0, "normalize_reward": False}, False),
        ({"mean": "pooling"}, False),
    ],
)
def test_mean_without_a_flag_has_a_note(
    config: Mapping[str, Any], is_noted: bool, tmp_path: Path
) -> None:
    _classifier(tmp_path)
    builders.edit_config(tmp_path, **config)
    notes = load(tmp_path, {}).notes
    assert any("neither do_normalize nor normalize_reward" in one for one in notes) == is_noted
    assert load(tmp_path, {"normalization": "none"}).notes == ()


@pytest.mark.parametrize("name", ["", " "])
def test_empty_checkpoint_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _classifier(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint is empty: give a folder"):
        recipe_of_checkpoint(name)


@pytest.mark.parametrize("length", [500, 5000])
def test_long_name_of_a_checkpoint_is_shortened(length: int) -> None:
    with pytest.raises(CheckpointError, match="is not a folder") as refused:
        recipe_of_checkpoint("a" * length)
    assert len(str(refused.value)) < 600


def test_long_base_of_an_adapter_is_shortened(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        f'{{"base_model_name_or_path": "{"b" * 5000}", "task_type": "CAUSAL_LM"}}'
    )
    with pytest.raises(CheckpointError, match="no reward head") as refused:
        recipe_of_checkpoint(str(tmp_path))
    assert len(str(refused.value)) < 1000
    with pytest.raises(CheckpointError, match="PEFT adapter") as refused:
        load(tmp_path, {})
    assert len(str(refused.value)) < 1000


def test_weights_in_another_format_beside_a_configuration_are_named(tmp_path: Path) -> None:
    _classifier(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "rm-Q4_K_M.gguf")
    with pytest.raises(CheckpointError, match=r"rm-Q4_K_M\.gguf is not a complete GGUF"):
        recipe_of_checkpoint(str(tmp_path))


@pytest.mark.numeric
def test_pair_preference_model_compares_with_the_field_other(tmp_path: Path) -> None:
    folder = tmp_path / "pair-preference-model-LLaMA3-8B"
    _causal(folder)
    causal = hf.LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    better, worse = (tokenizer.encode(one, add_special_tokens=False)[0] for one in "AB")
    samples = {
        name: {**sent, "fields": {"other": "Another answer."}} for name, sent in cards.PLAIN.items()
    }

    @torch.no_grad()
    def card(sent: cards.Sent) -> float:
        context = f"\n\n<turn> user\n {sent['prompt']}\n\n\n"
        asked = f"[CONTEXT] {context} [RESPONSE A] {sent['completion']} [RESPONSE B] "
        chat = [cards.user(f"{asked}{sent['fields']['other']} \n")]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        text = text.removeprefix(tokenizer.bos_token)
        ids = tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        logits = causal(ids).logits[0, -1]
        return float(torch.sigmoid(logits[better] - logits[worse]))

    got = scores(_made(folder), {**samples, "turns": cards.ALL["turns"]})
    assert "without turns" in str(got.pop("turns"))
    assert got == {name: computed(card(sent)) for name, sent in samples.items()}
