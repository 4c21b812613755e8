"""The known chat templates: turn headers and end-of-turn tokens, and detection of a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "ENDS",
    "MAX_ENDS",
    "MAX_MARKER",
    "PADS",
    "PLAIN",
    "TEMPLATES",
    "THOUGHTS",
    "ChatTemplate",
    "begin_of",
    "detect",
    "detect_answer",
    "marked",
    "unknown_markup",
]

#: How many end-of-turn texts a caller may give, and how long each may be: each turn is compared
#: with each of them.
MAX_ENDS = 16
MAX_MARKER = 100

#: The role of a turn that is the assistant's thoughts, where a template sets those apart.
THOUGHTS = "thoughts"

#: Padding tokens, on either side of a text.
PADS = (
    "<pad>", "[PAD]", "<unk>", "<|pad|>", "<|finetune_right_pad_id|>", "<|finetune_right_pad|>",
    "<｜▁pad▁｜>", "<PAD>", "<|vision_pad|>", "<|PAD_TOKEN|>", "<|reserved_special_token_0|>",
)  # fmt: skip

#: Tokens before the first turn or after the last, of any policy.
_AROUND = (
    "<s>", "</s>", "<bos>", "<eos>", "<|endoftext|>", "<|startoftext|>", "<|begin_of_text|>",
    "<|end_of_text|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<BOS_TOKEN>",
    "<EOS_TOKEN>", "[gMASK]", "<sop>", "<｜hy_begin▁of▁sentence｜>", "<｜hy_end▁of▁sentence｜>",
    "]~!b[", "[BOS]", "<|eos|>", "<|endofprompt|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A way to write a conversation as one text.

    ``header`` matches the text before a turn; its group ``role`` names the speaker, which ``roles``
    translates. ``ends`` are the tokens that end a turn. ``strips``: white space around a turn is
    the template's. ``begins_with_system``: text before the first header is the system's turn.
    ``is_special``: headers are special tokens, which a user's text cannot contain. Where results of
    tools stand within a turn of the assistant, the tokens around them are headers, too: of a tool's
    turn, and of the rest of the assistant's.
    """

    name: str
    header: re.Pattern[str]
    ends: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    strips: bool = False
    begins_with_system: bool = False
    is_special: bool = True

    def role(self, match: re.Match[str]) -> str:
        """Return the role that a header names; a header that names none is the assistant's."""
        groups = match.groupdict()
        if (groups.get("channel") or "").strip() == "analysis":
            return THOUGHTS
        named = (groups["role"] or "assistant").strip()
        # "assistant to=functions.search", "functions.search to=assistant"
        word = named.split(" ")[0] if " to=" in named else named
        return "tool" if word.startswith("functions.") else self.roles.get(word, word)


#: No template: a text is read as it is.
PLAIN = ChatTemplate("plain", re.compile(r"(?P<role>(?!))"))

