"""Scores sentences with a Longformer aspect, at the lengths of questions with passages.

Compares the service (packed, exact sliding window) with transformers' own Longformer, padded in
batches of 8 and one by one. `products` measures the lower bound of all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import qa
from checkpoints import Shape, longformer
from operations import of_apart
from products import products
from rivals import RIVALS, add_options, compare, transformers
from timing import rounds_of
from work import LABELS, Task

_RIVALS = RIVALS | {"products": products(of_apart)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prompts",
        type=Path,
        default=qa.GOLDEN / "qa_items.jsonl",
        help="qa_items.jsonl, or qa_prompts.json",
    )
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8, help="samples per padded batch")
    add_options(parser, ["in-process", "http", "transformers", "products"], rounds=2, known=_RIVALS)
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure; every round draws new samples."""
    pairs = qa.read(options.prompts)
    work = {
        number: qa.singles(pairs, options.samples, seed=number + 1) for number in rounds_of(options)
    }
    padded = {f"padded, by {options.batch}": (options.batch, False)}
    rivals = _RIVALS | {"transformers": transformers(padded)}
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            Path(folder), "segments", "{prompt} answer:", "</s>", options.dtype, options.device
        )
        shape = Shape(options.layers, options.hidden)
        longformer(task.folder, shape, qa.GOLDEN / "fact_rm", LABELS)
        title = f"{options.samples} questions, Longformer {options.layers} x {options.hidden}"
        compare(task, [rivals[one] for one in options.rivals], {title: work})


if __name__ == "__main__":
    main()
