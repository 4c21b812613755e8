"""Scores groups of G completions of one prompt with a random Llama.

Compares the service (packed, the prompt computed once) with transformers one by one and padded, and
over HTTP with a server that pads its batches. `products` measures the lower bound of all of them.
`--head segments` does the same for token heads.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from checkpoints import Shape, llama
from made_samples import group
from operations import of_group
from products import products
from rivals import RIVALS, add_options, compare
from timing import rounds_of
from work import Task

_RIVALS = RIVALS | {"products": products(of_group)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16], help="group sizes G")
    parser.add_argument("--prompt", type=int, default=900, help="tokens of the shared prompt")
    parser.add_argument("--completion", type=int, default=100, help="mean tokens of a completion")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--head", default="sequence", choices=["sequence", "segments"])
    rivals = ["http", "in-process", "transformers", "padding-server", "products"]
    add_options(parser, rivals, rounds=3, known=_RIVALS)
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure each group size; every round uses a new group."""
    works = {
        f"group of {size}, {options.head}": {
            number: group(size, options.prompt, options.completion, seed=1000 * size + number)
            for number in rounds_of(options)
        }
        for size in options.groups
    }
    token_head = options.head == "segments"
    template = "{prompt}" if token_head else "{prompt} {completion}"
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            Path(folder), options.head, template, dtype=options.dtype, device=options.device
        )
        llama(task.folder, Shape(options.layers, options.hidden), token_head=token_head)
        compare(task, [_RIVALS[one] for one in options.rivals], works)


if __name__ == "__main__":
    main()
