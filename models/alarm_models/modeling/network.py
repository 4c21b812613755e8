"""Networks: a transformer with its head, run by forward passes under the model-init lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.backend_selection import Backbone, probe_padding
from alarm_models.modeling.heads import Head, Pooling
from alarm_models.modeling.inputs import (
    BatchLayout,
    ForwardOutput,
    ModelInput,
    split_sequences,
    sum_by_sample,
)
from alarm_models.modeling.padded import pad_batch
from alarm_models.types import Span

__all__ = [
    "MODEL_INIT_LOCK",
    "HeadedNetwork",
    "ModelInitLock",
    "Network",
    "OwnForwardNetwork",
    "WholeNetwork",
]


class ModelInitLock:
    """A shared lock for forward passes, exclusive for constructing a model."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The threads that run forward passes.
        self._passes: set[int] = set()
        self._is_under_way = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run the block, a forward pass, while nothing is constructed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._passes.add(threading.get_ident())
        try:
            yield
        finally:
            self.give_up(threading.get_ident())

    def give_up(self, thread: int) -> None:
        """Wait no longer for the pass of a thread, which may never end; its result is dropped."""
        with self._changed:
            self._passes.discard(thread)
            if self._is_under_way:
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Run the block, a construction, while no pass runs; passes that come meanwhile wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._is_under_way = True
            self._changed.wait_for(lambda: not self._passes)
        try:
            yield
        finally:
            with self._changed:
                self._is_under_way = False
                self._changed.notify_all()


#: The process's, as its default dtype is.
MODEL_INIT_LOCK = ModelInitLock()


class Network(Protocol):
    """Runs batches: token sequences in, one row of outputs a read position out."""

    config: Any
    dtype: torch.dtype
    num_outputs: int
    cost: BatchLayout
    #: What a whole-sequence score reads; None where the recipe says.
    pooling: Pooling | None
    #: How many tokens its tables of positions have room for; None without any.
    max_positions: int | None

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""


