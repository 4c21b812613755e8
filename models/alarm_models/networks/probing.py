"""Which way runs a model fastest and gives what the plain way gives: found out by running it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.features import Features
from alarm_models.networks.padding import PaddedBackbone
from alarm_models.packing.backbone import PackedBackbone
from alarm_models.packing.trimming import trim, untrim
from alarm_models.packing.varlen import can_varlen
from alarm_models.sample import Span

__all__ = ["Backbone", "fastest_exact"]

#: The largest error that a packed forward pass may make, as a share of its states' size.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: The longest window that the probe looks beyond.
_MAX_PROBED_WINDOW = 512

Backbone = PaddedBackbone | PackedBackbone


@torch.inference_mode()
def fastest_exact(
    model: PreTrainedModel, *, has_global: bool = False, max_remembered_bytes: int = 0
) -> Backbone:
    """Return the fastest way to run a model that gives what the plain way gives.

    A model is run on a few samples each way: one that trimming, sharing or packing does not serve
    exactly (attention of its own, recurrence) is found out here and takes a slower way.
    """
    plain = PaddedBackbone(model, has_global=has_global)
    probe = _probe(model)
    wanted = torch.cat([plain.rows([one]) for one in probe])
    config: Any = model.config
    own = config._attn_implementation
    config.use_cache = False
    kernels = (True, False) if can_varlen(model.device, model.dtype) else (False,)
    for is_varlen, is_trimmed, share in product(kernels, (True, False), (True, False)):
        if is_trimmed and not trim(model):
            continue
        try:
            packed = PackedBackbone(
                model,
                share=share,
                is_trimmed=is_trimmed,
                has_global=has_global,
                is_varlen=is_varlen,
                max_remembered_bytes=max_remembered_bytes,
            )
            # The second time, from what is remembered of the first.
            if all(_is_close(packed, probe, wanted) for _ in range(2)):
                packed.forget()
                return packed
        except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError):
            pass  # the model knows no such attention
        untrim(model)
    if not isinstance(model, LongformerModel):
        model.set_attn_implementation(own)
    return plain


def _is_close(packed: PackedBackbone, probe: Sequence[Features], wanted: torch.Tensor) -> bool:
    error = (packed.rows(probe) - wanted).float().norm(dim=-1).max()
    size = wanted.float().norm(dim=-1).max()
    return bool(error <= _TOLERANCE[wanted.dtype] * size)


def _probe(model: PreTrainedModel) -> list[Features]:
    """Make samples that share a beginning and samples that do not, one past a short window."""
    config: Any = model.config.get_text_config()
    windows = getattr(config, "attention_window", None) or [
        getattr(config, "sliding_window", None) or 0
    ]
    window = max(windows) if isinstance(windows, list) else windows
    beyond = window + 40 if window <= _MAX_PROBED_WINDOW else 48
    longest = min(beyond, getattr(config, "max_position_embeddings", beyond) - 8)
    lengths = (5, 30, 44, longest)
    choose = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, 700), generator=choose).tolist()
    shared = [(*ids[0][:24], *ids[1][n : n + 6]) for n in range(3)]
    alone = [tuple(ids[1][: max(n, 2)]) for n in lengths]
    return [
        Features(sample, (Span(0, 1), Span(len(sample) - 1, len(sample))), truncated=False)
        for sample in (*map(tuple, shared), *alone)
    ]
