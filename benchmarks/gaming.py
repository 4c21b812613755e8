"""Trains a small policy that learns to game `mini`, and audits its samples beside honest ones.

The policy joins up to eight fragments: the answer to the question, sentences of its passages, list
numbers and stock phrases. It starts with the answer alone and is trained with REINFORCE and the
advantages of groups. Its samples, and the answers of other policies to the same questions, go over
HTTP to a server that captures them (`alarm serve --capture`); then both captures are audited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import structlog

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.captures.lines import capture_files
from alarm_service.evaluation.audit import AuditResult, audit
from alarm_service.observability.gaming import LIMITS
from alarm_service.settings import Settings

STOP, ANSWER, PASSAGE = "stop", "answer", "passage"
FRAGMENTS = (STOP, ANSWER, PASSAGE, "1.", "2.", "3.", "Yes.", "I hope this helps!")
NUM_PLACES = 8
#: How much likelier the honest choice is at first: the answer, then the end.
HONEST_LOGIT = 3.0


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its passages' sentences and the answers that policies gave to it."""

    prompt: str
    passages: Sequence[str]
    answers: Sequence[str]


def read(folder: Path) -> list[Question]:
    """Read FineGrainedRLHF's prompts and answers (`qa_prompts.json`, `qa_feedback.json`)."""
    prompts = json.loads((folder / "qa_prompts.json").read_text("utf-8"))
    prompt_of = {row["question"]: row["text"] for row in prompts}
    return [
        Question(
            prompt_of[row["question"]],
            [sentence for _, *found in row["passages"] for sentence in found],
            [row[f"prediction {number}"] for number in range(1, 5)],
        )
        for row in json.loads((folder / "qa_feedback.json").read_text("utf-8"))
    ]