_CHATML = ChatTemplate(
    "chatml",
    re.compile(r"<\|im_start\|>(?P<role>[^<\n]*)(?:\n|<\|im_sep\|>)"),
    ("<|im_end|>", "<|endoftext|>"),
)
_LLAMA_2 = ChatTemplate(
    "llama-2",
    re.compile(
        # Mistral's results of tools follow a turn; in texts of Llama 2 their tokens are plain text.
        r"(?:\[/TOOL_RESULTS\](?=\[TOOL_RESULTS\]))?"
        r"(?P<role>\[SYSTEM_PROMPT\]|\[/?INST\]|\[/TOOL_RESULTS\]"
        r"|(?:\A|(?<=</s>)|(?<=</s> )|(?<=\[/TOOL_RESULTS\]))\[TOOL_RESULTS\])"
        r"(?:(?<=\[TOOL_RESULTS\])[^\[\]\n]{0,64}\[TOOL_CONTENT\])?"
    ),
    ("[/SYSTEM_PROMPT]", "</s>", "<s>"),
    {
        "[SYSTEM_PROMPT]": "system",
        "[INST]": "user",
        "[/INST]": "assistant",
        "[TOOL_RESULTS]": "tool",
        "[/TOOL_RESULTS]": "assistant",
    },
    strips=True,
)
_LLAMA_3 = ChatTemplate(
    "llama-3",
    re.compile(r"<\|start_header_id\|>(?P<role>[^<\n]*)<\|end_header_id\|>(?:\n\n)?"),
    ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    {"ipython": "tool"},
)
_LLAMA_4 = ChatTemplate(
    "llama-4",
    re.compile(r"<\|header_start\|>(?P<role>[^<\n]*)<\|header_end\|>(?:\n\n)?"),
    ("<|eot|>", "<|eom|>", "<|end_of_text|>"),
    {"ipython": "tool"},
)
_GEMMA = ChatTemplate(
    "gemma",
    re.compile(r"<start_of_turn>(?P<role>\w+)\n?"),
    ("<end_of_turn>", "<eos>"),
    {"model": "assistant"},
)
_DEEPSEEK = ChatTemplate(
    "deepseek",
    re.compile(
        r"(?:<｜tool▁(?:outputs▁begin|output▁end)｜>\s*(?=<｜tool▁output▁begin｜>))?"
        r"(?P<role><｜(?:User|Assistant|tool▁output▁begin|tool▁output▁end)｜>)"
        r"(?:\s*<｜tool▁outputs▁end｜>)?"
    ),
    ("<｜end▁of▁sentence｜>",),
    {
        "<｜User｜>": "user",
        "<｜Assistant｜>": "assistant",
        "<｜tool▁output▁begin｜>": "tool",
        "<｜tool▁output▁end｜>": "assistant",
    },
    begins_with_system=True,
)
#: Phi-3 and Phi-4-mini, and alike: Zephyr, Tülu, GLM-4.
_PHI_3 = ChatTemplate(
    "phi-3",
    re.compile(r"<\|(?P<role>system|user|assistant|tool|observation)\|>"),
    ("<|end|>", "<|endoftext|>", "</s>"),
    {"observation": "tool"},
    strips=True,
)
_COMMAND_R = ChatTemplate(
    "command-r",
    re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>SYSTEM|USER|CHATBOT)_TOKEN\|>"),
    ("<|END_OF_TURN_TOKEN|>",),
    {"SYSTEM": "system", "USER": "user", "CHATBOT": "assistant"},
)
#: gpt-oss. Text in the channel `analysis` is thoughts. A text may end within a header.
_HARMONY = ChatTemplate(
    "harmony",
    re.compile(
        r"(?:<\|start\|>(?P<role>[^<\n]*))?(?:<\|channel\|>(?P<channel>[^<\n]*))?"
        r"(?:<\|constrain\|>[^<\n]*)?<\|message\|>"
        r"|(?:<\|start\|>assistant)?<\|channel\|>[^<\n]*\Z|<\|start\|>assistant"
    ),
    ("<|end|>", "<|return|>", "<|call|>"),
    {"developer": "system"},
)
_KIMI = ChatTemplate(
    "kimi",
    re.compile(
        r"<\|im_(?P<role>system\|>tool|system|user|assistant)(?:\|>)?[^<\n]*<\|im_middle\|>"
    ),
    ("<|im_end|>", "[EOS]", "<|endoftext|>"),
    {"system|>tool": "tool"},
)
_GRANITE = ChatTemplate(
    "granite",
    re.compile(r"<\|start_of_role\|>(?P<role>\w*)[^<\n]*<\|end_of_role\|>"),
    ("<|end_of_text|>",),
    {"assistant_tool_call": "assistant", "tool_response": "tool"},
    strips=True,
)
_EXAONE = ChatTemplate(
    "exaone",
    re.compile(r"\[\|(?P<role>system|user|assistant|tool)\|\]"),
    ("[|endofturn|]",),
    strips=True,
)
_GEMMA_4 = ChatTemplate(
    "gemma-4",
    re.compile(
        r"(?:<\|turn>|<tool_response\|>\s*(?=<\|tool_response>))?"
        r"(?P<role>(?<=<\|turn>)\w+|<\|tool_response>|<tool_response\|>)\n?"
    ),
    ("<turn|>", "<eos>"),
    {"model": "assistant", "<|tool_response>": "tool", "<tool_response|>": "assistant"},
)
_HUNYUAN = ChatTemplate(
    "hunyuan",
    re.compile(r"(?P<role><｜hy_(?:User|Assistant)｜>)"),
    (
        "<｜hy_place▁holder▁no▁2｜>",
        "<｜hy_place▁holder▁no▁3｜>",
        "<｜hy_place▁holder▁no▁8｜>",
        "<｜hy_end▁of▁sentence｜>",
    ),
    {"<｜hy_User｜>": "user", "<｜hy_Assistant｜>": "assistant"},
    begins_with_system=True,
)
_MINIMAX = ChatTemplate(
    "minimax",
    re.compile(r"\]~b\](?P<role>system|developer|user|ai|tool)[^\n\[\]]*\n"),
    ("[e~[",),
    {"ai": "assistant", "developer": "system"},
    strips=True,
)
_SEED = ChatTemplate(
    "seed",
    re.compile(r"<seed:bos>(?P<role>system|user|assistant|tool)\n"),
    ("<seed:eos>",),
    strips=True,
)
_LING = ChatTemplate(
    "ling",
    re.compile(r"<role>(?P<role>SYSTEM|HUMAN|ASSISTANT|OBSERVATION)</role>"),
    ("<|role_end|>", "<|endoftext|>"),
    {"SYSTEM": "system", "HUMAN": "user", "ASSISTANT": "assistant", "OBSERVATION": "tool"},
    strips=True,
)
_MEGREZ = ChatTemplate(
    "megrez",
    re.compile(r"<\|role_start\|>(?P<role>[^<\n]*)<\|role_end\|>"),
    ("<|turn_end|>", "<|eos|>"),
)
_APERTUS = ChatTemplate(
    "apertus",
    re.compile(r"<\|(?P<role>system|developer|user|assistant)_start\|>"),
    ("<|system_end|>", "<|developer_end|>", "<|user_end|>", "<|assistant_end|>"),
    {"developer": "system"},
)
_NEMOTRON = ChatTemplate(
    "nemotron",
    re.compile(r"<(?:extra_id_[01]|SPECIAL_1[01])>(?P<role>System|User|Assistant|Tool)\n"),
    ("<extra_id_1>", "<SPECIAL_12>", "<SPECIAL_11>"),
    {"System": "system", "User": "user", "Assistant": "assistant", "Tool": "tool"},
    strips=True,
)
_OPENCHAT = ChatTemplate(
    "openchat",
    re.compile(r"GPT4 Correct (?P<role>User|Assistant|System):"),
    ("<|end_of_turn|>",),
    {"User": "user", "Assistant": "assistant", "System": "system"},
    strips=True,
    is_special=False,
)
_KNOWN = (
    _CHATML, _LLAMA_2, _LLAMA_3, _LLAMA_4, _GEMMA, _DEEPSEEK, _PHI_3, _COMMAND_R, _HARMONY, _KIMI,
    _GRANITE, _EXAONE, _GEMMA_4, _HUNYUAN, _MINIMAX, _SEED, _LING, _MEGREZ, _APERTUS, _NEMOTRON,
    _OPENCHAT,
)  # fmt: skip

