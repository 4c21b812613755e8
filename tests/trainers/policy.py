"""A policy's tokenizer, and its prompts and answers."""

from typing import Any

from tiny import tokenizer

QUESTION = "question: Who wrote Emma? context: Emma is a novel by Jane Austen, of 1815."
ANSWERS = [
    "Jane Austen wrote it.",
    "Charles Dickens wrote it in Rome.",
    "",
    "Emma is a novel by Jane Austen, it says; 3 < 4 and café.",
]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def policy_tokenizer() -> Any:
    """Create a ChatML tokenizer that decodes texts unchanged."""
    made = tokenizer(bos=False, eos=False)
    made.chat_template = _TEMPLATE
    return made
