"""Checkpoints whose files are damaged or hostile: refused in a sentence, never a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from scoring import load

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.modeling.lora import read_adapter
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.recipe.specs import SequenceSpec

DEEP = '{"a":' * 20000 + "1" + "}" * 20000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sequence_classifier("llama", tmp_path_factory.mktemp("sound") / "rm").folder


def _text(name: str, text: str | bytes) -> Callable[[Path], object]:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(content)


def _config(name: str = "config.json", **keys: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(told | keys))

    return edit


def _header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


BROKEN = {
    "deep_config": (_text("config.json", DEEP), "config.json cannot be read"),
    "deep_tokenizer_config": (_text("tokenizer_config.json", DEEP), "cannot be read"),
    "no_text": (_text("chat_template.jinja", b"\xff"), "cannot be read"),
    "many_labels": (_config(num_labels=1 << 21), "num_labels 2097152"),
    "many_layers": (_config(num_hidden_layers=1 << 30), "num_hidden_layers 1073741824"),
    "header_list": (_text("model.safetensors", _header("[]")), "is not a valid safetensors file"),
    "header_deep": (_text("model.safetensors", _header(DEEP)), "is not a valid safetensors file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_checkpoint_is_refused_in_a_sentence(
    case: str, sound: Path, tmp_path: Path
) -> None:
    damage, message = BROKEN[case]
    folder = shutil.copytree(sound, tmp_path / "rm")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        recipe_of_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=message):
        load(SequenceSpec(checkpoint=str(folder), template="{prompt}{completion}"))


@pytest.mark.parametrize("keys", [{"auto_map": 3}, {"id2label": 3}, {"id2label": {"0": ["x"]}}])
def test_keys_of_another_type_are_not_read(
    keys: dict[str, Any], sound: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sound, tmp_path / "rm")
    _config(**keys)(folder)
    made = recipe_of_checkpoint(str(folder))
    assert made.table["models"]["rm"]["kind"] == "sequence"


@pytest.mark.parametrize("limit", ["x", [1], -1, None])
def test_tokenizer_limit_that_is_not_a_number_is_none(
    limit: object, sound: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sound, tmp_path / "rm")
    _config("tokenizer_config.json", model_max_length=limit)(folder)
    assert Tokenizer(folder).model_max_length == 1 << 60


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("bert", "BertTokenizer"),
        ("gemma2", "GemmaTokenizer"),
        ("gpt2", "GPT2Tokenizer"),
        ("llama", "LlamaTokenizer"),
        ("qwen2", "Qwen2Tokenizer"),
        ("t5", "T5Tokenizer"),
    ],
)
def test_tokenizer_without_its_vocabulary_is_refused(
    model_type: str, named: str, tmp_path: Path
) -> None:
    # transformers makes an empty one, and every text would be read as nothing or as unknown.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    added = {"100": {"content": "<|im_start|>", "special": True}}
    told = {"tokenizer_class": named, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"it has no vocabulary.*Write `tokenizer`"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "null", DEEP])
def test_adapter_configuration_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        recipe_of_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [{"r": 0}, {"r": "x"}, {"lora_alpha": None}, {"rank_pattern": {"(": 3}}, {"alpha_pattern": 3}],
)
def test_adapter_without_a_scaling_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | keys
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {
        f"{name}.lora_A.weight": torch.zeros(4, 8),
        f"{name}.lora_B.weight": torch.zeros(8, 4),
    }
    save_file(halves, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no valid scaling \(r, lora_alpha"):
        read_adapter(tmp_path)


def test_bin_file_with_names_that_are_no_texts_is_described(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "rm")
    (folder / "model.safetensors").unlink()
    torch.save({3: torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"found 3 \[1\]"):
        recipe_of_checkpoint(str(folder))


def test_description_of_very_long_names_is_short(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "rm")
    _config(architectures=["A" * 10_000], model_type="b" * 10_000)(folder)
    save_file({"c" * 10_000: torch.zeros(1)}, folder / "model.safetensors")
    assert len(inspect_folder(folder).describe()) < 1500
