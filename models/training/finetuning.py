"""Fine-tunes the encoder of `mini` on human preferences and on wrong answers made from right ones.

The loss has three parts: pairs of a right and a wrong answer (Bradley and Terry 1952, with a
margin), human preferences, and the squared correlation of scores with lengths over the right and
sampled answers of a batch, so that a longer answer is not a better one by its length. Sentences
are classified beside that, so that the states tell where an answer is wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from time import monotonic

import torch
from torch.nn.functional import cross_entropy, softplus

from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.padded import pad_batch
from alarm_models.reward_models.base import RewardModel
from alarm_models.types import Sample
from checkpoint import MiniModel
from data import Question
from features import (
    ASPECTS,
    Marked,
    labels_of,
    marked_by_fault,
    marked_by_people,
    prepared,
)
from wrong_answers import (
    KINDS,
    WITHOUT_ANSWER,
    Passages,
    short_answers,
    supported_prompt,
    wrong_answers,
)

__all__ = ["Settings", "finetune"]

#: Samples of a forward pass.
_BATCH = 24

#: Kinds that are shown for each right answer, as they are hardest.
_HARD = ("name from passages", "other numbers", "cut off", "opposite", "repetitive")


@dataclass(frozen=True, slots=True)
class Settings:
    """Constants of a run."""

    steps: int = 700
    questions: int = 3
    learning_rate: float = 1e-4
    head_rate: float = 1e-3
    margin: float = 0.5
    pairs_weight: float = 2.0
    length_weight: float = 2.0
    segment_weight: float = 0.5


@dataclass(slots=True)
class _Batch:
    """The samples of a step, pairs of their indices (better, worse), and wrong spans."""

    samples: list[Sample] = field(default_factory=list)
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    preferences: list[tuple[int, int]] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    marked: dict[str, list[Marked]] = field(
        default_factory=lambda: {aspect: [] for aspect in ASPECTS}
    )

    def add(self, prompt: str, completion: str) -> int:
        """Add a sample; return its index."""
        self.samples.append(Sample(prompt, completion))
        return len(self.samples) - 1


def finetune(
    model: MiniModel,
    models: Mapping[str, RewardModel],
    questions: Sequence[Question],
    settings: Settings,
) -> None:
    """Fine-tune all layers but the embeddings of words and positions; print the progress."""
    passages = {one.text: Passages(one) for one in questions}
    embeddings = model.encoder.embeddings
    embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
    embeddings.position_embeddings.weight.requires_grad_(requires_grad=False)
    encoder = [one for one in model.encoder.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": encoder, "lr": settings.learning_rate},
            {"params": model.heads.parameters(), "lr": settings.head_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, settings.steps)
    )
    choose, started = Random(0), monotonic()
    model.train()
    for step in range(settings.steps):
        batch = _batch(
            choose.sample(list(questions), settings.questions), questions, passages, choose
        )
        losses = _losses(model, models, batch, settings)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(encoder, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"step {step + 1}, {monotonic() - started:.0f} s: {shown}", flush=True)
    model.eval()


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batch(
    chosen: Sequence[Question],
    questions: Sequence[Question],
    passages: Mapping[str, Passages],
    choose: Random,
) -> _Batch:
    batch = _Batch()
    for question in chosen:
        other = choose.choice([one for one in questions if one is not question])
        _add_question(batch, question, other, passages[question.text], choose)
    return batch


def _add_question(
    batch: _Batch, question: Question, other: Question, own: Passages, choose: Random
) -> None:
    answers = [batch.add(question.prompt, answer) for answer in question.answers]
    batch.preferences += [(answers[one.better], answers[one.worse]) for one in question.pairs]
    human, corrected = question.references
    right = [
        (batch.add(question.prompt, text), question.prompt, text) for text in (corrected, human)
    ]
    batch.measured += [*answers, *(index for index, *_ in right)]
    if corrected.strip() != question.answers[0].strip():
        batch.preferences.append((right[0][0], answers[0]))
    for text in _some(short_answers(question, own), 2, choose):
        prompt = question.prompt
        if choose.random() < 0.6:
            prompt = supported_prompt(own, f"{human} {text}", choose)
        right.append((batch.add(prompt, text), prompt, text))
    sampled = choose.randrange(len(answers))
    right.append((answers[sampled], question.prompt, question.answers[sampled]))
    without = wrong_answers(corrected, own, other, choose, sorted(WITHOUT_ANSWER & set(KINDS)))
    for kind, text in without.items():
        index = batch.add(question.prompt, text)
        batch.pairs[kind] += [(better, index) for better, *_ in right]
    for at, (better, prompt, text) in enumerate(right):
        kinds = [kind for kind in KINDS if kind not in WITHOUT_ANSWER]
        wrong = wrong_answers(text, own, other, choose, kinds)
        hard = _some([kind for kind in _HARD if kind in wrong], 3, choose)
        rest = _some([kind for kind in wrong if kind not in hard], 4, choose)
        for kind in [*hard, *rest][: 4 if at < 2 else 3]:
            batch.pairs[kind].append((better, batch.add(prompt, wrong[kind])))
            if at < 3:
                for aspect, one in marked_by_fault(Sample(prompt, wrong[kind]), text, kind).items():
                    batch.marked[aspect].append(one)
    for aspect, marked in marked_by_people(question).items():
        batch.marked[aspect] += marked


def _losses(
    model: MiniModel, models: Mapping[str, RewardModel], batch: _Batch, settings: Settings
) -> dict[str, torch.Tensor]:
    inputs = prepared(models["preference"], batch.samples)
    states = _states(model, inputs)
    pooled = torch.stack([rows.mean(0) for rows in states])  # [samples, hidden]
    scores = model.heads["holistic_head"](pooled)[:, 0]
    kinds = [
        softplus(settings.margin - _differences(scores, pairs)).mean()
        for pairs in batch.pairs.values()
    ]
    lengths = torch.tensor([math.log(inputs[index].num_tokens) for index in batch.measured])
    return {
        "pairs": settings.pairs_weight * torch.stack(kinds).mean(),
        "preferences": softplus(-_differences(scores, batch.preferences)).mean(),
        "length": settings.length_weight * _correlation(scores[batch.measured], lengths) ** 2,
        **{
            aspect: settings.segment_weight
            * _segment_loss(model, models[ASPECTS[aspect]], f"{aspect}_head", marked)
            for aspect, marked in batch.marked.items()
        },
        "size": 0.001 * scores.square().mean(),
    }


def _states(model: MiniModel, inputs: Sequence[ModelInput]) -> list[torch.Tensor]:
    """Return each sample's hidden states, ``[tokens, hidden]``."""
    order = sorted(range(len(inputs)), key=lambda index: inputs[index].num_tokens)
    states: dict[int, torch.Tensor] = {}
    for at in range(0, len(order), _BATCH):
        chosen = order[at : at + _BATCH]
        padded = pad_batch([inputs[index] for index in chosen], model.encoder)
        hidden = model.encoder(**padded).last_hidden_state  # [samples, tokens, hidden]
        for row, index in enumerate(chosen):
            states[index] = hidden[row, : inputs[index].num_tokens]
    return [states[index] for index in range(len(inputs))]


def _segment_loss(
    model: MiniModel, rewards: RewardModel, head: str, marked: Sequence[Marked]
) -> torch.Tensor:
    """Return the cross-entropy of `error` and `ok` over the segments of samples."""
    readable = [one for one in marked if one.sample.completion_text.strip()]
    inputs = prepared(rewards, [one.sample for one in readable])
    logits, labels = [], []
    for features, rows, one in zip(inputs, _states(model, inputs), readable, strict=True):
        for read in features.read_positions:
            logits.append(model.heads[head](rows[read.start : read.end].mean(0)))
        labels += labels_of(features, one.wrong)
    return cross_entropy(torch.stack(logits), torch.tensor(labels))


def _differences(scores: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    better, worse = zip(*pairs, strict=True)
    return scores[list(better)] - scores[list(worse)]


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation; 0 for constants."""
    first, second = first - first.mean(), second - second.mean()
    return (first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-6)


def _some(items: Sequence[str], number: int, choose: Random) -> list[str]:
    return choose.sample(list(items), min(number, len(items)))
