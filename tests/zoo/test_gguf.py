"""GGUF files are served with the scores of the checkpoints that they were made from."""

from __future__ import annotations

import fcntl
import gc
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.modeling.gguf_files import unpacked
from alarm_models.recipe.loader import load_recipe
from zoo import builders, cards
from zoo.cases import load, scores

pytestmark = pytest.mark.numeric

_SAMPLES = {name: cards.ALL[name] for name in ("single", "unicode", "turns")}

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "score": "cls.output",
    "lm_head": "output", "model.layers": "blk", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _round(folder: Path) -> dict[str, torch.Tensor]:
    """Round a checkpoint's tensors to what a file of 8 bits holds, and return them."""
    tensors = {
        name: (one * 16).round().clamp(-16, 16) / 16
        for name, one in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def _gguf_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, one in tensors.items():
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = one.contiguous()
    return renamed


def _interleaved(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of each head as llama.cpp rotates them: pairs side by side."""
    heads = rows.chunk(num_heads)
    half = heads[0].shape[0] // 2
    return torch.cat([torch.stack((one[:half], one[half:]), 1).flatten(0, 1) for one in heads])


def _classifier(folder: Path, original: Path, **more: Any) -> cards.Card:
    ids = {"pad_token_id": 0, "eos_token_id": 2}
    config = hf.Qwen2Config(**builders.DECODER, **ids)
    builders.write_classifier(original, hf.Qwen2Config, builders.qwen_tokenizer, **ids)
    folder.mkdir()
    builders.write_gguf(
        folder / "rm-Q8_0.gguf", "qwen2", _gguf_names(_round(original)), config, original, **more
    )
    return cards.chat_classifier(original)


def test_gguf_classifier_alone_has_the_scores_of_its_original(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    card = _classifier(folder, tmp_path / "original")
    (spec,) = load_recipe(f"checkpoint:{folder}").models.values()
    assert (spec.kind, spec.checkpoint) == ("sequence", str(folder))
    model = load(folder, {})
    assert scores(model, _SAMPLES) == {n: computed(card(one)) for n, one in _SAMPLES.items()}
    assert "weights dequantized from GGUF F32, Q8_0 to float32" in model.notes
    by_file = load(folder / "rm-Q8_0.gguf", {})
    assert by_file.fingerprint == model.fingerprint
    assert scores(by_file, _SAMPLES) == scores(model, _SAMPLES)


def test_gguf_beside_the_configuration_of_its_original_reads_that(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    card = _classifier(folder, tmp_path / "original")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((tmp_path / "original" / name).read_text("utf-8"), "utf-8")
    model = load(folder, {})
    assert scores(model, _SAMPLES) == {n: computed(card(one)) for n, one in _SAMPLES.items()}


def test_gguf_llama_is_read_as_its_original(tmp_path: Path) -> None:
    original, folder = tmp_path / "original", tmp_path / "gguf"
    rope = {
        "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    keys = {**builders.DECODER, "pad_token_id": 0, "eos_token_id": 2}
    config = hf.LlamaConfig(**keys, rope_parameters=rope)
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(original)
    builders.llama3_tokenizer(original)
    tensors = _gguf_names(_round(original))
    for name, heads in (("attn_q", config.num_attention_heads), ("attn_k", 2)):
        for layer in range(config.num_hidden_layers):
            key = f"blk.{layer}.{name}.weight"
            tensors[key] = _interleaved(tensors[key], heads)
    plain = 1000.0 ** -(torch.arange(0, 8, 2) / 8)
    rotary = hf.LlamaForCausalLM(config).model.rotary_emb
    tensors["rope_freqs.weight"] = plain / rotary.inv_freq
    folder.mkdir()
    builders.write_gguf(folder / "lm.gguf", "llama", tensors, config, original)
    recipe = {"kind": "generative", "positive": 300, "negative": 301}
    got, wanted = (scores(load(one, recipe), _SAMPLES) for one in (folder, original))
    assert got == {name: computed(float(value)) for name, value in wanted.items()}


@pytest.mark.parametrize(
    ("architecture", "key", "says"),
    [
        ("qwen2", "attention.sliding_window", r"metadata has attention\.sliding_window"),
        ("bert", "pooling_type", r"architecture 'bert' is not read from GGUF, only llama, qwen2"),
    ],
)
def test_gguf_of_unknown_contents_is_refused(
    architecture: str, key: str, says: str, tmp_path: Path
) -> None:
    builders.qwen_tokenizer(tmp_path / "original")
    config = hf.Qwen2Config(**builders.DECODER)
    file = tmp_path / "rm.gguf"
    tensors = {"token_embd.weight": torch.ones(8, 32)}
    builders.write_gguf(file, architecture, tensors, config, tmp_path / "original", **{key: 4})
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path, {})


def test_several_gguf_files_are_refused_with_the_name_of_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files .*checkpoint = .*a\.gguf"):
        load(tmp_path, {})


def test_gguf_without_its_package_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "rm.gguf").write_bytes(b"GGUF")
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from pathlib import Path\n"
        "from alarm_models.modeling.gguf_files import unpacked\n"
        f"unpacked(Path({str(tmp_path / 'rm.gguf')!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'alarm-models[gguf]'" in run.stderr


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("sound")
    _classifier(folder / "gguf", folder / "original")
    return (folder / "gguf" / "rm-Q8_0.gguf").read_bytes()


def _behind(name: bytes, value: bytes, skip: int = 0) -> Callable[[bytes], bytes]:
    """Return a function that overwrites what is stored ``skip`` bytes after a name."""

    def damage(sound: bytes) -> bytes:
        start = sound.index(name) + len(name) + skip
        return sound[:start] + value + sound[start + len(value) :]

    return damage


def _counts(num_tensors: int, num_keys: int) -> Callable[[bytes], bytes]:
    return lambda sound: sound[:8] + struct.pack("<QQ", num_tensors, num_keys) + sound[24:]


def _nested(sound: bytes) -> bytes:
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    return sound[:8] + struct.pack("<QQ", 0, 1) + key + struct.pack("<IQ", 9, 1) * 20_000


def _overlapping(sound: bytes) -> bytes:
    """Make all tensors begin where the first does, and cut the file after the largest."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        Path(file.name).write_bytes(sound)
        reader = GGUFReader(file.name, "r+")
        for one in reader.tensors:
            one.field.parts[5][0] = 0
        reader.data.flush()
        largest = max(one.n_bytes for one in reader.tensors)
        return Path(file.name).read_bytes()[: reader.data_offset + largest]


#: Damaged files, and what the error says of each. Some would take all memory or all time.
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "many_tensors": (_counts(1 << 63, 4), "tensors, more than any model has"),
    "many_keys": (_counts(4, 1 << 63), "its metadata counts over"),
    "long_array": (_behind(b"ggml.tokens", struct.pack("<IQ", 7, 1 << 40), 4), "counts over"),
    "long_text": (_behind(b"ggml.pre", struct.pack("<Q", 1 << 62), 4), "its header is cut"),
    "nested": (_nested, "a is an array of arrays"),
    "cut": (lambda sound: sound[:5000], "its header is cut"),
    "cut_weights": (lambda sound: sound[: len(sound) // 2], "is not a complete GGUF file"),
    "dimension": (_behind(b"token_embd.weight", struct.pack("<Q", 1 << 62), 4), "cannot hold"),
    "zero": (_behind(b"token_embd.weight", bytes(8), 4), "cannot hold"),
    "type": (_behind(b"qwen2.block_count", struct.pack("<If", 6, 2.0)), r"block_count = 2\.0"),
    "layers": (
        _behind(b"qwen2.block_count", struct.pack("<I", 1 << 30), 4),
        "of 2 layers",
    ),
    "name": (lambda sound: sound.replace(b"token_embd", b"xoken_embd"), "no matrix token_embd"),
    "merges": (lambda sound: sound.replace(b"ggml.merges", b"ggml.xerges"), "tokenizer cannot be"),
    "overlap": (_overlapping, "its tensors overlap"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_gguf_is_refused_in_a_sentence(case: str, sound: bytes, tmp_path: Path) -> None:
    damage, says = DAMAGED[case]
    (tmp_path / "rm.gguf").write_bytes(damage(sound))
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path, {})


def test_loaded_gguf_keeps_no_map_of_its_file(sound: bytes, tmp_path: Path) -> None:
    file = tmp_path / "rm.gguf"
    file.write_bytes(sound)
    model = load(tmp_path, {})
    assert model.fingerprint
    gc.collect()
    assert str(file) not in Path("/proc/self/maps").read_text("utf-8")


def test_gguf_folder_of_a_killed_process_is_removed_by_the_next(
    sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, locked, new = (tmp_path / f"alarm-gguf-{name}" for name in ("left", "locked", "new"))
    for folder in (left, locked, new):
        folder.mkdir()
    for folder in (left, locked):
        os.utime(folder, (0, 0))
    lock = os.open(locked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    file = tmp_path / "model.gguf"
    file.write_bytes(sound)
    folder = unpacked(file).parent
    os.close(lock)
    assert sorted(tmp_path.glob("alarm-gguf-*")) == sorted([locked, new, folder])
