"""Reads GGUF files: configuration, tokenizer and weights of causal models and their classifiers.

A GGUF file holds all that a checkpoint's folder holds. `unpacked` writes the configuration and the
tokenizer beside a link to the file, in a folder of its own, which is read as any other checkpoint.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alarm_models.errors import CheckpointError
from alarm_models.modeling.quantization import Layout, PackedWeight, Quantization, TensorInfo

if TYPE_CHECKING:  # both are loaded with the first file
    import torch
    from gguf import GGUFReader

__all__ = ["gguf_quantization", "gguf_tensors", "open_gguf", "single_gguf", "unpacked"]

#: The classes of the architectures that are read, without what they are for.
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}

#: Tensors outside layers by their names in GGUF.
_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "cls.output.weight": "score.weight",
}

#: Modules of layers by their names in GGUF.
_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

#: Llama 3's factors of frequencies, which determine the scaling of its positions.
_ROPE_FACTORS = "rope_freqs.weight"

#: Keys of the metadata after the architecture, and their names in config.json.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}

#: Keys that say no more than others do, or nothing about scores.
_OTHER_KEYS = frozenset(
    {
        "attention.value_length", "rope.dimension_count", "rope.freq_base", "pooling_type",
        "classifier.output_labels",
    }
)  # fmt: skip

#: How the tokenizers that are read split texts.
_QWEN_SPLITS = ("qwen2",)
_LLAMA3_SPLITS = ("llama-bpe", "llama3", "llama-v3")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

#: Llama 3's scaling of positions, but for its factor.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192


def single_gguf(folder: Path) -> Path | None:
    """Return the GGUF file of a folder without other weights; raise `CheckpointError` for several.

    None if there is none, or if the folder has other weights, which precede it.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return None
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} GGUF files ({', '.join(one.name for one in files[:4])}): "
            f'give one of them, `checkpoint = "{files[0]}"`; a file in parts is merged by '
            "llama.cpp's `llama-gguf-split --merge`"
        )
    return files[0]


def unpacked(file: Path) -> Path:
    """Return a folder with a GGUF file, its configuration and its tokenizer.

    It is the file's own folder where that has them. Raises `CheckpointError`.
    """
    if (file.parent / "config.json").is_file() and single_gguf(file.parent) == file:
        return file.parent
    stat = file.stat()
    return _unpack(file.absolute(), stat.st_size, stat.st_mtime_ns)


