"""Fine-tunes the encoder of `mini` on human preferences and on wrong answers made from right ones.

The loss has three parts: pairs of a right and a wrong answer (Bradley and Terry 1952, with a
margin), human preferences with smoothed labels, and the squared correlation of scores with
lengths over people's and sampled answers, so that a longer answer is not a better one by its
length.
Segments are classified beside that, for one aspect a step, so that the states tell where an answer
is wrong.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import process_time

import torch
from torch.nn.functional import cross_entropy, softplus

from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.linear_kernels import has_bfloat16
from alarm_models.modeling.padded import pad_batch
from alarm_models.reward_models.base import RewardModel
from batches import Batch, add_question, add_span_question
from checkpoint import MiniModel
from data import Question
from features import ASPECTS, Marked, labels_of, prepared
from learning import Fit, learn_preferences
from span_questions import SpanQuestion
from wrong_answers import Passages

__all__ = ["Settings", "finetune"]

#: Samples of a forward pass.
_BATCH = 24

#: Scores and lengths of this many answers of earlier steps count in the correlation.
_REMEMBERED = 108


@dataclass(frozen=True, slots=True)
class Settings:
    """Constants of a run."""

    #: Steps in all, and after how many of them the second phase begins: the learning rate rises
    #: again, to half, subtle faults are shown more often, and lengths, then of people's answers
    #: alone, weigh more.
    steps: int
    first_steps: int
    #: Of the choice of questions and faults.
    seed: int = 0
    #: Questions with human feedback, and questions whose answers are spans, of a step.
    questions: int = 2
    span_questions: int = 8
    learning_rate: float = 2e-4
    head_rate: float = 1e-3
    margin: float = 0.5
    #: How often people are taken to prefer the worse answer.
    smoothing: float = 0.2
    pairs_weight: float = 4.0
    preferences_weight: float = 1.5
    length_weight: float = 2.0
    second_length_weight: float = 5.0
    segment_weight: float = 0.5
    #: Steps between saved states.
    saved_every: int = 50


@dataclass(slots=True)
class _Run:
    """What changes during a run, and is saved so that it can go on after a stop."""

    settings: Settings
    model: MiniModel
    encoder: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    choose: Random
    remembered: deque[tuple[float, float]]
    before: Fit | None = None
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Replace the saved state."""
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "choose": self.choose.getstate(),
            "torch": torch.get_rng_state(),
            "remembered": list(self.remembered),
            "before": self.before,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> None:
        """Go on from the saved state; exit if it is of a run with other settings."""
        state = torch.load(path, weights_only=False)
        if state["settings"] != self.settings:
            raise SystemExit(f"{path} is of a run with other settings: remove it, or name another")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.choose.setstate(state["choose"])
        torch.set_rng_state(state["torch"])
        self.remembered.extend(state["remembered"])
        self.before, self.step, self.seconds = state["before"], state["step"], state["seconds"]
        print(f"goes on after step {self.step}", flush=True)


def finetune(
    model: MiniModel,
    models: Mapping[str, RewardModel],
    questions: Sequence[Question],
    span_questions: Sequence[SpanQuestion],
    settings: Settings,
    saved: Path,
) -> tuple[Fit, float]:
    """Fine-tune all layers but the embeddings of words and positions; print the progress.

    Each step has some ``questions`` with human feedback, and more ``span_questions``. The holistic
    head starts from people's preferences. The state is saved in ``saved``, from which
    a stopped run goes on. Returns the fit of that head and the processor time in seconds.
    """
    passages = {one.text: Passages(one) for one in questions}
    compared = [one for one in questions if one.pairs]
    run = _begin(model, settings)
    before = process_time()
    if saved.is_file():
        run.resume(saved)
        before -= run.seconds
    fit = run.before = run.before or learn_preferences(model, models["preference"], questions)
    model.train()
    while run.step < settings.steps:
        chosen = run.choose.sample(compared, settings.questions)
        is_second = run.step >= settings.first_steps
        batch = Batch()
        for one in chosen:
            other = run.choose.choice([question for question in questions if question is not one])
            own = passages[one.text]
            add_question(batch, one, other, own, run.choose, is_second=is_second)
        for spans in run.choose.sample(span_questions, settings.span_questions):
            other = run.choose.choice(questions)
            add_span_question(batch, spans, other, run.choose, is_second=is_second)
        losses = _losses(run, models, batch)
        run.optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(run.encoder, 1.0)
        run.optimizer.step()
        run.schedule.step()
        run.step += 1
        run.seconds = process_time() - before
        if run.step % settings.saved_every == 0 or run.step == settings.steps:
            run.save(saved)
        if run.step % 10 == 0:
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"step {run.step}, {run.seconds:.0f} s: {shown}", flush=True)
    model.eval()
    return fit, run.seconds