#: By the names that a caller may give.
TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template for template in (*_KNOWN, PLAIN)
} | {
    "qwen": _CHATML,
    "phi-4": _CHATML,
    "mistral": _LLAMA_2,
    "zephyr": _PHI_3,
    "tulu": _PHI_3,
    "glm-4": _PHI_3,
    "gpt-oss": _HARMONY,
}

#: Headers that a policy writes as the end of its turn.
_HEADERS_AT_END = ("<|user|>", "<|observation|>", "<|im_user|>", "[|user|]", "<｜User｜>")

#: Everything that may end a text, or pad it on either side.
ENDS = tuple(
    dict.fromkeys(
        (*(end for known in _KNOWN for end in known.ends), *_AROUND, *PADS, *_HEADERS_AT_END)
    )
)
_OPENING_TOKENS = tuple(token for token in ENDS if token not in _HEADERS_AT_END)
#: With spaces, since Python 3.10 has no possessive repetition: one step matches one token.
_OPENING = re.compile(rf"\s+|{'|'.join(map(re.escape, _OPENING_TOKENS))}")

#: Matches what looks like a special token of a chat template, but no HTML and no common code.
_SPECIAL = (
    r"(?:<\|[^<>|\s]{1,40}\|?>|<[^<>|\s/]{1,40}\|>|<｜[^<>｜\n]{1,60}｜>|\[\|[^\[\]|\s]{1,40}\|\]"
    r"|<(?:start|end|begin|beginning)_of_(?:turn|sentence|role|utterance|message)>|\[/?INST\]|<</?SYS>>|\]~!?b[\[\]]|\[e~\["
    r"|<extra_id_\d{1,3}>|<SPECIAL_\d{1,4}>|<reserved_\d{1,4}>|<seed:\w{1,20}>)"
)
#: Not special tokens for code and images, which belong to the prompt itself.
_NO_MARKUP = r"(?!<\|(?:fim|file|repo|vision|image|audio|video|object|box|quad)_)"
#: No space follows a special token that starts a text; "<|x|> is a token" is prose.
_SPECIAL_AT_START = re.compile(rf"{_NO_MARKUP}{_SPECIAL}(?![ \t])")
#: No space precedes a special token that ends a text, or the next speaker's name follows it.
_SPECIAL_AT_END = re.compile(
    rf"(?:(?<![ \t\"'`(])|(?=\[/INST\])){_NO_MARKUP}{_SPECIAL}"
    r"(?:\s{0,3}(?:[\w ]{0,20}\b)?(?:assistant|model|ai|bot|chatbot|gpt|agent):?)?"
    r"\s{0,8}(?:<think>\s{0,8}(?:</think>\s{0,8})?)?\Z",
    re.IGNORECASE,
)
_TAIL = 200