@cache
def _unpack(file: Path, size: int, changed: int) -> Path:
    """Unpack a file once, as long as its size and time are the same."""
    config = _config(_reader(file), file)
    made = tempfile.mkdtemp(prefix="alarm-gguf-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    folder = Path(made) / file.stem
    folder.mkdir()
    (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    beside = [file.parent / name for name in _TOKENIZER_FILES]
    if any(one.is_file() for one in beside):
        for one in (*beside, file.parent / "chat_template.jinja"):
            if one.is_file():
                shutil.copy(one, folder)
    else:
        _write_tokenizer(file, folder)
    return folder


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Write the tokenizer of a file's metadata; raise `CheckpointError` for an unknown type."""
    reader = _reader(file)
    model, split = (_field(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or split not in (*_QWEN_SPLITS, *_LLAMA3_SPLITS):
        raise CheckpointError(
            f"{file}: its tokenizer is {model!r} with the splits {split!r}, only the byte-level "
            f"tokenizers of {', '.join((*_QWEN_SPLITS, *_LLAMA3_SPLITS))} are read from GGUF: put "
            "tokenizer.json and tokenizer_config.json of the original beside it"
        )
    from tokenizers.normalizers import NFC
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    backend = tokenizer.backend_tokenizer
    # What the originals do and files do not say.
    if split in _QWEN_SPLITS:
        backend.normalizer = NFC()
    else:
        backend.model.ignore_merges = True
    tokenizer.save_pretrained(str(folder))


@cache
def _cached_reader(file: Path, size: int, changed: int) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{file} is a GGUF file, which is read by the package {error.name!r}: "
            "pip install 'alarm-models[gguf]'"
        ) from error
    try:
        return GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{file} is no complete GGUF file: {error}") from error


def _reader(file: Path) -> GGUFReader:
    stat = file.stat()
    return _cached_reader(file, stat.st_size, stat.st_mtime_ns)


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _architecture(reader: GGUFReader, file: Path) -> str:
    name = str(_field(reader, "general.architecture"))
    if name not in _CLASSES:
        raise CheckpointError(
            f"{file}: its architecture {name!r} is not read from GGUF, only "
            f"{', '.join(_CLASSES)} are (llama.cpp drops layers of encoders' heads). Give the "
            "folder or hub id of the safetensors that it was made from"
        )
    return name


def _config(reader: GGUFReader, file: Path) -> dict[str, Any]:
    """Return config.json as a file's metadata says; raise `CheckpointError`."""
    name = _architecture(reader, file)
    told = {
        key.removeprefix(f"{name}."): _field(reader, key)
        for key in reader.fields
        if key.startswith(f"{name}.")
    }
    scaling = told.pop("rope.scaling.type", "none")
    unknown = sorted(set(told) - set(_KEYS) - _OTHER_KEYS)
    if unknown or scaling != "none":
        what = ", ".join(unknown) or f"rope.scaling.type {scaling}"
        raise CheckpointError(
            f"{file}: its metadata has {what}, which is not read from GGUF: put the config.json of "
            "the original beside it, or give the safetensors that it was made from"
        )
    tensors = {one.name: one for one in reader.tensors}
    head_dim = told.get("attention.key_length", told.get("rope.dimension_count"))
    config: dict[str, Any] = {_KEYS[key]: value for key, value in told.items() if key in _KEYS}
    rope = {"rope_type": "default"} | _rope_scaling(tensors, told, head_dim, file)
    is_classifier = "cls.output.weight" in tensors
    config |= {
        "model_type": name,
        "architectures": [
            f"{_CLASSES[name]}For{'SequenceClassification' if is_classifier else 'CausalLM'}"
        ],
        "rope_parameters": {**rope, "rope_theta": told.get("rope.freq_base", 10000.0)},
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    for key, ending in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{key}_token_id"] = _field(reader, f"tokenizer.ggml.{ending}_token_id")
    if is_classifier:
        num_labels = int(tensors["cls.output.weight"].shape[1])
        labels = _field(reader, f"{name}.classifier.output_labels")
        labels = labels or [f"LABEL_{index}" for index in range(num_labels)]
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    return config


def _rope_scaling(
    tensors: Mapping[str, Any], told: Mapping[str, Any], head_dim: int | None, file: Path
) -> dict[str, Any]:
    """Return Llama 3's scaling of positions, which the factors of frequencies must be of."""
    if _ROPE_FACTORS not in tensors:
        return {}
    import numpy as np

    factors = np.asarray(tensors[_ROPE_FACTORS].data, dtype=np.float64)
    factor = float(factors.max())
    low, high, original = _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS
    exponents = np.arange(len(factors)) * 2 / (head_dim or 2 * len(factors))
    wavelengths = 2 * np.pi * float(told.get("rope.freq_base", 10000.0)) ** exponents
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    wanted = np.where(wavelengths > original / low, factor, between)
    wanted = np.where(wavelengths < original / high, 1.0, wanted)
    if not np.allclose(factors, wanted, rtol=1e-4):
        raise CheckpointError(
            f"{file}: {_ROPE_FACTORS} is not Llama 3's scaling of positions, the only one that is "
            "read from GGUF: put the config.json of the original beside the file"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def gguf_tensors(file: Path) -> dict[str, TensorInfo]:
    """Return a file's tensors by their names in transformers; raise `CheckpointError`."""
    reader = _reader(file)
    _architecture(reader, file)
    return {
        _name(one.name, file): TensorInfo(
            tuple(int(size) for size in reversed(one.shape)), one.tensor_type.name
        )
        for one in reader.tensors
        if one.name != _ROPE_FACTORS
    }


def gguf_quantization(file: Path, tensors: Mapping[str, TensorInfo]) -> Quantization:
    """Return a file's types of tensors as the quantization of a checkpoint."""
    types = sorted({str(one.dtype) for one in tensors.values()})
    weights = {name: PackedWeight(Layout.GGUF, {"weight": name}) for name in tensors}
    return Quantization(f"GGUF {', '.join(types)}", file.name, weights)


def _name(name: str, file: Path) -> str:
    """Return the name of a GGUF tensor in transformers."""
    if name in _TENSORS:
        return _TENSORS[name]
    found = _LAYER.fullmatch(name)
    if found is None or found[2] not in _MODULES:
        raise CheckpointError(
            f"{file} holds {name}, which is not read from GGUF: give the folder or hub id of the "
            "safetensors that it was made from"
        )
    return f"model.layers.{found[1]}.{_MODULES[found[2]]}.{found[3]}"


def open_gguf(file: Path, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what reads each tensor of a file, by its name in transformers, in its own memory."""
    reader = _reader(file)
    name = _architecture(reader, file)
    heads = {
        "attn_q": _field(reader, f"{name}.attention.head_count"),
        "attn_k": _field(reader, f"{name}.attention.head_count_kv")
        or _field(reader, f"{name}.attention.head_count"),
    }
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for one in reader.tensors:
        if one.name == _ROPE_FACTORS:
            continue
        layer = _LAYER.fullmatch(one.name)
        # llama.cpp reorders Llama's queries and keys for its own rotation.
        num_heads = heads.get(layer[2]) if layer is not None and name == "llama" else None
        readers[_name(one.name, file)] = partial(_read, one, num_heads, dtype)
    return readers


def _read(tensor: Any, num_heads: int | None, dtype: torch.dtype) -> torch.Tensor:
    import torch
    from gguf.quants import dequantize

    values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    if num_heads is not None:
        by_head = values.reshape(num_heads, -1, 2, *values.shape[1:])
        values = by_head.transpose(1, 2).reshape(values.shape)
    return values.to(dtype).contiguous()
