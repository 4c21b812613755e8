"""Runs the study or what is left of it, and writes its results."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from transformers.utils import logging

from translation_study.publishing import collect
from translation_study.reinforcement_stages import reinforce
from translation_study.report import write_report
from translation_study.settings import FULL, QUICK
from translation_study.stages import Run
from translation_study.training_stages import prepare

#: The folder `experiments/`.
HERE = Path(__file__).resolve().parents[1]
STORED = HERE / "results"


def main() -> None:
    """Run the command that is given."""
    parser = argparse.ArgumentParser(prog="python -m translation_study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="do the stages that are not done, then write results")
    run.add_argument("--data", type=Path, required=True, help="tatoeba_es_en.zip")
    run.set_defaults(do=_run)
    publish = commands.add_parser("publish", help="store a run's results in this folder")
    publish.set_defaults(do=_publish)
    for command in (run, publish):
        command.add_argument("--out", type=Path, help="folder of the run")
        command.add_argument("--quick", action="store_true", help="small sizes and one seed")
    report = commands.add_parser("report", help="write RESULTS.md from what is stored")
    report.set_defaults(do=lambda _: write_report(STORED, HERE / "RESULTS.md"))
    given = parser.parse_args()
    given.do(given)


def _run(given: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the server ends too
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run = _opened(given)
    prepare(run, given.data)
    reinforce(run)
    collect(run, run.folder / "results")
    write_report(run.folder / "results", run.folder / "RESULTS.md")
    print(run.folder / "RESULTS.md")


def _publish(given: argparse.Namespace) -> None:
    """Store what is done so far, also of a run that is not finished."""
    run = _opened(given)
    collect(run, STORED)
    write_report(STORED, HERE / "RESULTS.md")


def _opened(given: argparse.Namespace) -> Run:
    out = given.out or HERE / "run" / ("quick" if given.quick else "full")
    return Run(out, QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
