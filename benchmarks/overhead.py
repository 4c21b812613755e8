"""Measures the cost of HTTP, in one request or one per sample, against the engine alone.

The engine runs in its own process without HTTP, on the same batches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from checkpoints import Shape, bert
from made_samples import ragged
from rivals import RIVALS, add_options, compare
from timing import rounds_of
from work import Task


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--median", type=int, default=82, help="median tokens of a completion")
    parser.add_argument("--layers", type=int, default=6, help="12 for 150M parameters")
    parser.add_argument("--hidden", type=int, default=384, help="1024 for 150M parameters")
    add_options(parser, ["in-process", "http"], rounds=3)
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure; every round uses new samples."""
    work = {
        number: ragged(options.samples, options.median, seed=number)
        for number in rounds_of(options)
    }
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder), "sequence", dtype=options.dtype, device=options.device)
        bert(task.folder, Shape(options.layers, options.hidden))
        title = f"{options.samples} samples, BERT {options.layers} x {options.hidden}"
        compare(task, [RIVALS[one] for one in options.rivals], {title: work})


if __name__ == "__main__":
    main()