def marked(
    *, user: str | None, assistant: str, system: str | None, ends: Sequence[str]
) -> ChatTemplate:
    """Build a template from the texts before turns, such as ``Human:``."""
    roles = {
        marker: role
        for role, marker in (("user", user), ("assistant", assistant), ("system", system))
        if marker
    }
    longest_first = sorted(roles, key=len, reverse=True)
    return ChatTemplate(
        "yours",
        re.compile(f"(?P<role>{'|'.join(map(re.escape, longest_first))})"),
        tuple(filter(None, ends)),  # every text ends with an empty one
        {marker.strip(): role for marker, role in roles.items()},
        strips=True,
        begins_with_system=True,
        is_special=False,
    )


def detect(text: str) -> ChatTemplate | None:
    """Detect the template of a text, or return None.

    Only the start of the text decides, since a user may write about any template.
    """
    start = begin_of(text)
    for template in _KNOWN:
        if template.header.match(text, start):
            return template
    for first, template in (
        ("<｜begin▁of▁sentence｜>", _DEEPSEEK),
        ("<｜hy_begin▁of▁sentence｜>", _HUNYUAN),
    ):
        if first in text[:start] and template.header.search(text):
            return template
    return None


def detect_answer(text: str) -> ChatTemplate | None:
    """Detect the template of an answer without its prompt, or return None."""
    return _HARMONY if text.startswith(("<|channel|>", "<|start|>assistant<|")) else None


def unknown_markup(text: str) -> str | None:
    """Return the special token at the start or the end of a text in an unknown template.

    None for plain text, even if it mentions special tokens.
    """
    found = _SPECIAL_AT_START.match(text, begin_of(text))
    if found is None:
        found = _SPECIAL_AT_END.search(text[-_TAIL:])
    if found is None or found.group().strip() in (*_AROUND, *PADS):
        return None
    return found.group().strip()


def begin_of(text: str) -> int:
    """Return the index of a text's first character after opening and padding tokens."""
    at = 0
    while match := _OPENING.match(text, at):
        at = match.end()
    return at
