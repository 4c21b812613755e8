"""The input and output of a network: token sequences; rows of outputs and token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, overload

import torch

from alarm_models.types import Shown, Span

__all__ = [
    "BatchLayout",
    "ForwardOutput",
    "ModelInput",
    "ReadStates",
    "TokenSequence",
    "split_sequences",
    "sum_by_sample",
]


class BatchLayout(StrEnum):
    """How a network lays out a batch, which determines its cost in tokens."""

    #: The longest sample times the number of samples.
    PADDED = "padded"
    #: The sum of the samples' tokens.
    PACKED = "packed"
    #: As packed, with a shared prefix counted once.
    PREFIX_SHARED = "shared"
    #: No batching: each sample runs alone.
    SINGLE = "alone"


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids that attend to each other, and where their hidden states are read.

    ``read_positions`` are the ranges of tokens (usually single tokens) whose states are averaged
    and passed to the head. ``token_type_ids`` has one id per token, or is empty.
    """

    ids: tuple[int, ...]
    read_positions: tuple[Span, ...]
    token_type_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The input of one sample: one token sequence, or several that run independently.

    ``ids``, ``read_positions`` and ``token_type_ids`` are those of the first sequence;
    ``further_sequences`` are the others, such as a reference or a second completion. All count
    towards the batch's tokens, and share prefixes like sequences of different samples. A model
    reads one row of outputs per read position, sequence after sequence.

    ``segments`` are the spans that the reads judge, in order; there are fewer reads if truncation
    dropped some. Samples of different ``owner`` share no prefix, cached or not.
    ``num_shared`` counts the tokens that the sample's own sequences have in common, which a network
    that shares prefixes computes once; ``max_generated`` is the number that generation may add.
    ``omitted`` names the parts of the shown sample that the text lacks. ``shown`` is what was shown
    of the sample as sent; None if all of it.
    """

    ids: tuple[int, ...]
    read_positions: tuple[Span, ...]
    truncated: bool
    segments: tuple[Span, ...] = ()
    token_type_ids: tuple[int, ...] = ()
    owner: str = ""
    further_sequences: tuple[TokenSequence, ...] = ()
    num_shared: int = 0
    max_generated: int = 0
    omitted: tuple[str, ...] = ()
    shown: Shown | None = None

    @classmethod
    def of_sequences(
        cls,
        sequences: Sequence[TokenSequence],
        *,
        truncated: bool,
        segments: tuple[Span, ...] = (),
    ) -> ModelInput:
        """Make the input of one sample from its token sequences, of which there is at least one."""
        first, *others = sequences
        return cls(
            first.ids,
            first.read_positions,
            truncated,
            segments,
            first.token_type_ids,
            further_sequences=tuple(others),
        )

    @property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """All token sequences, in the order of their rows of outputs."""
        first = TokenSequence(self.ids, self.read_positions, self.token_type_ids)
        return (first, *self.further_sequences)

    @property
    def ids_of_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The token ids of each sequence."""
        return (self.ids, *(one.ids for one in self.further_sequences))

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the model reads, over all sequences."""
        return len(self.ids) + sum(len(one.ids) for one in self.further_sequences)

    @property
    def num_cost_tokens(self) -> int:
        """Number of tokens it adds to a batch, generated ones included.

        Tokens that its own sequences share count once.
        """
        return self.num_tokens - self.num_shared + self.max_generated

    @property
    def num_padded_tokens(self) -> int:
        """Number of tokens it takes in a batch that shares no prefixes."""
        return self.num_tokens + self.max_generated

    @property
    def num_reads(self) -> int:
        """Number of rows of outputs."""
        return len(self.read_positions) + sum(
            len(one.read_positions) for one in self.further_sequences
        )


def split_sequences(batch: Sequence[ModelInput]) -> Sequence[ModelInput]:
    """Return every token sequence as a separate input, in order."""
    if not any(one.further_sequences for one in batch):
        return batch
    return [
        ModelInput(
            sequence.ids,
            sequence.read_positions,
            one.truncated,
            token_type_ids=sequence.token_type_ids,
            owner=one.owner,
        )
        for one in batch
        for sequence in one.sequences
    ]


def sum_by_sample(batch: Sequence[ModelInput], counts: Sequence[int]) -> list[int]:
    """Sum the counts of token sequences by sample; the order is that of `split_sequences`."""
    left = iter(counts)
    return [sum(next(left) for _ in one.ids_of_sequences) for one in batch]


class ReadStates(NamedTuple):
    """Hidden states at a batch's read positions, ``[reads of the batch, hidden]``.

    ``num_computed`` is as in `ForwardOutput`.
    """

    states: torch.Tensor
    num_computed: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class ForwardOutput(Sequence[torch.Tensor]):
    """The output of a forward pass; as a sequence, the rows of outputs of each sample.

    Rows are on the CPU: float32 ``[reads, outputs]``, or generated token ids ``[answers,
    tokens]``. ``num_computed`` is the number of tokens computed for each sample, without padding.
    Tokens of a shared prefix count for the first sample that has it, tokens in the prefix cache for
    none.
    """

    rows: Sequence[torch.Tensor]
    num_computed: Sequence[int]

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        """Return a sample's rows."""
        return self.rows[index]
