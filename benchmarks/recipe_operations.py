"""Counts the operations of `long-form-qa` for a group: aspects only where they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import transformers as hf
from operations import Batch, of_apart, of_group
from plain import encode
from reference_recipe import ASPECTS, Rule, as_read, aspect_tasks, holistic_text
from work import Sample

__all__ = ["recipe_operations"]


def recipe_operations(
    folders: Mapping[str, Path], rule: Rule, samples: Sequence[Sample], zs: Sequence[float]
) -> float:
    """Count the operations of the holistic model, and of aspects with a weight.

    Aspects read only the samples whose ``zs`` reach the rule's threshold.
    """
    admitted = [one for one, z in zip(samples, zs, strict=True) if z >= rule.threshold]
    total = _count(of_group, folders["ultrarm"], "sequence", list(map(holistic_text, samples)))
    tasks = aspect_tasks(folders)
    for name, weight in zip(ASPECTS, rule.weights, strict=True):
        if weight and admitted:
            task = tasks[name]
            texts = [task.text(as_read(name, sample)) for sample in admitted]
            total += _count(of_apart, task.folder, task.kind, texts)
    return total


def _count(
    count: Callable[[hf.PretrainedConfig, Batch], float],
    folder: Path,
    kind: str,
    texts: Sequence[str],
) -> float:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    return count(hf.AutoConfig.from_pretrained(folder), encode(tokenizer, kind, texts))