class HeadedNetwork:
    """A backbone that runs the fastest exact way, and a head on the states that are read."""

    def __init__(self, model: PreTrainedModel, backbone: Backbone, head: Head) -> None:
        self._backbone = backbone
        self._head = head
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = head.num_outputs
        self.cost: BatchLayout = backbone.cost
        self.pooling = head.pooling
        self.max_positions = backbone.max_positions

    @property
    def backbone(self) -> Backbone:
        """The backbone, which networks with other heads may share."""
        return self._backbone

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""
        states, num_computed = self._backbone.forward(split_sequences(batch))
        rows = self._head(states).float().cpu()
        return ForwardOutput(
            torch.split(rows, [one.num_reads for one in batch]), sum_by_sample(batch, num_computed)
        )

    @torch.inference_mode()
    def forward_shared(
        self,
        batch: Sequence[ModelInput],
        others: Sequence[tuple[HeadedNetwork, Sequence[ModelInput | None]]],
    ) -> tuple[ForwardOutput, list[list[torch.Tensor | None]]]:
        """Run one batch, and read it with the heads of other networks on the same backbone too.

        Each of ``others`` has for each sample its own input, of the same tokens, or None; it gets
        its rows of outputs a sample. Where an input reads what the sample's own input reads, its
        rows have the bits of a pass of its own; other reads make the last layer's matrices larger,
        whose products may round otherwise.
        """
        merged = [
            _with_reads_of(one, [inputs[index] for _, inputs in others])
            for index, one in enumerate(batch)
        ]
        states, num_computed = self._backbone.forward(split_sequences(merged))
        by_sample = torch.split(states, [one.num_reads for one in merged])
        own = [part[: one.num_reads] for part, one in zip(by_sample, batch, strict=True)]
        further = [
            network._rows(
                [
                    None if one is None else part[_places(one, whole)]
                    for part, one, whole in zip(by_sample, inputs, merged, strict=True)
                ]
            )
            for network, inputs in others
        ]
        rows = [row for row in self._rows(own) if row is not None]
        return ForwardOutput(rows, sum_by_sample(batch, num_computed)), further

    def _rows(self, states: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Apply the head to each sample's states in one go; None stays None."""
        given = [one for one in states if one is not None]
        rows = self._head(torch.cat(given)).float().cpu()
        left = iter(torch.split(rows, [len(one) for one in given]))
        return [None if one is None else next(left) for one in states]

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""
        self._backbone.clear_prefix_cache()


def _with_reads_of(own: ModelInput, others: Sequence[ModelInput | None]) -> ModelInput:
    """Add the reads of inputs of the same tokens after the input's own."""
    known = set(own.read_positions)
    wanted = [span for one in others if one is not None for span in one.read_positions]
    more = [span for span in dict.fromkeys(wanted) if span not in known]
    return replace(own, read_positions=(*own.read_positions, *more)) if more else own


def _places(one: ModelInput, merged: ModelInput) -> list[int]:
    """Return which of the merged input's reads are those of one of its inputs."""
    return [merged.read_positions.index(span) for span in one.read_positions]


class WholeNetwork:
    """A model that is run as transformers runs it, head and all: padded, where that is exact.

    ``select`` makes outputs of the logits at the reads, where those are not the outputs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        select: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> None:
        self._model: Any = model
        self._select = select
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = int(self._model.config.num_labels or 0)
        self.pooling: Pooling | None = Pooling.OWN
        self._padding, self.max_positions = probe_padding(model, self._run_padded)
        self.cost = self._padding.cost

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch; a model of one row a token is read where the samples say."""
        rows = iter(self._padding.run(split_sequences(batch), self._run_padded))
        by_sample = [[next(rows) for _ in one.ids_of_sequences] for one in batch]
        return ForwardOutput(
            [own[0] if len(own) == 1 else torch.cat(own) for own in by_sample],
            [one.num_tokens for one in batch],
        )

    def _run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        logits = self._model(**pad_batch(batch, self._model)).logits
        if logits.ndim == 2:  # [batch, outputs]
            return list(torch.split(logits.float().cpu(), 1))
        return [  # [batch, tokens, outputs]
            self._select(
                torch.stack([logits[row, start:end].mean(0) for start, end in one.read_positions])
            )
            .float()
            .cpu()
            for row, one in enumerate(batch)
        ]

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is none."""


#: What own classes call the number that they are asked for, the likeliest first.
_SCORE_NAMES = ("logits", "score", "scores", "reward", "rewards", "end_scores")


class OwnForwardNetwork:
    """A checkpoint's own class, run by its own forward: a row of numbers a sample.

    Raises `CheckpointError` where the forward does not run on token ids and an attention mask, or
    where none of its outputs has a row a sample. Samples run alone unless padding changes nothing.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: str) -> None:
        self._model: Any = model
        self._where = f"{checkpoint}: its own class {type(model).__name__}"
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.pooling: Pooling | None = Pooling.OWN
        # Two lengths tell a number a token from a number a sample.
        short, long = (self._run_once(num_tokens) for num_tokens in (6, 9))
        if short != long:
            raise CheckpointError(
                f"{self._where} gives a number a token ({short} for 6 tokens), not one a sample: "
                "write `head` and `pooling`, and leave `trust_remote_code` out"
            )
        self.num_outputs = short
        self._padding, self.max_positions = probe_padding(model, self._run_padded)
        self.cost = self._padding.cost

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch: float32 rows on the CPU, ``[sequences, outputs]`` a sample."""
        rows = iter(self._padding.run(split_sequences(batch), self._run_padded))
        by_sample = [torch.cat([next(rows) for _ in one.ids_of_sequences]) for one in batch]
        return ForwardOutput(by_sample, [one.num_tokens for one in batch])

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is none."""

    def _run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        answer = self._model(**pad_batch(batch, self._model))
        rows = _sample_rows(answer, len(batch))
        if rows is None:
            raise CheckpointError(
                f"{self._where} answers with {_told(answer)} for a batch of {len(batch)}: wanted "
                "is one number a sample, as `.logits` [batch, 1] or by another name"
            )
        return list(torch.split(rows.float().cpu(), 1))

    @torch.inference_mode()
    def _run_once(self, num_tokens: int) -> int:
        """Return how many numbers a sample of so many tokens gets."""
        ids = tuple(range(1, num_tokens + 1))
        try:
            (row,) = self._run_padded([ModelInput(ids, (Span(0, 1),), False)])
        except CheckpointError:
            raise
        except ValueError:
            # It looks for tokens that these ids do not have (ArmoRM's end of the prompt).
            return 1
        except Exception as error:  # the checkpoint's own code may raise any
            raise CheckpointError(
                f"{self._where} does not run on input_ids and attention_mask: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        return row.shape[1]


def _named_tensors(answer: Any) -> dict[str, torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return {"a tensor": answer}
    if isinstance(answer, Mapping):
        return {str(key): one for key, one in answer.items() if isinstance(one, torch.Tensor)}
    if isinstance(answer, tuple | list):
        return {f"[{at}]": one for at, one in enumerate(answer) if isinstance(one, torch.Tensor)}
    fields = vars(answer) if hasattr(answer, "__dict__") else {}
    return {key: one for key, one in fields.items() if isinstance(one, torch.Tensor)}


def _sample_rows(answer: Any, num_samples: int) -> torch.Tensor | None:
    """Return the output that has a row a sample, ``[samples, outputs]``; None where none has.

    One of the usual names counts before others, then the only one, then the only single number.
    """
    named = _named_tensors(answer)
    rows = {
        name: one.reshape(num_samples, -1)
        for name, one in named.items()
        if one.ndim <= 2
        and one.numel() > 0
        and (one.shape[:1] == (num_samples,) or num_samples == 1 == one.numel())
    }
    for name in _SCORE_NAMES:
        if name in rows:
            return rows[name]
    single = [one for one in rows.values() if len(rows) == 1 or one.shape[1] == 1]
    return single[0] if len(single) == 1 else None


def _told(answer: Any) -> str:
    named = _named_tensors(answer)
    shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in named.items())
    return f"{type(answer).__name__}" + (f" of {shapes}" if shapes else " without a tensor")
