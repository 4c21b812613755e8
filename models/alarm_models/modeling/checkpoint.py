"""Checkpoints: locate, digest and read them, without unpickling objects."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from alarm_models.errors import CheckpointError, quoted
from alarm_models.modeling.dequantization import dequantize
from alarm_models.modeling.gguf_files import open_gguf, single_gguf, unpacked
from alarm_models.modeling.inspection import (
    OTHER_FILES,
    inspect_quantization,
    is_folder,
    joined,
    no_weights,
)
from alarm_models.modeling.quantization import PackedWeight

__all__ = [
    "code_digest",
    "digest",
    "is_under",
    "label_names",
    "locate",
    "open_tensors",
    "pickle_refusal",
    "read_bin",
    "read_file",
    "read_tensors",
    "stamps",
]

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ("*.safetensors", "*.bin")

#: Characters of a recipe's text that an error shows.
_MAX_SHOWN = 200

#: Weights in another layout, trainer state, and subfolders: never read.
_NOT_FETCHED = [*OTHER_FILES, "*/*"]


def locate(
    checkpoint: str,
    revision: str | None = None,
    *,
    holds: str | None = "config.json",
    with_code: bool = False,
    with_weights: bool = True,
    key: str = "checkpoint",
) -> Path:
    """Return the folder of a checkpoint: the folder itself, or a hub snapshot of that id.

    ``revision``, or the part of a hub id after ``@``, is a branch, a tag or a commit. Safetensors
    are preferred; ``.bin`` files are fetched only if there are none. A folder must contain the file
    ``holds``, if given. Raises `CheckpointError`, which names ``key``, the recipe's key, and says
    what to do.
    """
    if not checkpoint.strip():
        raise CheckpointError(f"{key} is empty: give a folder or a hub id")
    file = Path(checkpoint).expanduser()
    if file.suffix == ".gguf" and file.is_file():
        return unpacked(file)
    if is_folder(checkpoint):
        folder = Path(checkpoint).expanduser()
        packed = single_gguf(folder) if holds == "config.json" else None
        if packed is not None:
            return unpacked(packed)
        if holds is not None and not (folder / holds).is_file():
            raise CheckpointError(no_weights(folder, holds))
        return folder
    name, _, named = checkpoint.partition("@")
    small = [*_SMALL_FILES, *(["*.py"] if with_code else [])]

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=named or revision,
                allow_patterns=[*small, *patterns],
                ignore_patterns=_NOT_FETCHED,
            )
        )

    try:
        snapshot = fetch()
        if not with_weights:
            return snapshot
        for pattern in _WEIGHTS:
            snapshot = fetch(pattern)
            if any(snapshot.glob(pattern)):
                return snapshot
    except HFValidationError as error:
        raise CheckpointError(
            f"{key} {quoted(checkpoint)} is not a folder and not a hub id: check the path"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{key} {quoted(checkpoint)} is not a folder, and could not be fetched from the hub"
            f"{f' at revision {quoted(revision)}' if revision else ''}: {_reason(error)}"
        ) from error
    raise CheckpointError(
        f"{quoted(checkpoint)} has neither .safetensors nor .bin weights; give a GGUF file by its "
        f'path, `{key} = "FILE.gguf"`'
    )


def _reason(error: Exception) -> str:
    """Return why a checkpoint could not be fetched, and what to do."""
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or one that requires a login (set HF_TOKEN)"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "it is not downloaded, and the hub is unreachable or HF_HUB_OFFLINE is set: give a "
            "folder, or download it once"
        )
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files: safetensors if there are any, else ``.bin`` or GGUF."""
    packed = single_gguf(folder)
    if packed is not None:
        return [packed]
    for pattern in _WEIGHTS:
        files = sorted(path for path in folder.glob(pattern) if not _is_other(path.name))
        if files:
            return files
    raise CheckpointError(no_weights(folder))


def _is_other(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _NOT_FETCHED)


def digest(folder: Path, *, with_weights: bool = True) -> str:
    """Return a digest of the weights, the configuration and the tokenizer: a hex string."""
    whole = hashlib.sha256()
    for path in _files(folder, with_weights):
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return whole.hexdigest()


