"""The devices that models run on: which there are, and models put on them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from alarm_models.rewards import Loader, Model
from alarm_service.catalog import Catalog

__all__ = ["choose_devices", "load_models", "require_determinism"]


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of these names, separated by commas; each has a replica of every model.

    ``auto`` is the GPU where there is one.
    """
    if names == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    return [torch.device(name.strip()) for name in names.split(",")]


def load_models(
    catalog: Catalog, device: torch.device, *, max_remembered_bytes: int
) -> Mapping[str, Model]:
    """Load every model of the catalog; raise `CheckpointError` or `RecipeError`."""
    loader = Loader(device, max_remembered_bytes=max_remembered_bytes)
    return {key: loader.load(served.spec, served.fields) for key, served in catalog.models.items()}


def require_determinism() -> None:
    """Have torch raise where it would use a kernel that may give other bits the next time."""
    # cuBLAS reads it as it starts; without it torch refuses its matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
