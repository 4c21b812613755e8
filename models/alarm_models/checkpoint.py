"""Where a model's weights are, what they are, and how they are read without unpickling objects."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from alarm_models.errors import CheckpointError

__all__ = ["digest", "locate", "read_head"]

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ("*.safetensors", "*.bin")


def locate(checkpoint: str) -> Path:
    """Return the folder of a checkpoint: the folder itself, or a hub snapshot of that id.

    Safetensors are preferred; older ``.bin`` files are fetched only where there are none. Raises
    `CheckpointError` saying what to do where neither can be had.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json: is it a checkpoint's folder?")
        return folder
    try:
        snapshot = Path(snapshot_download(checkpoint, allow_patterns=_SMALL_FILES))
        for pattern in _WEIGHTS:
            snapshot = Path(snapshot_download(checkpoint, allow_patterns=[*_SMALL_FILES, pattern]))
            if any(snapshot.glob(pattern)):
                return snapshot
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint!r} is no folder here, and the hub did not give it "
            f"({type(error).__name__}). Give a folder with "
            "`--set models.<name>.checkpoint=PATH`, or fetch it once with HF_HUB_OFFLINE unset."
        ) from error
    raise CheckpointError(f"{checkpoint!r} has neither .safetensors nor .bin weights")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: safetensors where there are any, else ``.bin``."""
    for pattern in _WEIGHTS:
        files = sorted(path for path in folder.glob(pattern) if path.name != "training_args.bin")
        if files:
            return files
    raise CheckpointError(f"{folder} has neither .safetensors nor .bin weights")


def digest(folder: Path) -> str:
    """Return a digest of the weights, the configuration and the tokenizer: a hex string."""
    names = sorted(path for pattern in _SMALL_FILES for path in folder.glob(pattern))
    whole = hashlib.sha256()
    for path in [*names, *weight_files(folder)]:
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return whole.hexdigest()


def read_head(folder: Path, name: str) -> torch.nn.Linear:
    """Read a named linear head, ``<name>.weight [outputs, hidden]`` with or without a bias."""
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        for key in (f"{name}.weight", f"{name}.bias"):
            tensor = _read_tensor(file, key)
            if tensor is not None:
                tensors[key] = tensor
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        raise CheckpointError(f"{folder} holds no tensor {name}.weight; is `head` right?")
    if weight.ndim != 2:
        raise CheckpointError(f"{name}.weight has shape {list(weight.shape)}, not two dimensions")
    bias = tensors.get(f"{name}.bias")
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return head


def _read_tensor(file: Path, key: str) -> torch.Tensor | None:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            if key not in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                return None
            tensor: torch.Tensor = tensors.get_tensor(key)
            return tensor
    # Tensors only: a pickled object raises instead of running.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    found = state.get(key)
    return found if isinstance(found, torch.Tensor) else None


def label_names(folder: Path) -> list[str]:
    """Return the label names of a classifier in the order of its outputs."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    labels = config.get("id2label") or {}
    return [str(labels[key]) for key in sorted(labels, key=int)]
