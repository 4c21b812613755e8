"""Inspects a checkpoint's files without loading it: classes, tensors, heads, quantization.

Reads configurations and the headers of weight files; imports torch only for a ``.bin`` file
without an index.
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

from alarm_models.errors import CheckpointError, shortened
from alarm_models.modeling.gguf_files import gguf_quantization, gguf_tensors, single_gguf
from alarm_models.modeling.quantization import Quantization, TensorInfo, quantization_of

__all__ = [
    "OTHER_FILES",
    "CheckpointFacts",
    "inspect_folder",
    "inspect_quantization",
    "is_folder",
    "joined",
    "no_weights",
    "read_config",
    "read_json_object",
]

#: Safetensors headers are JSON of at most this size (the format's own bound).
_MAX_HEADER_BYTES = 100 << 20

#: Maximum number of characters of a list of names in a message.
_MAX_ECHO = 400

#: More labels than any classifier has.
_MAX_LABELS = 1 << 20

#: Keys of configurations with the number of layers, and more than any model has.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MAX_LAYERS = 2048

#: How tensor names of transformer layers begin: ``<base>.layers.0.``, ``h.0.``, ...
_LAYER = re.compile(
    r"^(?P<base>(?:[\w-]+\.)*?)"
    r"(?:(?:encoder|decoder)\.|(?<=\.)transformer\.)*"
    # A layer contains modules; a stack of linear layers, such as a gate, contains tensors.
    r"(?:layers?|h|blocks?|layer_groups)\.\d+\.[\w-]+\."
)

#: Parts of transformers besides their layers that are not heads.
_BASE_PARTS = frozenset(
    {
        "embed_tokens", "embed_positions", "embeddings", "tok_embeddings", "wte", "wpe", "norm",
        "final_layernorm", "final_layer_norm", "final_norm", "ln_f", "layernorm", "layer_norm",
        "embeddings_project", "word_embedding", "shared", "encoder", "decoder", "pooler",
        "rotary_emb", "project_in", "project_out", "mask_emb", "rel_embeddings",
    }
)  # fmt: skip

#: Output layers over the vocabulary, which are not reward heads.
_VOCABULARY = ("lm_head.", "cls.predictions.", "lm_predictions.", "mask_predictions.", "output.")

#: Weights in another layout, and trainer state: never read.
OTHER_FILES = ("consolidated*", "training_args.bin", "optimizer.bin", "scheduler.bin")

#: Prefix of model folders in the hub's cache.
_CACHED = "models--"

#: Maximum number of characters read of a model card.
_MAX_CARD_CHARS = 1 << 20

_CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_QUOTED_ID = re.compile(r"""["']([\w.-]+/[\w.-]+)["']""")

#: Output layers of transformers' classifiers.
_CLASSIFIERS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")

#: Configuration keys that enable score normalization: beaver's and OpenRLHF's.
_NORMALIZERS = ("do_normalize", "normalize_reward")

#: Configuration files of quantizers, for checkpoints whose config.json says nothing.
_EXPORTS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """The content of a checkpoint's files.

    ``tensors`` are those of the model: a quantized weight that is stored as several is one.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes named in config.json."""
        named = self.config.get("architectures") or ()
        return tuple(map(str, named)) if isinstance(named, list | tuple) else ()

    @property
    def model_type(self) -> str | None:
        """The `model_type` in config.json."""
        named = self.config.get("model_type")
        return named if isinstance(named, str) else None

    @property
    def auto_map(self) -> Mapping[str, str]:
        """The classes of the checkpoint's own code, by transformers' auto class."""
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
        """The names of a classifier's outputs in the configuration."""
        labels = self.config.get("id2label")
        return frozenset(map(str, labels.values())) if isinstance(labels, Mapping) else frozenset()

    @property
    def num_labels(self) -> int | None:
        """The number of outputs of a classifier, if config.json determines it."""
        labels = self.config.get("id2label")
        if isinstance(labels, Mapping):
            return len(labels)
        named = self.config.get("num_labels")
        if isinstance(named, int):
            return named
        # Without either, transformers assumes two labels; OpenRLHF's files mean the rows of the
        # head.
        heads = (self.tensors.get(name) for name in _CLASSIFIERS)
        return next((one.shape[0] for one in heads if one is not None and one.shape), None)

    @property
    def num_outputs(self) -> int | None:
        """Number of outputs of a classifier, from the configuration or else from its head."""
        head = self.tensors.get("score.weight", TensorInfo()).shape
        return self.num_labels if self.num_labels is not None or not head else head[0]

    @property
    def has_base(self) -> bool:
        """Whether the weight files contain a transformer's layers, and not only a head."""
        return any(map(_LAYER.match, self.tensors))

    @property
    def base_prefix(self) -> str:
        """The prefix of the base's tensor names: ``model.``, ``transformer.`` or empty."""
        bases = Counter(
            found["base"] for found in map(_LAYER.match, self.tensors) if found is not None
        )
        return bases.most_common(1)[0][0] if bases else ""

    @property
    def heads(self) -> Mapping[str, TensorInfo]:
        """The tensors outside the base and the vocabulary: heads and their parameters."""
        base = self.base_prefix
        return {name: info for name, info in self.tensors.items() if not _is_of_base(name, base)}

    @property
    def head_names(self) -> tuple[str, ...]:
        """The possible values of `head`: linear layers or stacks of them, in file order."""
        names: dict[str, None] = {}
        for name, info in self.heads.items():
            is_matrix = info.shape is None or len(info.shape) == 2
            if name.endswith(".weight") and is_matrix:
                names[re.sub(r"\.\d+$", "", name.removesuffix(".weight"))] = None
        return tuple(names)

    @property
    def normalization(self) -> Mapping[str, Any]:
        """The keys in config.json for score normalization by the checkpoint's own code."""
        if not any(self.config.get(key) is True for key in _NORMALIZERS):
            return {}
        keys = (*_NORMALIZERS, "normalize_function", "normalizer_type", "mean", "std", "var")
        return {key: self.config[key] for key in keys if key in self.config}

    @property
    def is_normalization_set(self) -> bool:
        """Whether config.json says if the checkpoint's own code normalizes its scores."""
        return any(key in self.config for key in _NORMALIZERS)

    @property
    def chat_template(self) -> str | None:
        """The default chat template in the files."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return _read_text(file)
        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {
                str(one.get("name")): one.get("template")
                for one in template
                if isinstance(one, Mapping)
            }
            template = named.get("default")
        if template is None and (self.folder / "chat_template.json").is_file():
            template = read_json_object(self.folder / "chat_template.json").get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def eos_token(self) -> str | None:
        """The tokenizer's end-of-text token."""
        named = self.tokenizer_config.get("eos_token")
        named = named.get("content") if isinstance(named, Mapping) else named
        return named if isinstance(named, str) else None

    @property
    def added_tokens(self) -> frozenset[str]:
        """The tokens that were added to the tokenizer's vocabulary."""
        file = self.folder / "tokenizer.json"
        added = read_json_object(file).get("added_tokens") if file.is_file() else None
        return frozenset(
            str(one.get("content"))
            for one in (added if isinstance(added, list) else ())
            if isinstance(one, Mapping)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the checkpoint: its folder's, its hub cache's, and those on its card.

        A card names a model in its code: a quoted hub id in a code block of ``README.md``.
        """
        cached = [
            part.removeprefix(_CACHED).replace("--", "/")
            for part in self.folder.absolute().parts
            if part.startswith(_CACHED)
        ]
        folders = (str(self.folder.absolute()), str(self.folder.resolve()))
        return (*folders, *cached, *_card_ids(self.folder / "README.md"))

    @property
    def reward_token(self) -> str | None:
        """The token of `reward_token_id` (InternLM2), if the tokenizer's files contain it."""
        wanted = self.config.get("reward_token_id")
        if wanted is None:
            return None
        decoder = self.tokenizer_config.get("added_tokens_decoder")
        named = decoder.get(str(wanted)) if isinstance(decoder, Mapping) else None
        if isinstance(named, Mapping):
            return str(named.get("content"))
        file = self.folder / "tokenizer.json"
        added = read_json_object(file).get("added_tokens") if file.is_file() else None
        for one in added if isinstance(added, list) else ():
            if isinstance(one, Mapping) and one.get("id") == wanted:
                return str(one.get("content"))
        return None

    def describe(self) -> str:
        """Describe the files in one clause: head-like tensors, the base, the classes."""
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
            parts.append(f"its own code ({', '.join(sorted(set(self.auto_map.values())))})")
        return "found " + ", ".join(part[:_MAX_ECHO] for part in parts)


def joined(names: Iterable[str], most: int = 3) -> str:
    """Join the first ``most`` names, and the number of further ones."""
    shown = list(names)
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "")


def _card_ids(file: Path) -> list[str]:
    """Return the hub ids in the code of a model's card."""
    try:
        with file.open(encoding="utf-8", errors="replace") as card:
            text = card.read(_MAX_CARD_CHARS)
    except OSError:
        return []
    return [name for block in _CODE_BLOCK.findall(text) for name in _QUOTED_ID.findall(block)]


def _is_of_base(name: str, base: str) -> bool:
    if base and name.startswith(base):
        return True
    if name.startswith(_VOCABULARY) or _LAYER.match(name):
        return True
    # Without a prefix, parts of the base besides layers are recognized by name.
    return not base and name.partition(".")[0] in _BASE_PARTS


def is_folder(checkpoint: str) -> bool:
    """Return whether a checkpoint is a local folder; raise `CheckpointError` if it is empty."""
    if not checkpoint.strip():
        raise CheckpointError("the checkpoint is empty: give a folder or a hub id")
    try:
        return Path(checkpoint).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # not a file name, or a home that does not exist
        return False


def inspect_folder(folder: Path) -> CheckpointFacts:
    """Inspect a checkpoint's files; raise `CheckpointError` if they cannot be read."""
    tokenizer_config = folder / "tokenizer_config.json"
    config, tensors = read_config(folder), _tensors(folder)
    quantization = _quantization(folder, config, tensors)
    if quantization is not None and quantization.unsupported is None:
        tensors = quantization.plain(tensors)
    return CheckpointFacts(
        folder,
        config,
        tensors,
        read_json_object(tokenizer_config) if tokenizer_config.is_file() else {},
        tuple(sorted(path.name for path in folder.iterdir() if path.is_file())),
        quantization,
    )


def inspect_quantization(folder: Path) -> Quantization | None:
    """Return how a checkpoint's weights are quantized; None if they are not."""
    config = folder / "config.json"
    return _quantization(folder, read_config(folder) if config.is_file() else {}, _tensors(folder))


def _quantization(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Quantization | None:
    packed = single_gguf(folder)
    if packed is not None:
        return gguf_quantization(packed, tensors)
    exported = {
        name: read_json_object(folder / name) for name in _EXPORTS if (folder / name).is_file()
    }
    return quantization_of(tensors, config, exported)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return a checkpoint's configuration; raise `CheckpointError` if it is invalid."""
    file = folder / "config.json"
    config = read_json_object(file)
    labels = config.get("num_labels")
    # transformers creates a name for each label, which would fill the memory.
    if isinstance(labels, int) and labels > _MAX_LABELS:
        raise CheckpointError(
            f"{file} has num_labels {str(labels)[:20]}, more than any classifier has"
        )
    # transformers creates each layer before it reads the weights.
    for name, part in [("", config), *config.items()]:
        for key in _LAYER_COUNTS if isinstance(part, dict) else ():
            number = part.get(key)
            if isinstance(number, int) and number > _MAX_LAYERS:
                where = f"{shortened(name)}.{key}" if name else key
                raise CheckpointError(
                    f"{file} has {where} {str(number)[:20]}, more than any model has"
                )
    return config


def no_weights(folder: Path, wanted: str = "config.json") -> str:
    """Describe a folder that lacks a file or weights, and what to do."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        config = read_json_object(adapter)
        base = shortened(config.get("base_model_name_or_path") or "the base model")
        kind = shortened(config.get("peft_type", "LORA"))
        task = shortened(config.get("task_type") or "no task type")
        return (
            f"{folder} contains a PEFT adapter ({kind} on {base}, {task}), not a whole checkpoint. "
            f'Write `checkpoint = "{base}"` and `adapter = "{folder}"`, or merge it once with '
            "peft's merge_and_unload and save the result with its tokenizer"
        )
    files = joined(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
    lacks = ".safetensors or .bin weights"
    if not (folder / wanted).is_file():
        lacks = wanted
    return f"{folder} does not contain {lacks}, only {files}: give the folder of a checkpoint"


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of the weight files: safetensors if there are any, ``.bin`` or GGUF."""
    packed = single_gguf(folder)
    if packed is not None:
        return gguf_tensors(packed)
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
                raise ValueError("the header is not a JSON object")
        return {
            name: TensorInfo(tuple(one["shape"]), one["dtype"])
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"{file} is not a valid safetensors file ({error}): it may be incomplete, or a Git LFS "
            "pointer"
        ) from error


def _bin_tensors(file: Path) -> dict[str, TensorInfo]:
    from alarm_models.modeling.checkpoint import read_bin

    return {
        name: TensorInfo(tuple(one.shape), str(one.dtype).removeprefix("torch."))
        for name, one in read_bin(file).items()
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a checkpoint's file with a JSON object; raise `CheckpointError`."""
    try:
        read = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return read


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
