"""What a checkpoint's files say, without loading it: classes, tensors, heads, quantisation.

Reads configurations and the headers of weight files; imports torch only for a ``.bin`` file that
has no index beside it.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError

__all__ = [
    "OTHER_FILES",
    "CheckpointFacts",
    "Quantization",
    "TensorInfo",
    "inspect_folder",
    "joined",
    "no_weights",
    "read_config",
    "read_json_object",
]

#: Safetensors headers are JSON of at most this size (the format's own bound).
_MAX_HEADER_BYTES = 100 << 20

#: Characters of a list of names that a message repeats.
_MAX_ECHO = 400

#: More than any classifier has.
_MAX_LABELS = 1 << 20

#: Where the layers of a transformer begin in a tensor's name: ``<base>.layers.0.``, ``h.0.``, ...
_LAYER = re.compile(
    r"^(?P<base>(?:[\w-]+\.)*?)"
    r"(?:(?:encoder|decoder)\.|(?<=\.)transformer\.)*"
    r"(?:layers?|h|blocks?|layer_groups)\.\d+\."
)

#: Parts of transformers that stand beside their layers, and are no heads.
_BASE_PARTS = frozenset(
    {
        "embed_tokens", "embed_positions", "embeddings", "tok_embeddings", "wte", "wpe", "norm",
        "final_layernorm", "final_layer_norm", "final_norm", "ln_f", "layernorm", "layer_norm",
        "embeddings_project", "word_embedding", "shared", "encoder", "decoder", "pooler",
        "rotary_emb", "project_in", "project_out", "mask_emb", "rel_embeddings",
    }
)  # fmt: skip

#: Output layers over the vocabulary: no reward heads.
_VOCABULARY = ("lm_head.", "cls.predictions.", "lm_predictions.", "mask_predictions.", "output.")

#: What quantised weights have beside them, by the end of a tensor's name.
_QUANTISED_ENDS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_scale_inv": "fp8",
    "weight_scale": "fp8",
    "weight_scale_2": "NVFP4",
    "input_scale": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
}

#: Weights in another layout, and a trainer's state: never read.
OTHER_FILES = ("consolidated*", "training_args.bin", "optimizer.bin", "scheduler.bin")

_GGUF = "*.gguf"

#: The last layers of transformers' classifiers.
_CLASSIFIERS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")

#: Configuration keys that switch on a normalisation of scores: beaver's and OpenRLHF's.
_NORMALIZERS = ("do_normalize", "normalize_reward")

#: What a file beside the configuration says of an export that configuration does not.
_EXPORTS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's shape and type as its file's header says; None where an index names it alone."""

    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        return "" if self.shape is None else f" {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are quantised, and what says so."""

    method: str
    evidence: str


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint's files say of themselves."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the configuration names."""
        named = self.config.get("architectures") or ()
        return tuple(map(str, named)) if isinstance(named, list | tuple) else ()

    @property
    def model_type(self) -> str | None:
        """The configuration's own name of the architecture."""
        named = self.config.get("model_type")
        return named if isinstance(named, str) else None

    @property
    def auto_map(self) -> Mapping[str, str]:
        """The classes that the checkpoint's own code has, by transformers' auto classes."""
        named = self.config.get("auto_map")
        if not isinstance(named, Mapping):
            return {}
        return {
            str(key): str(value[0] if isinstance(value, list) else value)
            for key, value in named.items()
            if value
        }

    @property
    def label_names(self) -> frozenset[str]:
        """What the configuration calls a classifier's outputs."""
        labels = self.config.get("id2label")
        return frozenset(map(str, labels.values())) if isinstance(labels, Mapping) else frozenset()

    @property
    def num_labels(self) -> int | None:
        """How many outputs a classifier has, where the configuration says."""
        labels = self.config.get("id2label")
        if isinstance(labels, Mapping):
            return len(labels)
        named = self.config.get("num_labels")
        if isinstance(named, int):
            return named
        # Where neither is there, transformers means two; OpenRLHF's files mean their head's rows.
        heads = (self.tensors.get(name) for name in _CLASSIFIERS)
        return next((one.shape[0] for one in heads if one is not None and one.shape), None)

    @property
    def base_prefix(self) -> str:
        """What the names of the base's tensors begin with: ``model.``, ``transformer.`` or none."""
        bases = Counter(
            found["base"] for found in map(_LAYER.match, self.tensors) if found is not None
        )
        return bases.most_common(1)[0][0] if bases else ""

    @property
    def heads(self) -> Mapping[str, TensorInfo]:
        """The tensors outside the base and the vocabulary: heads, and what belongs to them."""
        base = self.base_prefix
        return {name: info for name, info in self.tensors.items() if not _is_of_base(name, base)}

    @property
    def head_names(self) -> tuple[str, ...]:
        """What `head` could name: a linear layer or a stack of them, in the files' order."""
        names: dict[str, None] = {}
        for name, info in self.heads.items():
            is_matrix = info.shape is None or len(info.shape) == 2
            if name.endswith(".weight") and is_matrix:
                names[re.sub(r"\.\d+$", "", name.removesuffix(".weight"))] = None
        return tuple(names)

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantised; None where they are plain."""
        config = self.config.get("quantization_config")
        if isinstance(config, Mapping):
            method = config.get("quant_method") or config.get("quant_algo") or "unnamed"
            return Quantization(str(method), "quantization_config in config.json")
        for name, info in self.tensors.items():
            last = name.rpartition(".")[2]
            if last in _QUANTISED_ENDS:
                return Quantization(_QUANTISED_ENDS[last], f"the tensor {name}")
            if info.dtype is not None and info.dtype.startswith("F8"):
                return Quantization("fp8", f"the tensor {name} of type {info.dtype}")
        return None

    @property
    def normalization(self) -> Mapping[str, Any]:
        """The configuration's keys of a normalisation of scores that its own code applies."""
        if not any(self.config.get(key) is True for key in _NORMALIZERS):
            return {}
        keys = (*_NORMALIZERS, "normalize_function", "normalizer_type", "mean", "std", "var")
        return {key: self.config[key] for key in keys if key in self.config}

    @property
    def chat_template(self) -> str | None:
        """The default chat template that stands in the files."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return _read_text(file)
        given = self.tokenizer_config.get("chat_template")
        if isinstance(given, list):  # several by name
            named = {
                str(one.get("name")): one.get("template")
                for one in given
                if isinstance(one, Mapping)
            }
            given = named.get("default")
        if given is None and (self.folder / "chat_template.json").is_file():
            given = read_json_object(self.folder / "chat_template.json").get("chat_template")
        return given if isinstance(given, str) else None

    @property
    def eos_token(self) -> str | None:
        """The tokenizer's end of text."""
        named = self.tokenizer_config.get("eos_token")
        named = named.get("content") if isinstance(named, Mapping) else named
        return named if isinstance(named, str) else None

    def describe(self) -> str:
        """Say what is in the files, in one clause: head-like tensors, the base, the classes."""
        parts = [f"{name}{info}" for name, info in self.heads.items()]
        base = self.base_prefix
        num_base = len(self.tensors) - len(parts)
        if num_base:
            where = f" under {base}" if base else " of a base without a prefix"
            parts = [joined(parts, 6)] if parts else []
            parts.append(f"{num_base} tensors{where}")
        named = ", ".join(self.architectures) or "no architectures"
        parts.append(f"architectures {named}" if self.architectures else named)
        parts.append(f"model_type {self.model_type}" if self.model_type else "no model_type")
        if self.auto_map:
            parts.append(f"code of its own ({', '.join(sorted(set(self.auto_map.values())))})")
        return "found " + ", ".join(part[:_MAX_ECHO] for part in parts)


