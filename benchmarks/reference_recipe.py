"""Runs the recipe `long-form-qa` like ALaRM's own code, with transformers' models.

Three aspects for every sample, each in one padded batch; the holistic model one by one; then the
rule. This is a new implementation of halfrot/ALaRM, long-form-QA/train_ppo.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers as hf
from plain import Plain
from safetensors import safe_open
from work import Sample, Task

__all__ = ["ASPECTS", "Rule", "as_read", "aspect_tasks", "holistic_text", "make_reference"]

#: The aspects, in the order of a rule's weights.
ASPECTS = ("relevance", "factuality", "completeness")

_MEAN, _STD, _WEIGHT = -4.896130742253484, 3.0595760500526468, 5.0
_COMPLETENESS_MEAN, _COMPLETENESS_STD = -0.44677690555995353, 8.301160619054132


@dataclass(frozen=True, slots=True)
class Rule:
    """The threshold, and the weights of relevance, factuality and completeness."""

    threshold: float
    weights: tuple[float, float, float]


class _Holistic:
    """A Llama with a linear head on its last token, like UltraRM's own class."""

    def __init__(self, folder: Path, device: str) -> None:
        model = hf.LlamaModel.from_pretrained(folder, dtype=torch.float32)
        self._model = model.to(device).eval()
        self._tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            self._head = tensors.get_tensor("regression_head.weight").to(device)

    @torch.inference_mode()
    def z(self, sample: Sample) -> float:
        """Return the score in standard deviations from its mean."""
        ids = self._tokenizer(holistic_text(sample), return_tensors="pt").input_ids
        ids = ids.to(self._model.device)
        states = self._model(ids).last_hidden_state
        return ((states[0, -1] @ self._head[0]).item() - _MEAN) / _STD


def aspect_tasks(folders: Mapping[str, Path]) -> dict[str, Task]:
    """Return the task of each aspect, given the folders of the models."""
    segments, whole = "{prompt} answer:", "{prompt} answer: {completion}"
    return {
        "relevance": Task(folders["relevance_rm"], "segments", segments, "</s>"),
        "factuality": Task(folders["factuality_rm"], "segments", segments, "</s>"),
        "completeness": Task(folders["completeness_rm"], "sequence", whole),
    }


def holistic_text(sample: Sample) -> str:
    """Return the text that the holistic model reads."""
    return f"Human: {sample.prompt}\nAssistant: {sample.completion}"


def as_read(name: str, sample: Sample) -> Sample:
    """Return the sample as the aspect's model reads it."""
    if name == "relevance":
        found = re.search(r"question:\s*(.*?)\s*context:", sample.prompt, re.DOTALL)
        question = found.group(1) if found else sample.prompt
        return Sample(f"question: {question}", sample.completion, sample.segments)
    if name == "completeness":
        return Sample(" ".join(sample.prompt.split()), sample.completion)
    return sample


def make_reference(
    folders: Mapping[str, Path], device: str = "cpu"
) -> Callable[[Sequence[Sample], Rule | None], list[float]]:
    """Load the four models; return a function of samples to rewards, or to z without a rule."""
    tasks = aspect_tasks(folders)
    aspects = {name: (task, Plain(replace(task, device=device))) for name, task in tasks.items()}
    holistic = _Holistic(folders["ultrarm"], device)

    def rewards(samples: Sequence[Sample], rule: Rule | None) -> list[float]:
        if rule is None:
            return [holistic.z(sample) for sample in samples]
        values = [_aspect(name, task, plain, samples) for name, (task, plain) in aspects.items()]
        zs = [holistic.z(sample) for sample in samples]
        return [
            _combined(z, one, rule) for z, one in zip(zs, zip(*values, strict=True), strict=True)
        ]

    return rewards


def _aspect(name: str, task: Task, plain: Plain, samples: Sequence[Sample]) -> list[float]:
    """Return one aspect's shaped reward of each sample, before weighting."""
    texts = [task.text(as_read(name, sample)) for sample in samples]
    rows = plain.numbers(plain.encode(texts), [len(sample.segments) for sample in samples])
    return [sum(_sigmoid(_value(name, number)) for number in row) for row in rows]


def _value(name: str, number: float) -> float:
    if name == "completeness":
        return (number - _COMPLETENESS_MEAN) / _COMPLETENESS_STD * 0.3
    size = 0.3 if name == "relevance" else 0.5
    return size if number > 0 else -size


def _combined(z: float, aspects: Sequence[float], rule: Rule) -> float:
    reward = _WEIGHT * z
    if z >= rule.threshold:
        reward += sum(w * value for w, value in zip(rule.weights, aspects, strict=True))
    return reward


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
