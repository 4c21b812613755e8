"""Reads GGUF files: configuration, tokenizer and weights of causal models and their classifiers.

A GGUF file holds all that a checkpoint's folder holds. `unpacked` writes the configuration and the
tokenizer beside a link to the file, in a folder of its own, which is read as any other checkpoint.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alarm_models.errors import CheckpointError
from alarm_models.modeling.gguf_header import require_sound_header
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

#: Keys that are real numbers, and integers that are not written to config.json.
_REAL_KEYS = frozenset({"attention.layer_norm_rms_epsilon", "rope.freq_base"})
_SIZE_KEYS = frozenset({"attention.value_length", "rope.dimension_count"})

#: Larger than any size or frequency of a model.
_MAX_NUMBER = 1 << 31

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
    config = _config(_metadata(file), file)
    folder = _make_folder() / file.stem
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


_FOLDERS = "alarm-gguf-"

#: Seconds after which a folder without a lock was left by a process that was killed.
_ABANDONED_S = 60.0


def _make_folder() -> Path:
    """Make a temporary folder that is removed when this process ends.

    If the process is killed, the next one that makes a folder removes it. Until then it is locked,
    also by forked children.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):  # another user's, or just removed
            if time.time() - folder.stat().st_mtime > _ABANDONED_S and not _is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=_FOLDERS))
    fcntl.flock(os.open(made, os.O_RDONLY), fcntl.LOCK_SH)
    atexit.register(_remove_folder, made, os.getpid())
    return made


def _is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_folder(folder: Path, process: int) -> None:
    """Remove the folder of a process, but not in its forked children."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Write the tokenizer of a file's metadata; raise `CheckpointError` for an unknown type."""
    values = _metadata(file).values
    model, split = (values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or split not in (*_QWEN_SPLITS, *_LLAMA3_SPLITS):
        raise CheckpointError(
            f"{file}: its tokenizer is {model!r} with the splits {split!r}, only the byte-level "
            f"tokenizers of {', '.join((*_QWEN_SPLITS, *_LLAMA3_SPLITS))} are read from GGUF: put "
            "tokenizer.json and tokenizer_config.json of the original beside it"
        )
    from tokenizers.normalizers import NFC
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # a damaged vocabulary may raise anything
        raise CheckpointError(
            f"{file}: its tokenizer cannot be read ({type(error).__name__}: {str(error)[:200]}): "
            "put tokenizer.json and tokenizer_config.json of the original beside it"
        ) from error
    backend = tokenizer.backend_tokenizer
    # What the originals do and files do not say.
    if split in _QWEN_SPLITS:
        backend.normalizer = NFC()
    else:
        backend.model.ignore_merges = True
    tokenizer.save_pretrained(str(folder))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the numbers of a tensor are in a file, as an array of numpy, and their GGUF type."""

    start: int
    num_bytes: int
    dtype: Any
    shape: tuple[int, ...]
    type_: Any


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What a file says without its weights and its vocabulary, which would stay in memory."""

    values: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, _Place]
    rope_factors: tuple[float, ...] | None


#: Keys whose arrays are not kept: only the tokenizer needs them.
_VOCABULARY = "tokenizer.ggml."


