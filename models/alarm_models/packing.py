"""The fast way to run a batch: samples end to end, without padding, shared beginnings once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.attention import PACKED, Row, running
from alarm_models.features import BatchCost, Features
from alarm_models.layout import Layout, lay_out
from alarm_models.longformer import PackedLongformer
from alarm_models.padding import PaddedBackbone
from alarm_models.sample import Span
from alarm_models.trimming import trim, untrim

__all__ = ["Backbone", "PackedBackbone", "fastest_exact"]

#: Model types whose position ids begin past the padding id, and pass over it.
OFFSET_POSITIONS = {"roberta", "longformer", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"}

#: The largest error that a packed forward pass may make, as a share of its states' size.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: The longest window that the probe looks beyond.
_MAX_PROBED_WINDOW = 512


class PackedBackbone:
    """Runs a transformer without its head on packed rows.

    ``share`` is right for causal models alone. Samples longer than a model's sliding window do not
    share: their end would have to forget their beginning. ``is_trimmed`` says that the model's
    last layer gives only the states that are read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        share: bool,
        is_trimmed: bool = False,
        has_global: bool = False,
    ) -> None:
        self.is_trimmed = is_trimmed
        self.cost = BatchCost.SHARED if share else BatchCost.PACKED
        self._model: Any = model
        self._share = share
        self._longformer = (
            PackedLongformer(model, has_global=has_global)
            if isinstance(model, LongformerModel)
            else None
        )
        config = model.config.get_text_config()
        self._window = getattr(config, "sliding_window", None)
        self._padding = config.pad_token_id if config.model_type in OFFSET_POSITIONS else None

    def rows(self, batch: Sequence[Features]) -> torch.Tensor:
        """Return the hidden states at each sample's reads, ``[reads of the batch, hidden]``."""
        spans = [(index, span) for index, one in enumerate(batch) for span in one.reads]
        layout = self._lay_out(batch)
        row = Row(
            layout,
            [(index, at) for index, span in spans for at in range(*span)],
            [place for index, span in spans for place in layout.places(index, span)],
        )
        states = self._states(row)  # [tokens read, hidden]
        lengths = [span.end - span.start for _, span in spans]
        if len(states) == len(lengths):
            return states
        return torch.stack([part.mean(0) for part in torch.split(states, lengths)])

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to the work; who comes first brings the rest."""
        return self._lay_out(batch).num_computed

    def _lay_out(self, batch: Sequence[Features]) -> Layout:
        fits = self._window is None or max(one.num_tokens for one in batch) <= self._window
        if any(one.types for one in batch):
            typed = [tuple(zip(one.ids, one.types, strict=True)) for one in batch]
            return lay_out(typed, share=self._share and fits)
        return lay_out([one.ids for one in batch], share=self._share and fits)

    def _states(self, row: Row) -> torch.Tensor:
        device = self._model.device
        # [1, tokens], or with token types [1, tokens, 2]
        ids, types = torch.tensor([row.layout.ids], device=device), {}
        if ids.ndim == 3:
            ids, types = ids[..., 0], {"token_type_ids": ids[..., 1]}
        positions = torch.tensor([self._positions(ids[0], row.layout)], device=device)
        if self._longformer is not None:
            return self._longformer(ids, positions, row)[0]
        with running(row):
            states: torch.Tensor = self._model(
                input_ids=ids, position_ids=positions, **types
            ).last_hidden_state[0]
        return states if self.is_trimmed else states[row.places]

    def _positions(self, ids: torch.Tensor, layout: Layout) -> list[int]:
        if self._padding is None:
            return layout.positions
        positions = []
        for run in layout.runs:
            place = self._padding
            for token in ids[run.start : run.end].tolist():
                place += token != self._padding
                positions.append(self._padding if token == self._padding else place)
        return positions


Backbone = PaddedBackbone | PackedBackbone


@torch.inference_mode()
def fastest_exact(model: PreTrainedModel, *, has_global: bool = False) -> Backbone:
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
    for is_trimmed, share in ((True, True), (True, False), (False, True), (False, False)):
        if is_trimmed and not trim(model):
            continue
        packed = PackedBackbone(model, share=share, is_trimmed=is_trimmed, has_global=has_global)
        try:
            if not isinstance(model, LongformerModel):
                model.set_attn_implementation(PACKED)
            if _is_close(packed, probe, wanted):
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
