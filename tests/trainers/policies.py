"""Trains a policy's tokenizer with a chat template, for scripts in trainers' venvs."""

from pathlib import Path

from texts_of_policies import ANSWERS, PROMPT
from texts_of_tools import QUESTION, TURNS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


QWEN3 = Path(__file__).parents[1] / "chat_templates" / "qwen3.jinja"
# Qwen3 has a token for each of them, which decoding without special tokens keeps.
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def tool_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the tags and the chat template of Qwen3, or another template."""
    made = tokenizer()
    made.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    made.chat_template = QWEN3.read_text() if template is None else template
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose end-of-text token is the end of a turn."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([PROMPT, *ANSWERS, QUESTION, *TURNS] * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>"
    )
    made.chat_template = TEMPLATE
    return made