def code_digest(folder: Path) -> str:
    """Return a digest of the code in a checkpoint: a hex string, the same for all without code."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        whole.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return whole.hexdigest()


def stamps(folder: Path, *, with_weights: bool = True) -> dict[str, tuple[int, ...]]:
    """Return sizes and times of the digested files, which change when one of them is written."""
    stats = {path.name: path.stat() for path in _files(folder, with_weights)}
    return {name: (one.st_ino, one.st_size, one.st_mtime_ns) for name, one in stats.items()}


def _files(folder: Path, with_weights: bool) -> list[Path]:
    names = sorted(path for pattern in _SMALL_FILES for path in folder.glob(pattern))
    return [*names, *(weight_files(folder) if with_weights else [])]


class LazyTensor:
    """A tensor of a checkpoint that is read, and dequantized, when it is indexed."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._read()[index]

    def tensor(self) -> torch.Tensor:
        """Read the whole tensor."""
        return self._read()


def open_tensors(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, LazyTensor]:
    """Open the tensors of a checkpoint by their names in the model; none of them is read yet.

    Quantized weights are dequantized to ``dtype``. The tensors of a checkpoint that has some are in
    memory of their own, others may be views of their file. Raises `CheckpointError`.
    """
    stored: dict[str, LazyTensor] = {}
    for file in weight_files(folder):
        if file.suffix == ".gguf":
            return {name: LazyTensor(one) for name, one in open_gguf(file, dtype).items()}
        stored |= _open_file(file)
    quantization = inspect_quantization(folder)
    if quantization is None or not quantization.weights:
        return stored
    packed = quantization.weights
    parts = {name for one in packed.values() for name in one.parts.values()}
    dropped = parts.union(quantization.unused)

    def weight(name: str, one: PackedWeight) -> torch.Tensor:
        read = {role: stored[part].tensor() for role, part in one.parts.items()}
        return dequantize(f"{folder}: {name}", one, read, dtype)

    def copy(name: str) -> torch.Tensor:
        return stored[name].tensor().clone()

    return {name: LazyTensor(partial(copy, name)) for name in stored if name not in dropped} | {
        name: LazyTensor(partial(weight, name, one)) for name, one in packed.items()
    }


def _open_file(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, framework="pt")
        return {key: LazyTensor(partial(opened.get_tensor, key)) for key in opened.keys()}  # noqa: SIM118
    tensors = read_bin(file)
    return {key: LazyTensor(partial(tensors.__getitem__, key)) for key in tensors}


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the tensors named ``name`` or ``name.*``, by the rest of their names."""
    return {
        key[len(name) + 1 :]: one.tensor()
        for key, one in open_tensors(folder).items()
        if is_under(key, name)
    }


def read_file(
    file: Path, includes: Callable[[str], bool] = lambda key: True
) -> dict[str, torch.Tensor]:
    """Read the tensors of one file whose keys ``includes`` accepts."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if includes(key)}  # noqa: SIM118
    return {key: tensor for key, tensor in read_bin(file).items() if includes(key)}


def read_bin(file: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of a ``.bin`` file; raise `CheckpointError` if it contains anything else.

    Pickled objects are refused without being unpickled.
    """
    try:
        state: Any = _load_bin(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(pickle_refusal(str(file), error)) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read by torch as a file of tensors: {error}"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file} contains a {type(state).__name__}, not tensors by name")
    tensors = {str(key): one for key, one in state.items() if isinstance(one, torch.Tensor)}
    nested = [str(key) for key, one in state.items() if isinstance(one, Mapping)]
    if nested and not tensors:
        raise CheckpointError(
            f"{file} contains its tensors one level down, under {joined(map(repr, nested))} (as "
            "DeepSpeed and Lightning save them). Save only that part, preferably as safetensors"
        )
    return tensors


def _load_bin(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # The format of torch before 1.6 cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True)


def pickle_refusal(where: str, error: Exception) -> str:
    """Return the message for weights with a pickled object, and what to do instead."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"an object ({found[1]})" if found else "something other than tensors"
    return (
        f"{where}: a weight file contains {what}, which is not unpickled: it could run any code "
        "(files are read with weights_only=True). If you trust its author, load it once elsewhere "
        "and save only its tensors, as model.safetensors"
    )


def is_under(key: str, name: str) -> bool:
    """Return whether a tensor's key is ``name`` or begins with ``name.``."""
    return key == name or key.startswith(f"{name}.")


def label_names(folder: Path) -> list[str]:
    """Return the label names of a classifier in the order of its outputs."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    labels = config.get("id2label") or {}
    return [str(labels[key]) for key in sorted(labels, key=int)]
