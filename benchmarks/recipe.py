"""Scores groups with the recipe `long-form-qa`, at several shares past the threshold.

Compares the service over HTTP with the procedure of ALaRM's own code (all three aspects, padded per
group, and the holistic model one by one), and with the time of the multiplications alone. All use
the same random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import qa
from checkpoints import Shape, llama_with_head, longformer
from children import function_in_child
from load import Post, client
from ours import alarm_serve, on_the_wire
from products import multiplier
from recipe_operations import recipe_operations
from reference_recipe import ASPECTS, Rule, make_reference
from timing import add_rounds, in_turns, report, rounds_of
from work import Sample, Way, Work


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prompts",
        type=Path,
        default=qa.GOLDEN / "qa_items.jsonl",
        help="qa_items.jsonl, or qa_prompts.json",
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.3, 1])
    parser.add_argument("--group", type=int, default=8, help="samples per group")
    # The published aspects are 12 layers of this width.
    parser.add_argument("--holistic", type=int, nargs=2, default=[4, 768], help="layers, width")
    parser.add_argument("--aspects", type=int, nargs=2, default=[4, 768], help="layers, width")
    parser.add_argument(
        "--weights", type=float, nargs=3, default=[0, 1, 0], help=f"of {', '.join(ASPECTS)}"
    )
    add_rounds(parser, rounds=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure each rate; every round uses a new group."""
    pairs = qa.read(options.prompts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = make_models(folder, Shape(*options.holistic), Shape(*options.aspects))
        reference = stack.enter_context(function_in_child(make_reference, folders, options.device))
        flags = [flag for one in settings(folders) for flag in ("--set", one)]
        url = stack.enter_context(
            alarm_serve("long-form-qa", options.device, folder / "alarm.log", *flags)
        )
        post = stack.enter_context(client())
        multiply = stack.enter_context(multiplier(options.device, "float32"))
        least = partial(recipe_operations, folders)
        for at, rate in enumerate(options.rates):
            work = {
                number: qa.group(pairs, options.group, seed=1000 * at + number + 1)
                for number in rounds_of(options)
            }
            gates = [gate(rate, tuple(options.weights), work, twin, reference) for twin in (0, 1)]
            measure(gates, work, reference, partial(reward_over_http, post, url), multiply, least)


@dataclass(frozen=True, slots=True)
class Gate:
    """A rule whose threshold a ``share`` of one twin's samples reach; ``zs`` are by round."""

    rule: Rule
    share: float
    zs: Mapping[int, Sequence[float]]


def gate(
    rate: float,
    weights: tuple[float, float, float],
    work: Work,
    twin: int,
    reference: Callable[[Sequence[Sample], Rule | None], list[float]],
) -> Gate:
    """Set the threshold that ``rate`` of a twin's samples reach, over all rounds."""
    zs = {number: reference(twins[twin], None) for number, twins in work.items()}
    counted = [z for number, some in zs.items() if number >= 0 for z in some]
    threshold, share = threshold_for(rate, counted)
    return Gate(Rule(threshold, weights), share, zs)


def measure(
    gates: Sequence[Gate],
    work: Work,
    reference: Callable[[Sequence[Sample], Rule | None], list[float]],
    alarm: Callable[[Rule, Sequence[Sequence[Sample]]], list[float]],
    multiply: Callable[[float], None],
    least: Callable[[Rule, Sequence[Sample], Sequence[float]], float],
) -> None:
    """Run all variants in turn, each twin with its own threshold."""
    first, second = (one.rule for one in gates)
    # Computed before timing starts, keyed by the prompt, which is different in each round.
    operations = {
        samples[0].prompt: least(first, samples, gates[0].zs[number])
        for number, (samples, _) in work.items()
    }

    def only_multiply(samples: Sequence[Sample]) -> list[float]:
        multiply(operations[samples[0].prompt])
        return []

    ways = {
        "alarm, a request a group": Way(lambda samples: alarm(first, [samples])),
        "alarm, a request a sample": Way(
            lambda samples: alarm(second, [[sample] for sample in samples]), 1
        ),
        "as the original does": Way(lambda samples: reference(samples, first)),
        "matrix products alone": Way(only_multiply),
    }
    timed = in_turns(ways, work)
    last = max(work)
    references = [{last: reference(work[last][twin], gates[twin].rule)} for twin in (0, 1)]
    title = f"long-form-qa, a group of {len(work[0][0])}, {gates[0].share:.0%} past the threshold"
    report(title, timed, next(iter(ways)), references)


def make_models(folder: Path, holistic: Shape, aspects: Shape) -> dict[str, Path]:
    """Create the recipe's four checkpoints; return their folders by model name."""
    names = ("ultrarm", "relevance_rm", "factuality_rm", "completeness_rm")
    folders = {name: folder / name for name in names}
    llama_with_head(folders["ultrarm"], holistic, qa.GOLDEN / "holistic_rm")
    labels = {"relevance_rm": ("NF-ERR", "Ignore", "O"), "factuality_rm": ("F-ERR", "Ignore", "O")}
    for name, three in labels.items():
        longformer(folders[name], aspects, qa.GOLDEN / "fact_rm", three)
    longformer(folders["completeness_rm"], aspects, qa.GOLDEN / "comp_rm")
    return folders


def settings(folders: dict[str, Path]) -> list[str]:
    """Return the settings that make the recipe use these checkpoints and accept every text."""
    checkpoints = [f"models.{name}.checkpoint={folder}" for name, folder in folders.items()]
    return [*checkpoints, "models.ultrarm.max_tokens=4096"]


def threshold_for(rate: float, zs: Sequence[float]) -> tuple[float, float]:
    """Return a threshold and, nearest to ``rate``, the share of samples past it.

    The threshold lies between two of the ``zs``, or beyond all of them.
    """
    ordered = sorted(zs, reverse=True)
    count = round(rate * len(ordered))
    edges = [ordered[0] + 1, *ordered, ordered[-1] - 1]
    return (edges[count] + edges[count + 1]) / 2, count / len(ordered)


def reward_over_http(
    post: Post, url: str, rule: Rule, requests: Sequence[Sequence[Sample]]
) -> list[float]:
    """Send requests to `/hierarchical_reward`, all at once; return their rewards, concatenated."""
    weights = dict(zip(ASPECTS, rule.weights, strict=True))
    bodies = [
        {
            "samples": [_with_subsentences(sample) for sample in samples],
            "overrides": {"threshold": rule.threshold, "weights": weights},
        }
        for samples in requests
    ]
    answers = post(f"{url}/hierarchical_reward", bodies)
    rewards = [reward for answer in answers for reward in answer["rewards"]]
    errors = [reward["error"] for reward in rewards if reward["error"] is not None]
    if errors:
        raise RuntimeError(f"alarm refuses a sample: {errors[0]}")
    return [reward["reward"] for reward in rewards]


def _with_subsentences(sample: Sample) -> dict[str, Any]:
    """Return a sample whose sub-sentences are its sentences, as the reference reads it."""
    body = on_the_wire(sample)
    body["segments"]["subsentences"] = body["segments"]["sentences"]
    return body


if __name__ == "__main__":
    main()
