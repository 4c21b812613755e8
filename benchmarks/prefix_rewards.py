"""Scores a completion up to each of its segments, as `dense = "prefix"` asks for.

Compares one pass over completion and prefixes, which share what they have in common, with one pass
over the completion alone, and with a pass for each prefix. All include tokenization. A word is a
token; each prefix is closed by as many tokens as chat templates write after a message.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from checkpoints import Shape, llama
from made_samples import FIRST_WORD, VOCABULARY
from timing import add_rounds, in_turns, report, rounds_of
from work import Sample, Way

from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.reward_models.base import NeuralRewardModel, RewardModel
from alarm_models.reward_models.prefixes import cut_completion
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample as ModelSample
from alarm_models.types import Score, Span

_CLOSING = " [SEP]" * 4


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--prompt", type=int, default=400, help="tokens of the prompt")
    parser.add_argument("--completion", type=int, default=400, help="tokens of the completion")
    parser.add_argument("--segments", type=int, default=8)
    add_rounds(parser, rounds=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure; every round draws a new sample."""
    work = {number: _twins(options, number) for number in rounds_of(options)}
    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder), Shape(options.layers, options.hidden))
        spec = SequenceSpec(
            checkpoint=folder, template="{prompt} {completion}" + _CLOSING, dtype=options.dtype
        )
        model = Loader(torch.device(options.device)).load(spec, {})
        if not isinstance(model, NeuralRewardModel):
            raise TypeError("a model with weights is wanted")
        ways = {
            "one pass without prefixes": Way(lambda samples: _whole(model, samples)),
            "prefixes in one pass": Way(lambda samples: _together(model, samples)),
            "a pass a prefix": Way(lambda samples: _apart(model, samples)),
        }
        timed = in_turns(ways, work)
    title = (
        f"{options.segments} segments, {options.prompt} + {options.completion} tokens, "
        f"Llama {options.layers} x {options.hidden}"
    )
    references = [timed["a pass a prefix"].numbers] * 2
    report(title, timed, "one pass without prefixes", references)


def _twins(options: argparse.Namespace, seed: int) -> tuple[list[Sample], list[Sample]]:
    choose = Random(str(seed))
    words = [
        f"w{choose.randrange(FIRST_WORD, VOCABULARY)}"
        for _ in range(options.prompt + options.completion)
    ]
    prompt, completion = words[: options.prompt], words[options.prompt :]
    bounds = [
        options.completion * number // options.segments for number in range(options.segments + 1)
    ]
    ends = [len(" ".join(completion[:bound])) for bound in bounds]
    sample = Sample(" ".join(prompt), " ".join(completion), tuple(pairwise(ends)))
    return [sample], [sample]


def _whole(model: RewardModel, samples: Sequence[Sample]) -> list[float]:
    _scores(model, [ModelSample(one.prompt, one.completion) for one in samples])
    return []  # only timed: it gives one number a sample


def _together(model: RewardModel, samples: Sequence[Sample]) -> list[float]:
    found = _scores(model, [_marked(one) for one in samples])
    return [_value(one) for score in found for one in (*score.prefixes, score)]


def _apart(model: RewardModel, samples: Sequence[Sample]) -> list[float]:
    values = []
    for sample in samples:
        ends = [0, *(end for _, end in sample.segments)]
        for end in ends:
            (score,) = _scores(model, [cut_completion(_marked(sample), end)])
            values.append(_value(score))
    return values


def _marked(sample: Sample) -> ModelSample:
    segments = {"sentences": tuple(Span(*one) for one in sample.segments)}
    plain = ModelSample(sample.prompt, sample.completion, segments=segments)
    return replace(plain, prefix_segmenter="sentences")


def _scores(model: RewardModel, samples: Sequence[ModelSample]) -> list[Score]:
    features = [one for one in model.prepare(samples) if isinstance(one, ModelInput)]
    return [model.read(*pair) for pair in zip(features, model.forward(features), strict=True)]


def _value(score: Score) -> float:
    if score.value is None:
        raise ValueError("the model gave no score")
    return score.value


if __name__ == "__main__":
    main()
