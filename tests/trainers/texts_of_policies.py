"""Prompts and completions of the policies in these scripts."""

PROMPT = (
    "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel written by "
    "English author Jane Austen. It was first published in December 1815."
)
ANSWERS = [
    "Emma is a novel written by English author Jane Austen. It is of December 1815.",
    "Charles Dickens composed it.",
]
