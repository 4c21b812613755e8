"""Converts a published COMET checkpoint to safetensors on the command line.

    python -m alarm_models.modeling.comet_conversion CHECKPOINT ENCODER OUT

CHECKPOINT is the published folder (``hparams.yaml``, ``checkpoints/model.ckpt``), ENCODER the
folder or hub id of its `pretrained_model`, whose configuration and tokenizer are copied to OUT.
Weights are read with ``weights_only=True``: no object is unpickled.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import locate, pickle_refusal
from alarm_models.modeling.comet import CONFIG_KEY
from alarm_models.modeling.inspection import read_config

__all__ = ["convert", "main"]

_FILE = "checkpoints/model.ckpt"

#: Names of the supported classes in the hyperparameters.
_CLASSES = {"xcomet_metric": "XCOMETMetric", "unified_metric": "UnifiedMetric"}

#: Hyperparameters that are only used in training.
_DROPPED = re.compile(r"(^|\.)(dropout_mask|dropout_fill)$|^(wordloss|sentloss)\.|position_ids$")

_PLAIN = (str, int, float, bool, type(None), list, tuple)


def convert(checkpoint: Path, encoder: str, folder: Path) -> None:
    """Write a COMET checkpoint as safetensors, with its encoder's configuration and tokenizer.

    Raises `CheckpointError` with what was found and what to do.
    """
    file = checkpoint / _FILE if (checkpoint / _FILE).is_file() else checkpoint
    if not file.is_file():
        raise CheckpointError(f"{checkpoint} has no {_FILE}")
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(pickle_refusal(str(file), error)) from error
    parameters = dict(saved.get("hyper_parameters") or {})
    # COMET itself reads these from there: the class, and the transformation of layer weights.
    text = file.parents[1] / "hparams.yaml"
    if text.is_file():
        for key in ("class_identifier", "layer_transformation"):
            found = re.search(rf"^{key}:\s*['\"]?(\w+)", text.read_text("utf-8"), re.MULTILINE)
            parameters |= {key: found[1]} if found is not None else {}
    named = parameters.get("class_identifier")
    if named not in _CLASSES:
        raise CheckpointError(
            f"{checkpoint} is of class {named!r}: kind `comet` reads {', '.join(_CLASSES)}"
        )
    source = locate(encoder, with_weights=False)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("tokenizer*", "*.model", "special_tokens_map.json"):
        for one in source.glob(pattern):
            shutil.copy(one, folder / one.name)
    config = {**read_config(source), "architectures": [_CLASSES[named]]}
    config[CONFIG_KEY] = {key: one for key, one in parameters.items() if isinstance(one, _PLAIN)}
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    tensors = {
        key: one.contiguous()
        for key, one in saved["state_dict"].items()
        if not _DROPPED.search(key)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Run the conversion from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the published folder, or the .ckpt file")
    parser.add_argument("encoder", help="its pretrained_model: a folder or a hub id")
    parser.add_argument("folder", type=Path, help="output folder of the converted checkpoint")
    options = parser.parse_args()
    try:
        convert(options.checkpoint, options.encoder, options.folder)
    except CheckpointError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