class Policy:
    """A softmax over fragments for each place: logits ``[places, fragments]``."""

    def __init__(self, seed: int) -> None:
        self.logits = np.zeros((NUM_PLACES, len(FRAGMENTS)))
        self.logits[0, FRAGMENTS.index(ANSWER)] = HONEST_LOGIT
        self.logits[1:, FRAGMENTS.index(STOP)] = HONEST_LOGIT
        self._random = np.random.default_rng(seed)

    def chances(self) -> np.ndarray:
        """Return the probability of each fragment at each place."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def sample(self) -> list[int]:
        """Draw fragments until one is the end."""
        drawn: list[int] = []
        for chances in self.chances():
            drawn.append(int(self._random.choice(len(FRAGMENTS), p=chances)))
            if FRAGMENTS[drawn[-1]] == STOP:
                break
        return drawn

    def learn(self, drawn: Sequence[Sequence[int]], advantages: np.ndarray, rate: float) -> None:
        """Take one step of REINFORCE."""
        chances = self.chances()
        gradient = np.zeros_like(self.logits)
        for fragments, advantage in zip(drawn, advantages, strict=True):
            for place, fragment in enumerate(fragments):
                gradient[place] -= advantage * chances[place]
                gradient[place, fragment] += advantage
        self.logits += rate * gradient / len(drawn)


def written(fragments: Sequence[int], question: Question, choose: Random) -> str:
    """Write a completion."""
    texts = {ANSWER: question.answers[0], PASSAGE: choose.choice(question.passages)}
    names = [FRAGMENTS[fragment] for fragment in fragments]
    return " ".join(texts.get(name, name) for name in names if name != STOP)


@dataclass(frozen=True, slots=True)
class Run:
    """One capture: mean rewards, scores and lengths of its steps, and its audit."""

    rewards: Sequence[float]
    z: Sequence[float]
    lengths: Sequence[float]
    last_texts: Sequence[str]
    audited: AuditResult


class Scorer:
    """Gets rewards over HTTP and keeps the means of each step."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.means: list[tuple[float, float, float]] = []
        self.last_texts: list[str] = []

    async def rewards(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Return the rewards of groups of completions, each with its prompt; one request each."""
        answers = await asyncio.gather(*(self._ask(*group) for group in groups))
        every = [one for answer in answers for one in answer]
        self.last_texts = [text for _, texts in groups for text in texts]
        self.means.append((
            float(np.mean([one["reward"] for one in every])),
            float(np.mean([one["holistic"]["normalized"] for one in every])),
            float(np.mean([len(text) for text in self.last_texts])),
        ))  # fmt: skip
        return [[one["reward"] for one in answer] for answer in answers]

    async def _ask(self, prompt: str, completions: Sequence[str]) -> list[dict[str, Any]]:
        samples = [{"prompt": prompt, "completion": one} for one in completions]
        answer = await self._client.post("/hierarchical_reward", json={"samples": samples})
        answer.raise_for_status()
        return list(answer.json()["rewards"])


async def honest(
    scorer: Scorer, questions: Sequence[Question], options: argparse.Namespace
) -> None:
    """Score the answers that other policies gave."""
    for start in range(0, len(questions), options.prompts):
        chosen = questions[start : start + options.prompts]
        await scorer.rewards([(one.prompt, one.answers) for one in chosen])


async def train(scorer: Scorer, questions: Sequence[Question], options: argparse.Namespace) -> None:
    """Train a policy on groups of completions."""
    policy, choose = Policy(options.seed), Random(options.seed)
    for _ in range(options.steps):
        chosen = choose.sample(list(questions), options.prompts)
        drawn = [[policy.sample() for _ in range(options.group)] for _ in chosen]
        pairs = list(zip(chosen, drawn, strict=True))
        groups = [
            (question.prompt, [written(one, question, choose) for one in found])
            for question, found in pairs
        ]
        rewards = np.array(await scorer.rewards(groups))  # [prompts, group]
        deviations = rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4
        advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / deviations
        every = [one for found in drawn for one in found]
        policy.learn(every, advantages.flatten(), options.rate)


Act = Callable[[Scorer, Sequence[Question], argparse.Namespace], Awaitable[None]]


async def run(
    act: Act, questions: Sequence[Question], options: argparse.Namespace, folder: Path
) -> Run:
    """Serve `mini` with a capture, let samples be scored, and audit the capture."""
    app = create_app([load_recipe("mini")], Settings(device="cpu", capture=folder))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=600) as client,
    ):
        scorer = Scorer(client)
        await act(scorer, questions, options)
    audited = audit(capture_files(folder), LIMITS, options.window)
    rewards, z, lengths = zip(*scorer.means, strict=True)
    return Run(rewards, z, lengths, scorer.last_texts, audited)


def main() -> None:
    """Run both, and print what the audits say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with qa_prompts.json and qa_feedback.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of the captures")
    parser.add_argument("--questions", type=int, default=150, help="questions of the honest run")
    parser.add_argument("--steps", type=int, default=40, help="steps of training")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step")
    parser.add_argument("--group", type=int, default=16, help="completions per prompt")
    parser.add_argument("--rate", type=float, default=10.0, help="learning rate")
    parser.add_argument("--window", type=int, default=512, help="samples per window of the audit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    questions = read(options.data)[: options.questions]
    options.out.mkdir(parents=True, exist_ok=True)
    acts: dict[str, Act] = {"honest": honest, "trained": train}
    runs = {
        name: asyncio.run(run(act, questions, options, options.out / name))
        for name, act in acts.items()
    }
    for name, one in runs.items():
        tell(name, one)
    print(json.dumps({name: summary(one) for name, one in runs.items()}))


def tell(name: str, one: Run) -> None:
    """Print the course of a run, some of its last texts, and the figures of its audit."""
    print(f"\n{name}: {one.audited.num_samples} samples")
    every = max(1, len(one.rewards) // 6)
    for step in sorted({*range(0, len(one.rewards), every), len(one.rewards) - 1}):
        print(
            f"  step {step}: reward {one.rewards[step]:.2f}, z {one.z[step]:+.2f}, "
            f"{one.lengths[step]:.0f} characters"
        )
    for text in one.last_texts[:2]:
        print(f"  {text[:160]!r}")
    for recipe in one.audited.recipes:
        for finding in recipe.findings:
            value = "too few samples" if finding.value is None else f"{finding.value:.3f}"
            subject = "" if finding.subject is None else f" of {finding.subject}"
            passed = f", beyond {finding.limit:g}" if finding.num_passed else ""
            print(f"  {finding.figure}{subject}: {value}{passed}")


def summary(one: Run) -> dict[str, Any]:
    """Return the figures of a run."""
    findings = [finding for recipe in one.audited.recipes for finding in recipe.findings]
    return {
        "num_samples": one.audited.num_samples,
        "first_reward": one.rewards[0],
        "last_reward": one.rewards[-1],
        "passed": [
            ":".join(filter(None, (finding.figure, finding.subject)))
            for finding in findings
            if finding.num_passed
        ],
        "figures": {
            ":".join(filter(None, (finding.figure, finding.subject))): finding.value
            for finding in findings
        },
    }


if __name__ == "__main__":
    main()