def joined(names: Iterable[str], most: int = 3) -> str:
    """Return names as a list of so many, and how many more there are."""
    shown = list(names)
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "")


def _is_of_base(name: str, base: str) -> bool:
    if base and name.startswith(base):
        return True
    if name.startswith(_VOCABULARY) or _LAYER.match(name):
        return True
    # Without a prefix, what a base has beside its layers is told by its name alone.
    return not base and name.partition(".")[0] in _BASE_PARTS


def inspect_folder(folder: Path) -> CheckpointFacts:
    """Read what a checkpoint's files say of themselves; raise `CheckpointError`."""
    tokenizer_config = folder / "tokenizer_config.json"
    return CheckpointFacts(
        folder,
        read_config(folder),
        _tensors(folder),
        read_json_object(tokenizer_config) if tokenizer_config.is_file() else {},
        tuple(sorted(path.name for path in folder.iterdir() if path.is_file())),
    )


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return a checkpoint's configuration; raise `CheckpointError` where it is none."""
    file = folder / "config.json"
    config = read_json_object(file)
    labels = config.get("num_labels")
    # transformers names each label, and would fill the memory with names.
    if isinstance(labels, int) and labels > _MAX_LABELS:
        raise CheckpointError(
            f"{file} says num_labels {str(labels)[:20]}: no classifier has so many"
        )
    return config


