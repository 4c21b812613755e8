"""One encoder learns three heads at once from people's preferences and marks.

The embeddings and the lower half of the layers stay as they were pretrained: few questions teach
little, and what is frozen is computed once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alarm_models.features import Features
from alarm_models.padding import padded
from checkpoint import MiniModel
from features import Example

__all__ = ["Schedule", "learn"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn."""

    epochs: int = 3
    questions_a_step: int = 4
    encoder_rate: float = 5e-5
    head_rate: float = 1e-3
    warm_up: float = 0.1
    averaging: float = 0.98
    num_frozen: int = 3
    seed: int = 0


def learn(model: MiniModel, data: Sequence[Example], schedule: Schedule) -> None:
    """Train the model on the examples; its weights end as the running average of the steps'."""
    random.seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    states = _frozen_states(model, data, schedule.num_frozen)
    upper = torch.nn.ModuleDict(
        {"layers": model.encoder.encoder.layer[schedule.num_frozen :], "heads": model.heads}
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": list(upper["layers"].parameters()), "lr": schedule.encoder_rate},
            {"params": list(upper["heads"].parameters()), "lr": schedule.head_rate},
        ],
        weight_decay=0.01,
    )
    num_steps = math.ceil(len(data) / schedule.questions_a_step) * schedule.epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (num_steps * schedule.warm_up), 1 - step / num_steps),
    )
    average = AveragedModel(upper, multi_avg_fn=get_ema_multi_avg_fn(schedule.averaging))
    for epoch in range(schedule.epochs):
        started, losses = time.monotonic(), []
        upper.train()
        order = random.sample(range(len(data)), len(data))
        for at in range(0, len(order), schedule.questions_a_step):
            batch = [data[index] for index in order[at : at + schedule.questions_a_step]]
            loss = _loss(upper, batch, states)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(upper.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            average.update_parameters(upper)
            losses.append(loss.item())
        mean, seconds = sum(losses) / len(losses), time.monotonic() - started
        print(f"epoch {epoch + 1}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
    upper.load_state_dict(average.module.state_dict())
    model.eval()


States = dict[int, torch.Tensor]


@torch.no_grad()
def _frozen_states(model: MiniModel, data: Sequence[Example], num_frozen: int) -> States:
    """Run the frozen layers over every input once; ``[tokens, hidden]`` by the features' id."""
    model.eval()
    states: States = {}
    features = [one for example in data for one in (*example.answers, *example.aspects.values())]
    features.sort(key=lambda one: one.num_tokens)
    for at in range(0, len(features), 32):
        batch = features[at : at + 32]
        inputs = padded(batch, model.encoder)
        hidden = model.encoder(**inputs, output_hidden_states=True).hidden_states[num_frozen]
        for row, one in enumerate(batch):
            states[id(one)] = hidden[row, : one.num_tokens].clone()
    return states


def _loss(upper: torch.nn.ModuleDict, batch: Sequence[Example], states: States) -> torch.Tensor:
    """Add up the loss of pairs (Bradley and Terry 1952) and of each aspect's segments."""
    answers = [one for example in batch for one in example.answers]
    scores = _outputs(upper, answers, "holistic_head", states)
    loss = scores.new_zeros(())
    start = 0
    differences = []
    for example in batch:
        own = scores[start : start + len(example.answers), 0]
        start += len(example.answers)
        differences += [own[pair.better] - own[pair.worse] for pair in example.pairs]
    if differences:
        loss = loss - logsigmoid(torch.stack(differences)).mean()
    for aspect in ("factuality", "relevance"):
        judged = [example for example in batch if aspect in example.aspects]
        if judged:
            features = [one.aspects[aspect] for one in judged]
            outputs = _outputs(upper, features, f"{aspect}_head", states)
            labels = [label for one in judged for label in one.labels[aspect]]
            loss = loss + 0.5 * cross_entropy(outputs, torch.tensor(labels))
    return loss


def _outputs(
    upper: torch.nn.ModuleDict, batch: Sequence[Features], head: str, states: States
) -> torch.Tensor:
    hidden = pad_sequence([states[id(one)] for one in batch], batch_first=True)
    lengths = torch.tensor([one.num_tokens for one in batch])
    mask = torch.arange(hidden.shape[1]) < lengths[:, None]  # [batch, tokens]
    for layer in upper["layers"]:
        hidden = layer(hidden, mask[:, None, None])
    rows = [
        hidden[row, span.start : span.end].mean(0)
        for row, one in enumerate(batch)
        for span in one.reads
    ]
    outputs: torch.Tensor = upper["heads"][head](torch.stack(rows))
    return outputs
