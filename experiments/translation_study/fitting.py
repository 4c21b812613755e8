"""The training loop of the policy and of both models: AdamW on batches of rows of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch

__all__ = ["fit", "padded"]


def fit(
    model: torch.nn.Module,
    lengths: Sequence[int],
    loss_of: Callable[[list[int]], torch.Tensor],
    *,
    batch: int,
    steps: int,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    report_every: int = 50,
) -> list[float]:
    """Train a model on rows with these lengths; return the loss of each step.

    `loss_of` gets the indices of the rows of a batch. The learning rate rises over a twentieth of
    the steps, then falls along half a cosine; gradients are clipped to a norm of 1.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=betas, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_cosine(steps))
    batches = _batches_of_like_length(lengths, batch, seed=0)
    losses: list[float] = []
    for _ in range(steps):
        loss = loss_of(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % report_every == 0:
            recent = sum(losses[-report_every:]) / report_every
            print(f"  step {len(losses)}: loss {recent:.3f}", flush=True)
    return losses


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows padded on the right, and the attention mask; both `[rows, tokens]`."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def _warmup_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _batches_of_like_length(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end, in a new order each pass, of rows of like length."""
    choose = random.Random(seed)
    while True:
        order = sorted(range(len(lengths)), key=lambda at: (lengths[at], choose.random()))
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        choose.shuffle(batches)
        yield from batches
