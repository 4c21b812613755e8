"""A transformer with its head on a device: token ids in, one row of outputs a read out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from alarm_models.checkpoint import read_head
from alarm_models.errors import CheckpointError
from alarm_models.sample import Span

__all__ = [
    "Features",
    "Network",
    "Source",
    "base_with_head",
    "load_base",
    "sequence_classifier",
    "token_classifier",
]


@dataclass(frozen=True, slots=True)
class Features:
    """One sample as a network takes it.

    ``reads`` are the ranges of tokens whose hidden states are averaged (a single token mostly) and
    given to the head; a network that pools by itself has none. ``segments`` are the spans that the
    sample's reads judge, in order; there are fewer reads where truncation cut some off.
    """

    ids: tuple[int, ...]
    reads: tuple[Span, ...]
    truncated: bool
    segments: tuple[Span, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.ids)


class Network:
    """A model on its device, run on padded batches.

    ``head`` is applied to the hidden states that a sample's reads name; without one the model's
    own logits are the outputs: one row a sample, or one row a token, of which the reads are taken.
    """

    def __init__(self, model: Any, head: torch.nn.Linear | None, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._head = None if head is None else head.to(device=device, dtype=model.dtype).eval()
        self.device = device
        self.config: Any = model.config.get_text_config()
        vocabulary = int(self.config.vocab_size)
        pad = self.config.pad_token_id
        # Padding is masked: any id will do that the embedding holds.
        self._pad_id = pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def num_outputs(self) -> int:
        """How many numbers a read gives."""
        return int(self._head.out_features if self._head else self._model.config.num_labels)

    @torch.inference_mode()
    def outputs(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one padded batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""
        ids, mask = self._padded(batch)  # [batch, tokens] both
        result = self._model(input_ids=ids, attention_mask=mask)
        if self._head is not None:
            return self._rows(result.last_hidden_state, batch)
        if result.logits.ndim == 2:  # [batch, outputs]
            return list(torch.split(result.logits.float().cpu(), 1))
        return self._rows(result.logits, batch)

    def _padded(self, batch: Sequence[Features]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(one.ids) for one in batch)
        ids = torch.full((len(batch), longest), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            mask[row, : len(one.ids)] = 1
        return ids.to(self.device), mask.to(self.device)

    def _rows(self, states: torch.Tensor, batch: Sequence[Features]) -> list[torch.Tensor]:
        # states: [batch, tokens, hidden or outputs]
        reads = [(row, *span) for row, one in enumerate(batch) for span in one.reads]
        if all(end - start == 1 for _, start, end in reads):
            rows = states[[row for row, _, _ in reads], [start for _, start, _ in reads]]
        else:
            rows = torch.stack([states[row, start:end].mean(0) for row, start, end in reads])
        # rows: [reads of the whole batch, hidden or outputs]
        if self._head is not None:
            rows = self._head(rows)
        return list(torch.split(rows.float().cpu(), [len(one.reads) for one in batch]))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network comes from and how it is to run."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool = False


def sequence_classifier(source: Source) -> Network:
    """Load a one-logit sequence classifier.

    Where the head is a plain linear layer on a decoder, ours reads the position itself, so that
    padding never moves it; other classifiers pool by themselves.
    """
    model = _load(AutoModelForSequenceClassification, source)
    if model.config.num_labels != 1:
        raise CheckpointError(
            f"{source.folder} has {model.config.num_labels} labels: no single score; kind "
            "`sequence` wants one logit"
        )
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and model.base_model is not model:
        return Network(model.base_model, head, source.device)
    return Network(model, None, source.device)


def token_classifier(source: Source) -> Network:
    """Load a token classifier: one row of logits a token."""
    return Network(_load(AutoModelForTokenClassification, source), None, source.device)


def load_base(source: Source) -> PreTrainedModel:
    """Load a base model, which several heads may share."""
    return _load(AutoModel, source)


def base_with_head(base: PreTrainedModel, source: Source, head: str) -> Network:
    """Put the linear head of that name on a base model, as openbmb/UltraRM-13b has."""
    return Network(base, read_head(source.folder, head), source.device)


def _load(loader: Any, source: Source) -> PreTrainedModel:
    try:
        model, report = loader.from_pretrained(
            str(source.folder),
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source.folder} cannot be loaded: {error}") from error
    # A tensor that the files lack would be random: never serve it. Poolers we do not read may lack.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{source.folder} lacks {len(missing)} tensors of {type(model).__name__} "
            f"({', '.join(missing[:3])}, ...): they would be random. Is the kind or `head` right?"
        )
    return model  # type: ignore[no-any-return]
