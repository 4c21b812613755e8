"""Recipes created from checkpoints by the table of families, or refusals."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pydantic import TypeAdapter
from safetensors.torch import save_file
from tolerance import computed

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling.families import Family, families, match_family
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint, recipe_text
from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.specs import ModelSpec
from zoo import builders, cards, test_classifiers, test_value_heads
from zoo.cases import Case, load, scores

#: Rows that only a hub id tells: the folders have names like those.
_NAMES = {
    "starling_34b_prefix": "Starling-RM-34B",
    "starling_7b_two_bos": "Starling-RM-7B-alpha",
}

#: What a user adds to the checkpoint, where its files do not say it.
_SET = {"deepspeed_chat": {"template": "Human: {prompt} Assistant: {completion}"}}


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_family_row_has_valid_recipe_or_refusal(family: Family) -> None:
    assert (family.recipe != {}) != (family.refusal is not None) or family.advice is not None
    assert family.refusal is None or family.advice is None
    if family.recipe:
        TypeAdapter(ModelSpec).validate_python({**family.recipe, "checkpoint": "x"})


@pytest.mark.numeric
@pytest.mark.parametrize(
    "case",
    [*test_classifiers.CASES, *test_value_heads.CASES],
    ids=lambda case: case.name,
)
def test_recipe_of_checkpoint_scores_as_its_card(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / _NAMES.get(case.name, case.name)
    card = case.build(folder)
    made = recipe_of_checkpoint(str(folder))
    keys = made.table["models"]["rm"] | _SET.get(case.name, {})
    got = scores(load(folder, keys), case.samples)
    assert got == {name: computed(card(sent)) for name, sent in case.samples.items()}


@pytest.mark.numeric
def test_family_turns_render_as_its_card(tmp_path: Path) -> None:
    case = next(one for one in test_value_heads.CASES if one.name.startswith("ultrarm"))
    card = case.build(tmp_path)
    made = recipe_of_checkpoint(str(tmp_path))
    got = scores(load(tmp_path, made.table["models"]["rm"]), cards.CHATS)
    assert got == {name: computed(card(sent)) for name, sent in cards.CHATS.items()}


@pytest.mark.numeric
@pytest.mark.parametrize("ends_with_eos", [True, False])
def test_openrlhf_family_reads_at_end_of_text(tmp_path: Path, ends_with_eos: bool) -> None:
    base, head = builders.base(hf.Qwen2Config, pad_token_id=0), builders.linear()
    builders.write_base(
        tmp_path, base, builders.named("score", head), architectures=["RewardModel"],
        normalize_reward=False,
    )  # fmt: skip
    end = "<|im_end|>" if ends_with_eos else "<|endoftext|>"
    builders.qwen_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"eos_token": "<|im_end|>"', f'"eos_token": "{end}"'))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)

    def card(sent: cards.Sent) -> float:
        text = tokenizer.apply_chat_template(cards.turns(sent), tokenize=False).rstrip("\n")
        text = text if text.endswith(end) else f"{text} {end}"
        return cards.at_last(base, head, tokenizer(text, add_special_tokens=False)["input_ids"])

    made = recipe_of_checkpoint(str(tmp_path))
    got = scores(load(tmp_path, made.table["models"]["rm"]), cards.ALL)
    assert got == {name: computed(card(sent)) for name, sent in cards.ALL.items()}


def test_classifier_with_several_labels_scores_the_last(tmp_path: Path) -> None:
    builders.write_classifier(
        tmp_path, hf.Qwen2Config, builders.qwen_tokenizer, pad_token_id=0,
        id2label={0: "harmful", 1: "helpful"}, num_labels=2,
    )  # fmt: skip
    recipe = load_recipe(f"checkpoint:{tmp_path}")
    assert recipe.holistic.output == "helpful"
    assert recipe.models["rm"].kind == "multi-objective"


def test_several_labels_without_names_ask_which_one_is_the_score(tmp_path: Path) -> None:
    builders.write_classifier(
        tmp_path, hf.Qwen2Config, builders.qwen_tokenizer, pad_token_id=0, num_labels=5
    )
    with pytest.raises(RecipeError, match=r"--set holistic.output=NAME"):
        load_recipe(f"checkpoint:{tmp_path}")
    recipe = load_recipe(f"checkpoint:{tmp_path}", ["holistic.output=LABEL_3"])
    assert recipe.holistic.output == "LABEL_3"


def test_token_classifier_of_two_labels_that_are_not_named_grades_steps(tmp_path: Path) -> None:
    builders.write_classifier(
        tmp_path, hf.Qwen2Config, builders.qwen_tokenizer, pad_token_id=0, num_labels=2,
        auto=hf.AutoModelForTokenClassification,
    )  # fmt: skip
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps({key: one for key, one in config.items() if "label" not in key}), "utf-8"
    )
    recipe = load_recipe(f"checkpoint:{tmp_path}")
    assert recipe.models["rm"].kind == "steps"


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("name", "keys", "special"),
    [
        ("GRM-Llama3-8B-rewardmodel-ft", {}, True),
        ("verl-rm", {"auto": hf.AutoModelForTokenClassification}, False),
    ],
)
def test_classifier_alone_is_read_at_its_last_token(
    name: str, keys: Mapping[str, Any], special: bool, tmp_path: Path
) -> None:
    auto = keys.get("auto", hf.AutoModelForSequenceClassification)
    folder = tmp_path / name
    builders.write_classifier(
        folder, hf.LlamaConfig, builders.llama3_tokenizer, pad_token_id=6, **keys
    )
    model = auto.from_pretrained(folder).eval()
    got = scores(load(folder, recipe_of_checkpoint(str(folder)).table["models"]["rm"]), cards.ALL)
    with torch.no_grad():
        wanted = {
            key: model(torch.tensor([cards.chat_ids(folder, sent, special=special)])).logits
            for key, sent in cards.ALL.items()
        }
    assert got == {key: computed(one.flatten()[-1].item()) for key, one in wanted.items()}


def test_untrusted_class_is_refused_with_the_lines_that_run_it(tmp_path: Path) -> None:
    builders.write_base(
        tmp_path, builders.base(hf.Qwen2Config), builders.named("score", builders.linear()),
        architectures=["PooledRewardModel"],
        auto_map={"AutoModelForSequenceClassification": "modeling_pooled.PooledRewardModel"},
    )  # fmt: skip
    builders.qwen_tokenizer(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        recipe_of_checkpoint(str(tmp_path))
    assert "`trust_remote_code = true`" in str(refused.value)
    assert 'head = "score"' not in str(refused.value)


def test_stack_of_a_gate_is_not_taken_for_the_base(tmp_path: Path) -> None:
    gate = {f"gating.layers.{at}.weight": torch.ones(8, 8) for at in range(40)}
    builders.write_base(
        tmp_path,
        builders.base(hf.LlamaConfig),
        gate | {"regression_layer.weight": torch.ones(9, 32)},
    )
    facts = inspect_folder(tmp_path)
    assert facts.base_prefix == "model."
    assert "regression_layer" in facts.head_names
    assert "model.embed_tokens" not in facts.head_names


def test_classifier_without_chat_template_requires_template(tmp_path: Path) -> None:
    def tokenizer(folder: Path) -> None:
        builders.llama3_tokenizer(folder, None)

    builders.write_classifier(tmp_path, hf.LlamaConfig, tokenizer, pad_token_id=6)
    table = recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"]
    with pytest.raises(CheckpointError, match="brings no chat template; give a text in `template`"):
        load(tmp_path, table)
    source, template = f"checkpoint:{tmp_path}", "models.rm.template={prompt}\n{completion}"
    spec = load_recipe(source, [template]).models["rm"]
    assert scores(load(tmp_path, spec.model_dump(exclude_defaults=True)), cards.PLAIN)


def test_unknown_causal_model_refusal_describes_its_files(tmp_path: Path) -> None:
    hf.MistralForCausalLM(hf.MistralConfig(**builders.DECODER)).save_pretrained(tmp_path)
    builders.llama2_tokenizer(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        recipe_of_checkpoint(str(tmp_path))
    assert "21 tensors under model., architectures MistralForCausalLM" in str(refused.value)
    assert "kind `generative`" in str(refused.value)


def test_recipe_of_checkpoint_round_trips_as_toml(tmp_path: Path) -> None:
    folder = tmp_path / "UltraRM 13b"
    next(one for one in test_value_heads.CASES if one.name.startswith("ultrarm")).build(folder)
    table = recipe_of_checkpoint(str(folder)).table
    assert table["name"] == "UltraRM-13b"
    text = recipe_text(table)
    assert _plain(tomllib.loads(text)) == _plain(table)
    file = tmp_path / "made.toml"
    file.write_text(text, "utf-8")
    assert load_recipe(str(file)).models == load_recipe(f"checkpoint:{folder}").models


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(one)
        if isinstance(one, Mapping)
        else list(one)
        if isinstance(one, tuple)
        else one
        for key, one in table.items()
    }


def test_made_recipe_of_a_relative_folder_serves_from_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(one for one in test_value_heads.CASES if one.name == "inf_orm").build(tmp_path / "rm")
    monkeypatch.chdir(tmp_path)
    assert recipe_of_checkpoint("rm").table["models"]["rm"]["checkpoint"] == str(tmp_path / "rm")


def test_set_on_recipe_of_checkpoint_does_not_change_the_family(tmp_path: Path) -> None:
    case = next(one for one in test_value_heads.CASES if one.name == "inf_orm")
    case.build(tmp_path)
    changed = load_recipe(f"checkpoint:{tmp_path}", ["models.rm.head=other"])
    assert changed.models["rm"].head == "other"  # type: ignore[union-attr]
    family = match_family(inspect_folder(tmp_path))
    assert family is not None
    assert family.recipe["head"] == "score"


def test_set_contradicting_the_family_is_refused_by_key(tmp_path: Path) -> None:
    next(one for one in test_classifiers.CASES if one.name == "bert_cross_encoder").build(tmp_path)
    with pytest.raises(RecipeError, match="remove template"):
        load_recipe(f"checkpoint:{tmp_path}", ["models.rm.template={prompt} {completion}"])


def test_athene_with_other_read_token_has_a_note(tmp_path: Path) -> None:
    case = next(one for one in test_value_heads.CASES if one.name.startswith("athene"))
    case.build(tmp_path)
    wrong = load(tmp_path, {"head": "v_head"})
    assert wrong.read_token == "<|eot_id|>"
    assert any('suffix = "<|reserved_special_token_1|>"' in note for note in wrong.notes)
    right = load(tmp_path, case.recipe)
    assert right.read_token == "<|reserved_special_token_1|>"
    assert right.notes == ()


def _lora(folder: Path, base_folder: Path, task: str) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter of q and v; return its changes of the base's weights by name."""
    torch.manual_seed(21)
    tensors: dict[str, torch.Tensor] = {}
    changes: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for name, width in (("q_proj", 32), ("v_proj", 16)):
            module = f"model.layers.{layer}.self_attn.{name}"
            a, b = 0.2 * torch.randn(4, 32), 0.2 * torch.randn(width, 4)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
            changes[f"{module}.weight"] = 2.0 * b @ a
    if task == "SEQ_CLS":
        tensors["base_model.model.score.weight"] = builders.linear().weight.data.clone()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA", "task_type": task, "r": 4, "lora_alpha": 8, "bias": "none",
        "base_model_name_or_path": str(base_folder), "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["score"] if task == "SEQ_CLS" else None, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told), "utf-8")
    builders.qwen_tokenizer(folder)
    return changes