def no_weights(folder: Path, wanted: str = "config.json") -> str:
    """Say what a folder without a wanted file or without weights holds, and what to do."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        told = read_json_object(adapter)
        base = told.get("base_model_name_or_path") or "the base that it was trained on"
        return (
            f"{folder} holds a PEFT adapter ({told.get('peft_type', 'LORA')} on {base!r}, "
            f"{told.get('task_type') or 'no task named'}), not a whole checkpoint. Write "
            f'`checkpoint = "{base}"` and `adapter = "{folder}"`, or merge it once with '
            "peft's merge_and_unload and save the result with its tokenizer"
        )
    packed = sorted(path.name for path in folder.glob(_GGUF))
    if packed:
        return (
            f"{folder} holds {joined(packed)}: GGUF is llama.cpp's format, which has no reward "
            "heads and is not read here. Give the folder or hub id of the safetensors that it was "
            "made from"
        )
    files = joined(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
    lacks = "neither .safetensors nor .bin weights"
    if not (folder / wanted).is_file():
        lacks = f"no {wanted}"
    return f"{folder} holds {lacks}, but {files}: is it a checkpoint's folder?"


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of the weight files: safetensors where there are any, else ``.bin``."""
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if not _is_other(file):
            tensors |= _safetensors_header(file)
    if tensors:
        return tensors
    indexed: set[str] = set()
    for file in sorted(folder.glob("*.bin.index.json")):
        names: Mapping[str, str] = read_json_object(file).get("weight_map") or {}
        tensors |= dict.fromkeys(names, TensorInfo())
        indexed |= set(names.values())
    for file in sorted(folder.glob("*.bin")):
        if file.name not in indexed and not _is_other(file):
            tensors |= _bin_tensors(file)
    return tensors


def _is_other(file: Path) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in (*OTHER_FILES, "adapter_*"))


def _safetensors_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > _MAX_HEADER_BYTES:
                raise ValueError("the header is larger than the format allows")
            header: Any = json.loads(opened.read(size))
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
        return {
            name: TensorInfo(tuple(one["shape"]), one["dtype"])
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"{file} is no safetensors file ({error}): was it copied whole, and not as a pointer "
            "of Git LFS?"
        ) from error


def _bin_tensors(file: Path) -> dict[str, TensorInfo]:
    from alarm_models.modeling.checkpoint import read_bin

    return {
        name: TensorInfo(tuple(one.shape), str(one.dtype).removeprefix("torch."))
        for name, one in read_bin(file).items()
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file of a checkpoint that holds a JSON object; raise `CheckpointError`."""
    try:
        read = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return read


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
