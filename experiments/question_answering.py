"""Can a small policy, trained from scratch on the data at hand, answer questions?

Trains a Llama of the translation study's size on four fifths of the questions of
`qa_feedback.json`: on the text of their passages, and on five answers each after the beginning of
the first passage and the question. It then answers the other questions. An answer is about its
question if it is closer to the question's reference than to those of other questions. The baseline
only copies the beginning of the passage. Prints a table and examples.

    .venv/bin/python question_answering.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from translation_study import policy
from translation_study.metrics import corpus_scores, repetition
from translation_study.settings import FULL

_HELD_OUT_EVERY = 5
#: Words of the first passage that the policy reads, and words of an answer that it learns.
_READ, _WRITTEN = 90, 60
#: Two and a half tokens a word.
_NEW_TOKENS = 150


def main() -> None:
    """Train, answer, and print how close the answers are to references."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of qa_feedback.json")
    parser.add_argument("--steps", type=int, default=800, help="of 16 texts each (default: 800)")
    asked = parser.parse_args()
    rows = json.loads((asked.data / "qa_feedback.json").read_text("utf-8"))
    training = [row for at, row in enumerate(rows) if at % _HELD_OUT_EVERY]
    held_out = rows[::_HELD_OUT_EVERY]
    answered = [(_prompt(row), answer) for row in training for answer in _answers(row)]
    read = [("", text) for row in training for text in _texts(row)]
    sizes = replace(FULL, supervised_steps=asked.steps, supervised_batch=16)
    texts = [text for pair in (*answered, *read) for text in pair]
    tokenizer = policy.train_tokenizer(texts, sizes.vocabulary)
    print(f"{len(training)} questions: {len(answered)} answers, {len(read)} texts of passages")
    model, _ = policy.supervise([*answered, *read], tokenizer, sizes)
    model.config.max_position_embeddings = 512  # rotary: no table ends at 256
    for name, some in (("learned from", training[: len(held_out)]), ("kept back", held_out)):
        print(f"references of questions {name}: {_loss(model, tokenizer, some):.2f} nats a token")
    greedy = _written(model, tokenizer, held_out)
    columns = {
        "greedy": greedy,
        "sampled": _written(model, tokenizer, held_out, seed=0),
        "another system": [_answers(row)[1] for row in held_out],
        "the passage's beginning": [_cut(_passage(row), _WRITTEN) for row in held_out],
    }
    print("answers | chrF, own reference | chrF, another's reference | repetition")
    for name, found in columns.items():
        own, other = _closeness(found, held_out)
        repeated = sum(map(repetition, found)) / len(found)
        print(f"{name} | {own:.1f} | {other:.1f} | {repeated:.2f}")
    for row, text in list(zip(held_out, greedy, strict=True))[:4]:
        print(f"\n{row['question']}\n  reference: {row['gold']}\n  greedy: {text}")


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _passage(row: dict[str, Any]) -> str:
    """Return the first passage without its title, which the first sentence repeats."""
    return next((" ".join(passage[1:]) for passage in row["passages"]), "")


def _prompt(row: dict[str, Any]) -> str:
    return f"{_cut(_passage(row), _READ)}\n{row['question']}\n"


def _answers(row: dict[str, Any]) -> list[str]:
    """Return the reference and four systems' answers."""
    texts = [row["gold"], *(row[f"prediction {number}"] for number in range(1, 5))]
    return [_cut(text, _WRITTEN) for text in texts]


def _texts(row: dict[str, Any]) -> list[str]:
    """Return the passages, cut into pieces as long as what the policy reads."""
    words = [word for passage in row["passages"] for word in " ".join(passage[1:]).split()]
    return [" ".join(words[at : at + _READ]) for at in range(0, len(words), _READ)]


@torch.no_grad()
def _loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]]
) -> float:
    """Return the mean loss of the references' tokens, in nats."""
    total, number = 0.0, 0
    for row in rows:
        start = tokenizer(_prompt(row))["input_ids"]
        ids = tokenizer(_prompt(row) + _answers(row)[0], return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[0, len(start) - 1 : -1]  # [reference, vocabulary]
        wanted = ids[0, len(start) :]
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        number += len(wanted)
    return total / number


def _written(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    seed: int | None = None,
) -> list[str]:
    prompts = [_prompt(row) for row in rows]
    found = policy.translate(model, tokenizer, prompts, new_tokens=_NEW_TOKENS, seed=seed)
    return [one.text for one in found]


def _closeness(texts: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the corpus chrF with the own references, and with those of the next question."""
    own = [(_answers(row)[0],) for row in rows]
    scores = [corpus_scores(texts, references) for references in (own, [*own[1:], own[0]])]
    return scores[0]["chrF"], scores[1]["chrF"]


if __name__ == "__main__":
    main()
