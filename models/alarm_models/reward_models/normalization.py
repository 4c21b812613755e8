"""Score normalization of published classes, from a checkpoint's configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import read_tensors
from alarm_models.recipe.specs import Normalization

__all__ = ["configured_normalization"]

#: What safe-rlhf adds to the standard deviation.
_EPSILON = 1e-8


def configured_normalization(folder: Path) -> Normalization | None:
    """Return the normalization that the published class applies; None if it applies none.

    OpenRLHF's class applies ``mean`` and ``std`` if ``normalize_reward`` is true. safe-rlhf's class
    (beaver) applies ``mean`` and ``var`` if ``do_normalize`` is true: a cost is only scaled, a
    critic's value unchanged. Raises `CheckpointError` if the numbers are missing.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("normalize_reward") is True:
        return Normalization(
            mean=_number(folder, config, "mean"), std=_number(folder, config, "std")
        )
    score_type = config.get("score_type", "reward")
    if config.get("do_normalize") is not True or score_type == "critic":
        return None
    kept = read_tensors(folder, "normalizer")
    stored = {name: tensor.tolist() for name, tensor in kept.items() if name in ("mean", "var")}
    values = {**config, **stored}
    std = math.sqrt(_number(folder, values, "var")) + _EPSILON
    return Normalization(
        mean=0.0 if score_type == "cost" else _number(folder, values, "mean"), std=std
    )


def _number(folder: Path, values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(
            f"{folder}/config.json requires a normalized score, but its {name} is {value!r}: "
            'give `normalization = { mean = ..., std = ... }`, or "none" for the raw score'
        )
    return float(value)
