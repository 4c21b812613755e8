"""Sizes of a run, and the hyper-parameters that are fixed before it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FULL", "QUICK", "Sizes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that a run depends on, apart from the data and the versions of packages."""

    # The policy: a Llama trained from scratch.
    vocabulary: int = 3000
    width: int = 192
    layers: int = 4
    heads: int = 6
    supervised_steps: int = 2500
    supervised_batch: int = 64
    supervised_rate: float = 1.5e-3
    # The holistic model: preference pairs over the policy's own samples.
    preference_prompts: int = 3000
    samples_per_prompt: int = 4
    flipped: float = 0.25
    preference_epochs: int = 1
    preference_rate: float = 1e-4
    # Where the holistic model starts: words of samples that the reference does not have.
    word_samples: int = 12000
    word_epochs: int = 2
    # The model of error spans: corrupted references.
    corrupted_references: int = 24000
    error_epochs: int = 2
    error_rate: float = 5e-4
    # Selection and calibration.
    study_prompts: int = 300
    admitted: float = 0.31  # as many as pass z >= 0.5, the paper's threshold for translation
    holistic_weight: float = 3.0  # the paper's, for translation
    aspect_weight: float = 1.0  # the paper's, for translation
    gate_temperature: float = 0.25
    # GRPO: the same for each method. Only the weights of norms are trained.
    rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1)  # one is chosen with `holistic_only`
    beta: float = 0.05
    steps: int = 60
    prompts_per_step: int = 8
    group: int = 8
    new_tokens: int = 40
    training_prompts: int = 4000
    seeds: tuple[int, ...] = (0, 1, 2)
    # Evaluation.
    development_prompts: int = 200
    test_prompts: int = 300
    test_samples: int = 4
    curve_every: int = 15
    curve_prompts: int = 80
    draws: int = 2000

    def as_json(self) -> dict[str, Any]:
        """Return the sizes as JSON has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


FULL = Sizes()

#: Ten minutes on two cores: too short for results, long enough for every step of a run.
QUICK = Sizes(
    vocabulary=2000,
    width=128,
    layers=2,
    heads=4,
    supervised_steps=400,
    supervised_batch=64,
    preference_prompts=150,
    preference_epochs=1,
    word_samples=1000,
    word_epochs=1,
    corrupted_references=3000,
    error_epochs=1,
    study_prompts=60,
    rates=(1e-2, 3e-2),
    steps=4,
    prompts_per_step=4,
    group=4,
    training_prompts=64,
    seeds=(0,),
    development_prompts=20,
    test_prompts=30,
    test_samples=2,
    curve_every=2,
    curve_prompts=10,
    draws=200,
)