@pytest.mark.numeric
@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_recipe_of_adapter_scores_like_merged_base(task: str, tmp_path: Path) -> None:
    torch.manual_seed(20)
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**builders.DECODER, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path / "base")
    builders.qwen_tokenizer(tmp_path / "base")
    folder, head = tmp_path / "adapter", builders.linear(bias=task == "CAUSAL_LM")
    changes = _lora(folder, tmp_path / "base", task)
    if task == "CAUSAL_LM":  # LLaMA-Factory's: the head lies beside the adapter
        save_file(builders.named("v_head.summary", head), folder / "value_head.safetensors")
    with torch.no_grad():
        for name, change in changes.items():
            model.get_parameter(name).add_(change)
    made = recipe_of_checkpoint(str(folder))
    got = scores(_loaded(made.table), cards.ALL)
    assert got == {
        name: computed(cards.at_last(model.model, head, cards.chat_ids(folder, sent)))
        for name, sent in cards.ALL.items()
    }


def _loaded(table: Mapping[str, Any]) -> Any:
    keys = dict(table["models"]["rm"])
    return load(Path(keys.pop("checkpoint")), keys)


@pytest.mark.numeric
def test_adapter_beside_its_bases_configuration_is_read_as_one(tmp_path: Path) -> None:
    base = hf.Qwen2ForCausalLM(hf.Qwen2Config(**builders.DECODER, pad_token_id=0))
    base.save_pretrained(tmp_path / "base")
    builders.qwen_tokenizer(tmp_path / "base")
    folder = tmp_path / "adapter"
    _lora(folder, tmp_path / "base", "SEQ_CLS")
    alone = scores(_loaded(recipe_of_checkpoint(str(folder)).table), cards.PLAIN)
    base.config.save_pretrained(folder)
    made = recipe_of_checkpoint(str(folder))
    assert made.table["models"]["rm"]["checkpoint"] == str(tmp_path / "base")
    assert scores(_loaded(made.table), cards.PLAIN) == alone


