"""Trains the weights of `mini` and writes them, with their model card, into the package.

    .venv/bin/python models/training/train_mini.py --data FOLDER

FOLDER has `qa_feedback.json` and `qa_prompts.json` of allenai/FineGrainedRLHF,
`new_wiki_v1.0.json` of SQuADShifts (Miller et al. 2020) and `xquad.en.json` of XQuAD (Artetxe et
al. 2020). A fifth of the questions with human feedback is never trained on; the card's figures are
of those. The weights are the mean of five runs of fine-tuning (Wortsman et al. 2022). A run that
was stopped goes on from its last saved state; remove the files to start anew.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from time import process_time

import numpy as np
import torch
import transformers

from alarm_models.reward_models.base import RewardModel
from card import Run, write_card
from checkpoint import MiniModel, start, write
from data import is_held_out, load_questions, sorted_words
from features import ASPECTS, Example, examples, load_models
from finetuning import Settings, finetune
from learning import decorrelate_lengths, learn_aspects
from measures import holistic_scores, measure, rankings
from span_questions import load_span_questions

#: A longer run knows more faults, and agrees less with people's preferences; one with span
#: questions knows faults of short answers. All begin with the same weights; seeds choose questions
#: and faults.
RUNS = (
    Settings(steps=650, first_steps=450, span_questions=0),
    Settings(steps=2400, first_steps=1400, span_questions=0),
    Settings(steps=650, first_steps=450),
    Settings(steps=1400, first_steps=850),
    Settings(steps=650, first_steps=450, seed=1),
)


def main() -> None:
    """Train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(tempfile.gettempdir()) / "mini-training.pt",
        help="where the state of each run is saved, a number in its name [default %(default)s]",
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = Path(str(resources.files("alarm_models"))) / "recipes" / "mini"
    questions = load_questions(options.data)
    train = [one for one in questions if not is_held_out(one.text)]
    held_out = [one for one in questions if is_held_out(one.text)]
    known = {sorted_words(one.text) for one in questions}
    span_questions = [
        one for one in load_span_questions(options.data) if sorted_words(one.text) not in known
    ]

    states: list[Mapping[str, torch.Tensor]] = []
    seconds = 0.0
    for number, settings in enumerate(RUNS):
        torch.manual_seed(0)
        model = start(folder)
        saved = options.state.with_stem(f"{options.state.stem}-{number}")
        before, of_run = finetune(model, load_models(), train, span_questions, settings, saved)
        seconds += of_run
        states.append(model.state_dict())
    started = process_time() - seconds
    model.load_state_dict(
        {name: torch.stack([one[name] for one in states]).mean(0) for name in states[0]}
    )
    decorrelate_lengths(model, load_models()["preference"], train)
    write(model, folder)
    prepared = examples(train, load_models())
    fits = {"preference, before": before, **learn_aspects(model, prepared)}
    write(model, folder)
    calibrate(model, prepared, load_models())
    write(model, folder)
    minutes = (process_time() - started) / 60

    models = load_models()
    print("the weights are written; they are measured now", flush=True)
    scores = holistic_scores(models["preference"], train)
    write_card(
        folder / "README.md",
        Run(
            model.encoder.config.num_hidden_layers,
            RUNS,
            minutes,
            len(train),
            len(span_questions),
            len(held_out),
        ),
        measure(models, held_out),
        rankings(models["preference"], held_out),
        {"mean": scores.mean(), "std": scores.std()},
        fits,
    )
    print((folder / "README.md").read_text())


def calibrate(model: MiniModel, data: list[Example], models: dict[str, RewardModel]) -> None:
    """Shift each aspect's bias so that it marks as many training segments wrong as people did."""
    for aspect, name in ASPECTS.items():
        margins: list[float] = []
        labels: list[int] = []
        for example in data:
            if aspect in example.aspects:
                features, marks = example.aspects[aspect]
                (rows,) = models[name].forward([features])
                margins += (rows[:, 1] - rows[:, 0]).tolist()
                labels += marks
        border = float(np.quantile(margins, 1 - np.mean(labels)))
        with torch.no_grad():
            model.heads[f"{aspect}_head"].bias[1] -= border


if __name__ == "__main__":
    main()
