"""The devices that models run on: which there are, and models put on them."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence

import torch

from alarm_models.errors import CheckpointError
from alarm_models.rewards import Disk, Loader, Model
from alarm_service.catalog import ServedModel
from alarm_service.scheduling.loaded import Loaded

__all__ = [
    "choose_devices",
    "forget_models",
    "load_models",
    "require_determinism",
    "unchanged_on_disk",
]


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of these names, separated by commas; each has a replica of every model.

    ``auto`` is the GPU where there is one.
    """
    if names == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    return [torch.device(name.strip()) for name in names.split(",")]


def load_models(
    wanted: Mapping[str, ServedModel], device: torch.device, *, max_remembered_bytes: int
) -> Mapping[str, Model]:
    """Load models by their keys; raise `CheckpointError` or `RecipeError`."""
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= num:
        raise CheckpointError(
            f"device: there is no {device} here; torch finds {num} GPU{'s' * (num != 1)}"
        )
    loader = Loader(device, max_remembered_bytes=max_remembered_bytes)
    return {key: loader.load(served.spec, served.fields) for key, served in wanted.items()}


def unchanged_on_disk(models: Sequence[Loaded], device: torch.device) -> list[Loaded]:
    """Return those that loading would give again as they are; raise `CheckpointError`."""
    disk = Disk(device)
    return [
        loaded
        for loaded in models
        if disk.has(loaded.served.spec, loaded.served.fields, loaded.fingerprint)
    ]


def forget_models() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()  # networks hold themselves in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_determinism() -> None:
    """Have torch raise where it would use a kernel that may give other bits the next time."""
    # cuBLAS reads it as it starts; without it torch refuses its matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
