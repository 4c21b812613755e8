"""A conversation with a tool: what a policy writes in Qwen3's form, and its prompt."""

import json

QUESTION = "Who wrote Emma?"
CHAT = [{"role": "user", "content": QUESTION}]
RESULT = "Jane Austen"
CALL = {"name": "find_author", "arguments": {"title": "Emma"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_author",
        "description": "Finds the author of a novel.",
        "parameters": {
            "type": "object",
            "properties": {"title": {"type": "string", "description": "its title"}},
            "required": ["title"],
        },
    },
}
THOUGHTS = ["I look it up.", "It was she."]
ANSWER = "Jane Austen wrote Emma."
# What the policy samples, turn by turn, without the token that ends a turn.
TURNS = [
    f"<think>\n{THOUGHTS[0]}\n</think>\n\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
    f"<think>\n{THOUGHTS[1]}\n</think>\n\n{ANSWER}",
]
AT_ONCE = "Charles Dickens composed it."


def find_author(title: str) -> str:
    """
    Finds the author of a novel.

    Args:
        title: its title
    """
    return RESULT
