"""Score normalization of OpenRLHF and safe-rlhf, computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from scoring import load, score
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

SAMPLE = Sample("What is the capital of France?", "Paris.")


def value(folder: Path, **keys: Any) -> float:
    spec = {"checkpoint": str(folder), "template": "{prompt} {completion}", "head": "head", **keys}
    (got,) = score(load(SequenceSpec.model_validate(spec)), [SAMPLE])
    assert got.value is not None
    return got.value


def configured(folder: Path, **config: Any) -> float:
    """Make a base with a head and these keys in its configuration; return the raw score."""
    tiny.base_with_head(folder, head="head")
    raw = value(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return raw


def test_openrlhf_normalization_enabled_in_config_is_applied(tmp_path: Path) -> None:
    raw = configured(tmp_path, normalize_reward=True, mean=1.5, std=4.0)
    assert value(tmp_path) == computed((raw - 1.5) / 4.0)
    assert value(tmp_path, normalization="none") == raw
    assert value(tmp_path, normalization={"mean": 1.0, "std": 2.0}) == computed((raw - 1.0) / 2.0)


def test_openrlhf_normalization_disabled_in_config_is_not_applied(tmp_path: Path) -> None:
    raw = configured(tmp_path, normalize_reward=False, mean=1.5, std=4.0)
    assert value(tmp_path) == raw


@pytest.mark.parametrize(
    ("score_type", "wanted"),
    [("reward", lambda raw: (raw - 1.25) / 2), ("cost", lambda raw: raw / 2), ("critic", float)],
)
def test_beaver_normalization_depends_on_score_type(
    score_type: str, wanted: Any, tmp_path: Path
) -> None:
    raw = configured(tmp_path, do_normalize=True, score_type=score_type, mean=[0.0], var=[1.0])
    state = load_file(tmp_path / "model.safetensors")
    state |= {"normalizer.mean": torch.tensor([1.25]), "normalizer.var": torch.tensor([4.0])}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert value(tmp_path) == computed(wanted(raw))


def test_beaver_normalization_without_tensors_is_read_from_config(
    tmp_path: Path,
) -> None:
    raw = configured(tmp_path, do_normalize=True, mean=[1.25], var=[4.0])
    assert value(tmp_path) == computed((raw - 1.25) / 2)


def test_normalization_without_numbers_is_refused(tmp_path: Path) -> None:
    configured(tmp_path, normalize_reward=True)
    with pytest.raises(CheckpointError, match="its mean is None: give `normalization"):
        value(tmp_path)


def test_fingerprint_differs_for_normalized_and_raw_scores(tmp_path: Path) -> None:
    configured(tmp_path, normalize_reward=True, mean=1.5, std=4.0)
    spec = SequenceSpec(checkpoint=str(tmp_path), template="{prompt} {completion}", head="head")
    raw = spec.model_copy(update={"normalization": "none"})
    assert load(spec).fingerprint != load(raw).fingerprint
