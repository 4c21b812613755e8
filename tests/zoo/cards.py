"""Scoring as on models' cards, in plain transformers, without this project's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf

Turns = list[dict[str, str]]
#: A sample as it is sent.
Sent = Mapping[str, Any]
#: A card's score of a sample.
Card = Callable[[Sent], float]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


PLAIN: Mapping[str, Sent] = {
    "single": {"prompt": "When does water boil?", "completion": "At 100 degrees, at sea level."},
    "other": {"prompt": "When does water boil?", "completion": "No idea."},
    "unicode": {"prompt": "Où est le naïf 日本語 🪁?", "completion": "Là-bas — é 🪁🪁 straße."},
    "spaces": {"prompt": " \tpadded prompt \n", "completion": "\n padded answer \n\n "},
    "special": {
        "prompt": "what do </s> <|im_end|> <|eot_id|> and [SEP] mean",
        "completion": "a </s>, an <|im_end|>, an <|eot_id|> and a [SEP]",
    },
    "thinking": {"prompt": "6 times 7?", "completion": "<think>\n6 * 7 = 42\n</think>\n\n42."},
    "long": {"prompt": "A red kite rises. " * 16, "completion": "Two fishermen mend. " * 8},
}
CHATS: Mapping[str, Sent] = {
    "turns": {
        "prompt": [user("Hello"), assistant("Good day."), user("What rises?")],
        "completion": "A red kite.",
    },
    "system": {"prompt": [system("Be brief."), user("6 times 7?")], "completion": "42"},
}
ALL: Mapping[str, Sent] = {**PLAIN, **CHATS}


def turns(sent: Sent) -> Turns:
    prompt = sent["prompt"]
    before = [user(prompt)] if isinstance(prompt, str) else list(prompt)
    return [*before, assistant(sent["completion"])]


def chat_ids(folder: Path, sent: Sent, *, special: bool = False, end: str = "") -> list[int]:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(turns(sent), tokenize=False) + end
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def text_ids(folder: Path, text: str) -> list[int]:
    ids: list[int] = hf.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return ids


@torch.no_grad()
def at_last(base: Any, head: torch.nn.Module, ids: list[int]) -> float:
    """Apply a head to the last token's state."""
    states = base(input_ids=torch.tensor([ids])).last_hidden_state
    return float(head(states[0, -1]).item())


def chat_classifier(folder: Path) -> Card:
    """Most cards: the chat template's text, tokenized as it is, and the one logit."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def card(sent: Sent) -> float:
        return float(model.eval()(torch.tensor([chat_ids(folder, sent)])).logits[0, 0].item())

    return card


def text_pipeline(folder: Path) -> Card:
    """FsfairX's and RM-Mistral's cards: a pipeline over the chat's text without its BOS."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def card(sent: Sent) -> float:
        text = tokenizer.apply_chat_template(turns(sent), tokenize=False)
        inputs = tokenizer(text.removeprefix(tokenizer.bos_token), return_tensors="pt")
        return float(model.eval()(**inputs).logits[0, 0].item())

    return card


def pair_classifier(folder: Path) -> Card:
    """OpenAssistant's cards: tokenizer(prompt, completion)."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def card(sent: Sent) -> float:
        inputs = tokenizer(sent["prompt"], sent["completion"], return_tensors="pt")
        return float(model.eval()(**inputs).logits[0, 0].item())

    return card
