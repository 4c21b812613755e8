"""Networks: transformers with a head, whose forward passes hold the model-init lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.backend_selection import (
    Backbone,
    execution,
    probe_padding,
    select_kernels,
)
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
        """Run the block, a forward pass, while no model is being constructed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._passes.add(threading.get_ident())
        try:
            yield
        finally:
            self.give_up(threading.get_ident())

    def give_up(self, thread: int) -> None:
        """Stop waiting for the pass of a thread, which may never end; its result is discarded."""
        with self._changed:
            self._passes.discard(thread)
            if self._is_under_way:
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Run the block, which constructs a model, while no pass runs; new passes wait."""
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


#: One per process, like the default dtype.
MODEL_INIT_LOCK = ModelInitLock()


class Network(Protocol):
    """Runs batches: token sequences in, one row of outputs per read position out."""

    config: Any
    dtype: torch.dtype
    num_outputs: int
    cost: BatchLayout
    #: The pooling of a whole-sequence score; None if the recipe determines it.
    pooling: Pooling | None
    #: Maximum number of tokens of its position tables; None without tables.
    max_positions: int | None
    #: How it runs batches: layout, and the kernels of attention and linear layers.
    execution: str
    #: The model if forward passes change it, None otherwise: no two of one may run at once.
    stateful: PreTrainedModel | None

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""


class HeadedNetwork:
    """The fastest exact backbone of a model, and a head on the states that are read."""

    def __init__(self, model: PreTrainedModel, backbone: Backbone, head: Head) -> None:
        self._backbone = backbone
        self._head = head
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = head.num_outputs
        self.cost: BatchLayout = backbone.cost
        self.pooling = head.pooling
        self.max_positions = backbone.max_positions
        self.stateful = backbone.stateful
        self.execution = execution(backbone)

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
        """Run one batch, and also apply the heads of other networks on the same backbone.

        Each of ``others`` has an input with the same tokens, or None, for each sample, and gets its
        rows of outputs per sample. If an input has the same reads as the sample's own input, its
        rows are bitwise equal to those of a separate pass; other reads make the last layer's
        matrices larger, whose products may be rounded differently.
        """
        merged = [
            _with_reads_of(one, [inputs[index] for _, inputs in others])
            for index, one in enumerate(batch)
        ]
        states, num_computed = self._backbone.forward(split_sequences(merged))
        by_sample = torch.split(states, [one.num_reads for one in merged])
        own = [part[: one.num_reads] for part, one in zip(by_sample, batch, strict=True)]
        other_rows = [
            network._rows(
                [
                    None if one is None else part[_places(one, merged_input)]
                    for part, one, merged_input in zip(by_sample, inputs, merged, strict=True)
                ]
            )
            for network, inputs in others
        ]
        rows = [row for row in self._rows(own) if row is not None]
        return ForwardOutput(rows, sum_by_sample(batch, num_computed)), other_rows

    def _rows(self, states: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Apply the head to all samples' states at once; None stays None."""
        present = [one for one in states if one is not None]
        rows = self._head(torch.cat(present)).float().cpu()
        split = iter(torch.split(rows, [len(one) for one in present]))
        return [None if one is None else next(split) for one in states]

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""
        self._backbone.clear_prefix_cache()


def _with_reads_of(own: ModelInput, others: Sequence[ModelInput | None]) -> ModelInput:
    """Append the reads of other inputs with the same tokens."""
    known = set(own.read_positions)
    wanted = [span for one in others if one is not None for span in one.read_positions]
    more = [span for span in dict.fromkeys(wanted) if span not in known]
    return replace(own, read_positions=(*own.read_positions, *more)) if more else own


def _places(one: ModelInput, merged: ModelInput) -> list[int]:
    """Return the indices of an input's reads among those of the merged input."""
    return [merged.read_positions.index(span) for span in one.read_positions]


class WholeNetwork:
    """A model including its head, run as in transformers: padded if that is exact.

    ``select`` maps the logits at the reads to the outputs.
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
        self.stateful = model if self._padding.is_stateful else None
        self.cost = self._padding.cost
        kernels = select_kernels(
            model, lambda batch: torch.cat(self._padding.run(batch, self._run_padded))
        )
        self.execution = f"layout={self.cost.value} {kernels}"

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch; a model with one row per token is read at the read positions."""
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
        """Do nothing: there is no prefix cache."""


#: Names of the score in the outputs of custom classes, the most likely first.
_SCORE_NAMES = ("logits", "score", "scores", "reward", "rewards", "end_scores")


class OwnForwardNetwork:
    """A checkpoint's custom class, run by its own forward: one row of numbers per sample.

    Raises `CheckpointError` if the forward does not run on token ids and an attention mask, or if
    none of its outputs has one row per sample. Samples run one by one unless padding does not
    change the outputs.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: str) -> None:
        self._model: Any = model
        self._where = f"{checkpoint}: its own class {type(model).__name__}"
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.pooling: Pooling | None = Pooling.OWN
        # Two lengths distinguish one number per token from one per sample.
        short, long = (self._run_once(num_tokens) for num_tokens in (6, 9))
        if short != long:
            raise CheckpointError(
                f"{self._where} returns one number per token ({short} for 6 tokens), not one per "
                "sample: write `head` and `pooling`, and leave `trust_remote_code` out"
            )
        self.num_outputs = short
        self._padding, self.max_positions = probe_padding(model, self._run_padded)
        self.stateful = model if self._padding.is_stateful else None
        self.cost = self._padding.cost
        self.execution = f"layout={self.cost.value}"

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch: float32 rows on the CPU, ``[sequences, outputs]`` a sample."""
        rows = iter(self._padding.run(split_sequences(batch), self._run_padded))
        by_sample = [torch.cat([next(rows) for _ in one.ids_of_sequences]) for one in batch]
        return ForwardOutput(by_sample, [one.num_tokens for one in batch])

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is no prefix cache."""

    def _run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        answer = self._model(**pad_batch(batch, self._model))
        rows = _sample_rows(answer, len(batch))
        if rows is None:
            raise CheckpointError(
                f"{self._where} returns {_described(answer)} for a batch of {len(batch)}; expected "
                "one number per sample, as `.logits` [batch, 1] or under another name"
            )
        return list(torch.split(rows.float().cpu(), 1))

    @torch.inference_mode()
    def _run_once(self, num_tokens: int) -> int:
        """Return how many numbers the model returns for a sample of that many tokens."""
        ids = tuple(range(1, num_tokens + 1))
        try:
            (row,) = self._run_padded([ModelInput(ids, (Span(0, 1),), False)])
        except CheckpointError:
            raise
        except ValueError:
            # The forward looks for tokens that these ids lack (ArmoRM's end of the prompt).
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
        return {
            f"[{index}]": one for index, one in enumerate(answer) if isinstance(one, torch.Tensor)
        }
    fields = vars(answer) if hasattr(answer, "__dict__") else {}
    return {key: one for key, one in fields.items() if isinstance(one, torch.Tensor)}


def _sample_rows(answer: Any, num_samples: int) -> torch.Tensor | None:
    """Return the output with one row per sample, ``[samples, outputs]``; None if none has.

    An output with a usual name takes precedence, then the only output, then the only one with a
    single number per sample.
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


def _described(answer: Any) -> str:
    named = _named_tensors(answer)
    shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in named.items())
    return f"{type(answer).__name__}" + (f" of {shapes}" if shapes else " without a tensor")
