"""An experiment: linear layers with weights in 8-bit integers, their speed beside their error.

Weights are rounded to integers of 8 bits. `weight-only` has one scale per output and dequantizes
the weight for each product; `dynamic` has one scale per weight, rounds the activations too, and
multiplies integers. Neither is served.

    OMP_NUM_THREADS=1 python benchmarks/int8.py

Reports the processor seconds of a pass as a share of those in float32, measured in turns, and the
largest error of a score as a share of the scores' standard deviation.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import Shape, llama
from made_samples import VOCABULARY
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import alarm_models

#: Rows and tokens of a pass: with few tokens, a pass is bound by reading the weights.
_PASSES = {"512 tokens": (4, 128), "16 tokens": (1, 16)}

_MINI = Path(alarm_models.__file__).parent / "recipes" / "mini"

_NUM_RANDOM = 16


class WeightOnlyLinear(torch.nn.Module):
    """A linear layer with an 8-bit weight that is dequantized by each call.

    torch's kernel that multiplies by such a weight (`_weight_int8pack_mm`) is not used: in float32
    it took 8 to 40 times as long as the unquantized layer, in bfloat16 1.3 to 1.8 times.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.data
        self.scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.quantized = (weight / self.scales.unsqueeze(1)).round().to(torch.int8)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``[..., out]`` for states ``[..., in]``."""
        weight = self.quantized.to(states.dtype) * self.scales.unsqueeze(1)
        return torch.nn.functional.linear(states, weight, self.bias)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in float32, its inputs for the error, and how a state becomes a score."""

    model: torch.nn.Module
    inputs: Sequence[torch.Tensor]
    score: Callable[[torch.Tensor], torch.Tensor]


def weight_only(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with 8-bit weights."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, WeightOnlyLinear(child))
    return copied


def dynamic(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with 8-bit weights whose layers also round their activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favor of another package
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)  # type: ignore[no-any-return]


def mini() -> Subject:
    """Return `mini` with its preference head, and each answer of its parity file to each prompt."""
    weights = load_file(_MINI / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(_MINI)
    lines = (_MINI / "parity.jsonl").read_text().splitlines()[1:]
    samples = [json.loads(line)["sample"] for line in lines]
    texts = [
        f"{one['prompt']} answer: {other['completion']}" for one in samples for other in samples
    ]
    encoded = [tokenizer(text, truncation=True, max_length=512)["input_ids"] for text in texts]
    head, bias = (weights[f"holistic_head.{name}"][0].float() for name in ("weight", "bias"))
    return Subject(
        AutoModel.from_pretrained(_MINI, add_pooling_layer=False).eval(),
        [torch.tensor([ids]) for ids in encoded],
        lambda states: states[0].mean(0) @ head + bias,
    )


def random_llama(layers: int, hidden: int) -> Subject:
    """Return a Llama with random weights, a random head, and random samples."""
    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder), Shape(layers, hidden))
        model = AutoModelForSequenceClassification.from_pretrained(folder).model.eval()
    head = torch.randn(hidden) / hidden**0.5
    inputs = [torch.randint(4, VOCABULARY, (1, 64)) for _ in range(_NUM_RANDOM)]
    return Subject(model, inputs, lambda states: states[0, -1] @ head)


@torch.inference_mode()
def errors(subject: Subject, variants: Mapping[str, torch.nn.Module]) -> dict[str, float]:
    """Return the largest error of a score by variant, in standard deviations of the scores."""

    def scores(model: torch.nn.Module) -> torch.Tensor:
        return torch.stack(
            [subject.score(model(ids).last_hidden_state).squeeze() for ids in subject.inputs]
        )

    exact = scores(subject.model)
    return {
        name: float((scores(model) - exact).abs().max() / exact.std())
        for name, model in variants.items()
    }


@torch.inference_mode()
def shares(
    variants: Mapping[str, torch.nn.Module], ids: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Return each variant's processor seconds as a share of the first one's, medians of rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, model in variants.items():
            started = time.process_time()
            model(ids)
            if number:
                seconds[name].append(time.process_time() - started)
    first = next(iter(seconds.values()))
    return {
        name: statistics.median(one / base for one, base in zip(found, first, strict=True))
        for name, found in seconds.items()
    }


def rows(name: str, subject: Subject, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the error and the shares of time of each variant of one model."""
    torch.manual_seed(0)
    variants = {
        "float32": subject.model,
        "weight-only": weight_only(subject.model),
        "dynamic": dynamic(subject.model),
    }
    error = errors(subject, variants)
    by_pass = {
        title: shares(variants, torch.randint(4, VOCABULARY, size), rounds)
        for title, size in _PASSES.items()
    }
    for variant in variants:
        times = {title: found[variant] for title, found in by_pass.items()}
        yield {"model": name, "weights": variant, **times, "error": error[variant]}


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    shape = f"Llama, {options.layers} layers of {options.hidden}"
    table = Table("model", "weights", *_PASSES, "error", title="8-bit weights")
    for name, subject in (("mini", mini()), (shape, random_llama(options.layers, options.hidden))):
        for row in rows(name, subject, options.rounds):
            numbers = (f"{row[column]:.3g}" for column in (*_PASSES, "error"))
            table.add_row(name, row["weights"], *numbers)
            print(json.dumps(row), flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
