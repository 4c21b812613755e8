"""How policies write conversations: what stands before a turn, and what ends one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["ENDS", "PLAIN", "TEMPLATES", "ChatTemplate", "detect", "marked"]

#: Tokens that stand before the first turn or after the last, whoever the policy is.
_AROUND = (
    "<s>", "</s>", "<pad>", "[PAD]", "<unk>", "<bos>", "<eos>", "<|endoftext|>", "<|pad|>",
    "<|startoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>",
    "<BOS_TOKEN>", "<EOS_TOKEN>", "<PAD>", "[gMASK]", "<sop>", "<|vision_pad|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A way to write a conversation as one text.

    ``header`` matches what stands before a turn; its group ``role`` says who speaks, in the words
    of ``roles``. ``ends`` are the tokens that end a turn. ``strips``: white space around a turn is
    the template's. ``begins_with_system``: text before the first header is the system's turn.
    ``is_special``: headers are special tokens, which a user's text cannot hold.
    """

    name: str
    header: re.Pattern[str]
    ends: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    strips: bool = False
    begins_with_system: bool = False
    is_special: bool = True

    def role(self, match: re.Match[str]) -> str:
        """Return the role that a header names."""
        named = match["role"].strip()
        return self.roles.get(named, named)


#: No template: a text is what it is.
PLAIN = ChatTemplate("plain", re.compile(r"(?P<role>(?!))"))

_CHATML = ChatTemplate(
    "chatml",
    re.compile(r"<\|im_start\|>(?P<role>[^<\n]*)(?:\n|<\|im_sep\|>)"),
    ("<|im_end|>", "<|endoftext|>"),
)
_LLAMA_2 = ChatTemplate(
    "llama-2",
    re.compile(r"(?P<role>\[SYSTEM_PROMPT\]|\[/?INST\])"),
    ("[/SYSTEM_PROMPT]", "</s>", "<s>"),
    {"[SYSTEM_PROMPT]": "system", "[INST]": "user", "[/INST]": "assistant"},
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
    re.compile(r"(?P<role><｜(?:User|Assistant)｜>)"),
    ("<｜end▁of▁sentence｜>",),
    {"<｜User｜>": "user", "<｜Assistant｜>": "assistant"},
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
_KNOWN = (
    _CHATML, _LLAMA_2, _LLAMA_3, _LLAMA_4, _GEMMA, _DEEPSEEK, _PHI_3, _COMMAND_R
)  # fmt: skip

#: By the names that a caller may say.
TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template for template in (*_KNOWN, PLAIN)
} | {
    "qwen": _CHATML,
    "phi-4": _CHATML,
    "mistral": _LLAMA_2,
    "zephyr": _PHI_3,
    "tulu": _PHI_3,
    "glm-4": _PHI_3,
}

#: Everything that may end a text, or pad it on either side.
ENDS = tuple(dict.fromkeys((*(end for template in _KNOWN for end in template.ends), *_AROUND)))
_OPENING = re.compile(rf"(?:\s|{'|'.join(map(re.escape, ENDS))})*+")


def marked(
    *, user: str | None, assistant: str, system: str | None, ends: Sequence[str]
) -> ChatTemplate:
    """Make a template of texts that stand before turns, such as ``Human:``."""
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
    """Return the template that a text begins in, or None.

    What begins a text decides, since a user may write of any template.
    """
    start = begin_of(text)
    for template in _KNOWN:
        if template.header.match(text, start):
            return template
    is_deepseek = "<｜begin▁of▁sentence｜>" in text[:start]
    return _DEEPSEEK if is_deepseek and _DEEPSEEK.header.search(text) else None


def begin_of(text: str) -> int:
    """Return where a text begins, behind the tokens that open or pad it."""
    match = _OPENING.match(text)
    return match.end() if match else 0
