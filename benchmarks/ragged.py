"""Scores answers of varied lengths without shared prompts with a random BERT.

Compares the service (packed) with transformers one by one, padded as sent and in sorted batches,
in-process and over HTTP. `products` measures the lower bound of all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from checkpoints import Shape, bert
from made_samples import ragged
from operations import of_apart
from products import products
from rivals import RIVALS, add_options, compare, transformers
from timing import rounds_of
from work import Task

_RIVALS = RIVALS | {"products": products(of_apart)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--median", type=int, default=82, help="median tokens of a completion")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32, help="samples per padded batch")
    add_options(parser, ["http", "in-process", "transformers", "products"], rounds=3, known=_RIVALS)
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure; every round uses new samples."""
    padded = {
        f"as sent, by {options.batch}": (options.batch, False),
        f"sorted, by {options.batch}": (options.batch, True),
    }
    rivals = _RIVALS | {"transformers": transformers(padded)}
    work = {
        number: ragged(options.samples, options.median, seed=number)
        for number in rounds_of(options)
    }
    with tempfile.TemporaryDirectory() as folder:
        # Rerankers call the prompt a query; it is a separate text.
        template = "{prompt} [SEP] {completion}"
        task = Task(Path(folder), "sequence", template, dtype=options.dtype, device=options.device)
        bert(task.folder, Shape(options.layers, options.hidden))
        chosen = [rivals[one] for one in options.rivals]
        compare(task, chosen, {f"{options.samples} ragged samples": work})


if __name__ == "__main__":
    main()