def _begin(model: MiniModel, settings: Settings) -> _Run:
    """Freeze the embeddings of words and positions; those of types learn as fast as the heads."""
    embeddings = model.encoder.embeddings
    embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
    embeddings.position_embeddings.weight.requires_grad_(requires_grad=False)
    types = embeddings.token_type_embeddings.weight
    encoder = [one for one in model.encoder.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [one for one in encoder if one is not types],
                "lr": settings.learning_rate,
            },
            {"params": [types, *model.heads.parameters()], "lr": settings.head_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    choose = Random(settings.seed)
    return _Run(settings, model, encoder, optimizer, schedule, choose, deque(maxlen=_REMEMBERED))


def _rate(step: int, settings: Settings) -> float:
    """Return the share of the learning rate: two half cosines, after a rise in the first steps."""
    if step < settings.first_steps:
        return min(1.0, (step + 1) / 25) * _cosine(step / settings.first_steps)
    second = settings.steps - settings.first_steps
    return 0.5 * _cosine((step - settings.first_steps) / second)


def _cosine(done: float) -> float:
    return max(0.02, 0.5 * (1 + math.cos(math.pi * done)))


def _losses(run: _Run, models: Mapping[str, RewardModel], batch: Batch) -> dict[str, torch.Tensor]:
    model, settings = run.model, run.settings
    inputs = prepared(models["preference"], batch.samples)
    states = _states(model, inputs)
    pooled = torch.stack([rows.mean(0) for rows in states])  # [samples, hidden]
    scores = model.heads["holistic_head"](pooled)[:, 0]
    kinds = [
        softplus(settings.margin - _differences(scores, pairs)).mean()
        for pairs in batch.pairs.values()
    ]
    preferred = _differences(scores, batch.preferences)
    aspect = list(ASPECTS)[run.step % len(ASPECTS)]
    is_second = run.step >= settings.first_steps
    length_weight = settings.second_length_weight if is_second else settings.length_weight
    return {
        "pairs": settings.pairs_weight * torch.stack(kinds).mean(),
        "preferences": settings.preferences_weight
        * (softplus(-preferred) + settings.smoothing * preferred).mean(),
        "length": length_weight * _length_loss(run, batch, inputs, scores),
        aspect: settings.segment_weight
        * _segment_loss(model, models[ASPECTS[aspect]], f"{aspect}_head", batch.marked[aspect]),
        "size": 0.001 * scores.square().mean(),
    }


def _length_loss(
    run: _Run, batch: Batch, inputs: Sequence[ModelInput], scores: torch.Tensor
) -> torch.Tensor:
    """Return the squared correlation of scores with lengths, over earlier steps' answers too."""
    own = scores[batch.measured]
    lengths = [math.log(inputs[index].num_tokens) for index in batch.measured]
    earlier = torch.tensor([score for score, _ in run.remembered])
    every = torch.tensor([*(length for _, length in run.remembered), *lengths])
    loss = _correlation(torch.cat([earlier, own]), every) ** 2
    run.remembered.extend(zip(own.tolist(), lengths, strict=True))
    return loss


def _states(model: MiniModel, inputs: Sequence[ModelInput]) -> list[torch.Tensor]:
    """Return each sample's hidden states, ``[tokens, hidden]``.

    On a CPU that multiplies in bfloat16 the encoder runs in it, in two thirds of the time.
    """
    order = sorted(range(len(inputs)), key=lambda index: inputs[index].num_tokens)
    states: dict[int, torch.Tensor] = {}
    for at in range(0, len(order), _BATCH):
        chosen = order[at : at + _BATCH]
        padded = pad_batch([inputs[index] for index in chosen], model.encoder)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            hidden = model.encoder(**padded).last_hidden_state  # [samples, tokens, hidden]
        hidden = hidden.float()
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
    """Return by how much each better answer of the pairs, which must not be none, scores higher."""
    better, worse = zip(*pairs, strict=True)
    return scores[list(better)] - scores[list(worse)]


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation; 0 for constants."""
    first, second = first - first.mean(), second - second.mean()
    return (first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-6)
