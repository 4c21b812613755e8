"""The class of checkpoints without weights, which `checkpoints.random_llama` saves.

Loading one makes random weights on the device that its `config.json` names, the same in every
process. An 8B model is then ready in seconds, and no file of 16 GB is written, hashed and read.
transformers copies this file into its cache, so it imports nothing from the benchmarks.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification


class RandomWeightsLlama(LlamaForSequenceClassification):
    """Loads as a stock `LlamaForSequenceClassification` with random weights."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str,
        *_: Any,
        config: LlamaConfig,
        dtype: torch.dtype,
        output_loading_info: bool = False,
        **__: Any,
    ) -> Any:
        """Return the model, and with ``output_loading_info`` a report that nothing is missing."""
        torch.manual_seed(0)  # seeds every device
        with torch.device(config.random_weights_device):
            model = LlamaForSequenceClassification._from_config(config, dtype=dtype)
        model.eval()
        report = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return (model, report) if output_loading_info else model