def test_adapter_whose_base_is_not_here_takes_another_folder_of_it(tmp_path: Path) -> None:
    _lora(tmp_path / "adapter", Path("Qwen/Qwen2.5-7B-Instruct"), "SEQ_CLS")
    recipe = load_recipe(f"checkpoint:{tmp_path / 'adapter'}", ["models.rm.checkpoint=/base"])
    assert recipe.models["rm"].checkpoint == "/base"  # type: ignore[union-attr]


def test_adapter_without_a_head_is_refused(tmp_path: Path) -> None:
    _lora(tmp_path / "adapter", tmp_path / "base", "CAUSAL_LM")
    with pytest.raises(CheckpointError, match="no reward head"):
        recipe_of_checkpoint(str(tmp_path / "adapter"))


def test_classifier_without_labels_uses_rows_of_its_head(tmp_path: Path) -> None:
    builders.write_classifier(
        tmp_path, hf.Qwen2Config, builders.qwen_tokenizer, pad_token_id=0, num_labels=2
    )
    builders.edit_config(tmp_path, id2label=None, label2id=None, num_labels=None)
    recipe = load_recipe(f"checkpoint:{tmp_path}", ["holistic.output=LABEL_1"])
    assert recipe.holistic.output == "LABEL_1"
    assert inspect_folder(tmp_path).num_labels == 2
    made = recipe_of_checkpoint(str(tmp_path)).table["models"]["rm"]
    assert load(tmp_path, made).read_token == "\n"
