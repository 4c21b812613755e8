"""Runs transformers directly: padded batches of whole texts, each with its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from work import Sample, Task

__all__ = ["Plain", "encode", "make_runner"]


def encode(tokenizer: Any, kind: str, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts for a kind; texts with separators word by word, as FineGrainedRLHF does."""
    if kind == "sequence":
        ids: list[list[int]] = tokenizer(list(texts)).input_ids
        return ids
    words = [text.split() for text in texts]
    return tokenizer(words, is_split_into_words=True).input_ids  # type: ignore[no-any-return]


class Plain:
    """A checkpoint loaded by transformers."""

    def __init__(self, task: Task) -> None:
        hf.logging.set_verbosity_error()
        hf.logging.disable_progress_bar()
        loader = {
            "sequence": hf.AutoModelForSequenceClassification,
            "segments": hf.AutoModelForTokenClassification,
        }[task.kind]
        model = loader.from_pretrained(
            task.folder,
            dtype=getattr(torch, task.dtype),
            trust_remote_code=task.trust_remote_code,
        )
        self._model = model.to(task.device).eval()
        self._tokenizer = hf.AutoTokenizer.from_pretrained(task.folder)
        self._kind = task.kind
        self._separator = self._tokenizer.sep_token_id

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts."""
        return encode(self._tokenizer, self._kind, texts)

    @torch.inference_mode()
    def numbers(
        self, batch: Sequence[Sequence[int]], num_segments: Sequence[int]
    ) -> list[list[float]]:
        """Run one batch, padded to its longest text; return each sample's numbers."""
        padded = self._tokenizer.pad(
            {"input_ids": [list(ids) for ids in batch]}, return_tensors="pt"
        )
        padded = padded.to(self._model.device)
        logits = self._model(padded["input_ids"], padded["attention_mask"]).logits.float().cpu()
        if self._kind == "sequence":
            return logits[:, :1].tolist()  # [batch, 1]
        margins = logits[..., -1] - logits[..., 0]  # [batch, tokens]
        rows = []
        for row, ids, count in zip(margins, batch, num_segments, strict=True):
            places = [at for at, token in enumerate(ids) if token == self._separator][:count]
            rows.append(row[places].tolist())
        return rows


def make_runner(task: Task) -> Callable[[Sequence[Sample], int | None, bool], list[float]]:
    """Return a function that runs batches of a size (None: all at once), optionally sorted."""
    plain = Plain(task)

    def run(samples: Sequence[Sample], size: int | None, by_length: bool) -> list[float]:
        texts = plain.encode([task.text(sample) for sample in samples])
        order = list(range(len(samples)))
        if by_length:
            order.sort(key=lambda index: len(texts[index]))
        rows: dict[int, list[float]] = {}
        step = size or len(order)
        for at in range(0, len(order), step):
            batch = order[at : at + step]
            counts = [len(samples[index].segments) for index in batch]
            found = plain.numbers([texts[index] for index in batch], counts)
            rows |= dict(zip(batch, found, strict=True))
        return [number for index in range(len(samples)) for number in rows[index]]

    return run
