"""Padding check, imported by no hook: does a trainer's padding keep the last token reward?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from alarm_client.trainers._padding import at_last_token, left_aligned, right_aligned

Rows: TypeAlias = Sequence[Sequence[float]]
Side: TypeAlias = Literal["left", "right", "none"]

# From token rewards to the padded rewards and mask of a trainer, each [responses, width].
Pad: TypeAlias = Callable[[Rows], "tuple[Rows, Rows]"]


@dataclass(frozen=True, slots=True)
class PaddingCheck:
    """Where the last token reward of a response ends up.

    `column`: its column within the mask, None if it is lost. `last_column`: the last column of the
    mask, None if the mask is empty.
    """

    length: int
    column: int | None
    last_column: int | None

    @property
    def survives(self) -> bool:
        """Whether the reward is on the last token that the trainer learns from."""
        return self.column is not None and self.column == self.last_column


def check_padding(pad: Pad, lengths: Sequence[int]) -> list[PaddingCheck]:
    """Check responses of these lengths, with a marked reward on each last token.

    Each response has a different mark, so that they cannot be confused.
    """
    marks = [float(index + 1) for index in range(len(lengths))]
    rows = [at_last_token(mark, length) for mark, length in zip(marks, lengths, strict=True)]
    rewards, masks = pad(rows)
    return [_padding_check(*each) for each in zip(lengths, marks, rewards, masks, strict=True)]


def padding(rewards: Side, responses: Side) -> Pad:
    """A trainer that pads rewards on one side and responses on one side.

    "none": rows are not padded.
    """
    align = {"right": left_aligned, "left": right_aligned, "none": _unpadded}

    def pad(rows: Rows) -> tuple[Rows, Rows]:
        ones = [[1.0] * len(row) for row in rows]
        return align[rewards](rows), align[responses](ones)

    return pad


# The sides on which each trainer pads token rewards and responses.
PADDING: dict[str, tuple[Side, Side]] = {
    "alarm_trl": ("left", "right"),
    "fine_grained_rlhf": ("right", "right"),
    "skyrl": ("left", "left"),  # skyrl/train/dataset/preprocess.py aligns both on the right
    "slime": ("none", "none"),  # one tensor per sample
    "trlx": ("right", "right"),
    "verl": ("right", "right"),
}


def _unpadded(rows: Rows) -> list[list[float]]:
    return [[*row] for row in rows]


def _padding_check(
    length: int, mark: float, rewards: Sequence[float], mask: Sequence[float]
) -> PaddingCheck:
    kept = [column for column, one in enumerate(mask) if one]
    found = [column for column in kept if abs(rewards[column] - mark) < 1e-6]
    return PaddingCheck(length, found[0] if found else None, kept[-1] if kept else None)