def _metadata(file: Path) -> _Metadata:
    """Read a file's metadata once, as long as its size and time are the same."""
    stat = file.stat()
    return _cached_metadata(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _cached_metadata(file: Path, size: int, changed: int) -> _Metadata:
    reader = _reader(file)
    values = {
        key: _field(field, key, file)
        for key, field in reader.fields.items()
        if not (key.startswith(_VOCABULARY) and len(field.data) > 1)
    }
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    for one in reader.tensors:
        shape = tuple(int(size) for size in reversed(one.shape))
        tensors[one.name] = TensorInfo(shape, one.tensor_type.name)
        data = one.data
        places[one.name] = _Place(
            one.data_offset, data.nbytes, data.dtype, data.shape, one.tensor_type
        )
    factors = next((one.data for one in reader.tensors if one.name == _ROPE_FACTORS), None)
    kept = None if factors is None else tuple(float(one) for one in factors.flatten())
    return _Metadata(values, tensors, places, kept)


def _field(field: Any, key: str, file: Path) -> Any:
    try:
        return field.contents()
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{file}: its metadata has no readable {key}: {error}") from error


def _reader(file: Path) -> GGUFReader:
    """Open a file; raise `CheckpointError` if it is damaged."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{file} is a GGUF file, which is read by the package {error.name!r}: "
            "pip install 'alarm-models[gguf]'"
        ) from error
    require_sound_header(file)
    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{file} is not a complete GGUF file: {error}") from error
    # Tensors may name the same bytes.
    if sum(one.n_bytes for one in reader.tensors) > len(reader.data) - reader.data_offset:
        raise CheckpointError(f"{file} is no GGUF file of a model: its tensors overlap")
    return reader


def _architecture(values: Mapping[str, Any], file: Path) -> str:
    name = str(values.get("general.architecture"))[:40]
    if name not in _CLASSES:
        raise CheckpointError(
            f"{file}: its architecture {name!r} is not read from GGUF, only "
            f"{', '.join(_CLASSES)} are (llama.cpp drops layers of encoders' heads). Give the "
            "folder or hub id of the safetensors that it was made from"
        )
    return name


def _config(metadata: _Metadata, file: Path) -> dict[str, Any]:
    """Return config.json as a file's metadata says; raise `CheckpointError`."""
    name = _architecture(metadata.values, file)
    told = {
        key.removeprefix(f"{name}."): value
        for key, value in metadata.values.items()
        if key.startswith(f"{name}.")
    }
    scaling = told.pop("rope.scaling.type", "none")
    unknown = sorted(set(told) - set(_KEYS) - _OTHER_KEYS)
    if unknown or scaling != "none":
        what = ", ".join(one[:80] for one in unknown[:8]) or f"rope.scaling.type {scaling}"[:80]
        raise CheckpointError(
            f"{file}: its metadata has {what}, which is not read from GGUF: put the config.json of "
            "the original beside it, or give the safetensors that it was made from"
        )
    _require_numbers(told, file)
    tensors = metadata.tensors
    _require_layers(told.get("block_count"), tensors, file)
    head_dim = told.get("attention.key_length", told.get("rope.dimension_count"))
    config: dict[str, Any] = {_KEYS[key]: value for key, value in told.items() if key in _KEYS}
    rope = {"rope_type": "default"} | _rope_scaling(metadata.rope_factors, told, head_dim, file)
    is_classifier = "cls.output.weight" in tensors
    config |= {
        "model_type": name,
        "architectures": [
            f"{_CLASSES[name]}For{'SequenceClassification' if is_classifier else 'CausalLM'}"
        ],
        "rope_parameters": {**rope, "rope_theta": told.get("rope.freq_base", 10000.0)},
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": _num_rows(tensors, "token_embd.weight", file),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    for key, ending in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.values.get(f"tokenizer.ggml.{ending}_token_id")
        config[f"{key}_token_id"] = token if isinstance(token, int) else None
    if is_classifier:
        num_labels = _num_rows(tensors, "cls.output.weight", file)
        labels = told.get("classifier.output_labels")
        labels = labels if isinstance(labels, list) and len(labels) == num_labels else None
        labels = labels or [f"LABEL_{index}" for index in range(num_labels)]
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    return config


def _require_numbers(told: Mapping[str, Any], file: Path) -> None:
    """Raise `CheckpointError` for a key whose value is not a positive number, as of each layer."""
    for key, value in told.items():
        is_real = key in _REAL_KEYS
        if key not in (*_KEYS, *_REAL_KEYS, *_SIZE_KEYS):
            continue
        is_number = isinstance(value, float if is_real else int) and not isinstance(value, bool)
        if not is_number or not 0 < value < _MAX_NUMBER:
            raise CheckpointError(
                f"{file}: its metadata has {key} = {str(value)[:40]}, where a positive "
                f"{'number' if is_real else 'integer'} is read: put the config.json of the "
                "original beside it"
            )


def _require_layers(num_layers: int | None, tensors: Mapping[str, TensorInfo], file: Path) -> None:
    """Raise `CheckpointError` unless a file has the tensors of as many layers as it counts.

    transformers creates each layer before it reads the weights.
    """
    found = {layer[1] for layer in map(_LAYER.fullmatch, tensors) if layer is not None}
    if num_layers != len(found):
        raise CheckpointError(
            f"{file}: its metadata has block_count = {num_layers}, and its tensors are of "
            f"{len(found)} layers: it is no complete model"
        )


def _num_rows(tensors: Mapping[str, TensorInfo], name: str, file: Path) -> int:
    shape = tensors[name].shape if name in tensors else None
    if shape is None or len(shape) != 2:
        raise CheckpointError(f"{file} has no matrix {name}: it is no complete model")
    return shape[0]


def _rope_scaling(
    rope_factors: Sequence[float] | None, told: Mapping[str, Any], head_dim: int | None, file: Path
) -> dict[str, Any]:
    """Return Llama 3's scaling of positions, which the factors of frequencies must be of."""
    if not rope_factors:
        return {}
    import numpy as np

    factors = np.asarray(rope_factors, dtype=np.float64)
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
    metadata = _metadata(file)
    _architecture(metadata.values, file)
    return {
        _name(name, file): info for name, info in metadata.tensors.items() if name != _ROPE_FACTORS
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
    metadata = _metadata(file)
    values = metadata.values
    name = _architecture(values, file)
    num_heads = values.get(f"{name}.attention.head_count")
    heads = {
        "attn_q": num_heads,
        "attn_k": values.get(f"{name}.attention.head_count_kv", num_heads),
    }
    import numpy as np

    data = np.memmap(file, mode="r")
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for stored, place in metadata.places.items():
        if stored == _ROPE_FACTORS:
            continue
        layer = _LAYER.fullmatch(stored)
        # llama.cpp reorders Llama's queries and keys for its own rotation.
        num_heads = heads.get(layer[2]) if layer is not None and name == "llama" else None
        readers[_name(stored, file)] = partial(_read, data, place, num_heads, dtype)
    return readers


def _read(data: Any, place: _Place, num_heads: int | None, dtype: torch.dtype) -> torch.Tensor:
    import torch
    from gguf.quants import dequantize

    stored = data[place.start : place.start + place.num_bytes].view(place.dtype)
    values = torch.tensor(dequantize(stored.reshape(place.shape), place.type_))
    if num_heads is not None:
        by_head = values.reshape(num_heads, -1, 2, *values.shape[1:])
        values = by_head.transpose(1, 2).reshape(values.shape)
    return values.to(dtype).contiguous()
