"""A small causal model that answers whether a text names a color or an animal."""

import json
from pathlib import Path
from random import Random

import torch
import transformers as hf
from tiny import CHAT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers

COLORS = ("red", "green", "blue")
ANIMALS = ("cat", "dog", "horse", "mouse", "bird", "fish")
FILLERS = (
    "the", "of", "and", "in", "over", "under", "with", "house", "tree", "river", "road", "old",
    "new", "small", "big", "sees", "finds", "likes", "takes", "stone", "rain", "night", "day",
)  # fmt: skip
WORDS = (*COLORS, *ANIMALS, *FILLERS)

#: The criteria of the recipe, each with the words that meet it.
CRITERIA = {
    "color": ("The answer names a color", COLORS, "essential"),
    "animal": ("The answer names an animal", ANIMALS, "pitfall"),
}

_QUESTION = "{mark} {completion} {mark} {criteria}"
_SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
_OTHER = ["user", "assistant", "Yes", "No", "The", "answer", "names", "a", "an", "color", "animal"]
_MAX_WORDS = 8


def expected_score(text: str) -> float:
    """Return the score of a text by its words: 1 for a color, 0.9 less for an animal."""
    words = set(text.split())
    score = bool(words & {*COLORS}) - 0.9 * bool(words & {*ANIMALS})
    return min(max(score, 0.0), 1.0)


def train_judge(folder: Path) -> float:
    """Train a judge, save it, and return the share of new questions that it answers rightly."""
    torch.manual_seed(0)
    random, tokens = Random(0), _tokenizer()
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(500):
        logits, is_met = _asked(model, tokens, random, 64)
        loss = torch.nn.functional.cross_entropy(logits, is_met)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        logits, is_met = zip(*(_asked(model, tokens, random, 64) for _ in range(8)), strict=True)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return float((torch.cat(logits).argmax(-1) == torch.cat(is_met)).float().mean())


def recipe_of_judge(folder: Path) -> str:
    """Return the TOML of a recipe whose rubric a checkpoint judges."""
    criteria = "\n".join(
        f"criteria.{name} = {{ text = {json.dumps(text)}, importance = {json.dumps(importance)} }}"
        for name, (text, _, importance) in CRITERIA.items()
    )
    return f"""
[models.checklist]
kind = "rubric"
checkpoint = "{folder}"
question = "{_QUESTION}"
{criteria}
[holistic]
model = "checklist"
[hierarchy]
rule = "holistic_only"
"""


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    vocabulary = {word: at for at, word in enumerate([*_SPECIAL, *_OTHER, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def _asked(
    model: hf.LlamaForCausalLM, tokens: hf.PreTrainedTokenizerFast, random: Random, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask about texts of one length; return logits of No and Yes, and the right answers."""
    num_words = random.randrange(_MAX_WORDS + 1)
    prompts, is_met = [], []
    for _ in range(number):
        criterion, wanted, _ = random.choice([*CRITERIA.values()])
        pool = WORDS if random.random() < 0.5 else [one for one in WORDS if one not in wanted]
        text = " ".join(random.choices(pool, k=num_words))
        mark = f"{random.getrandbits(64):016x}"
        question = _QUESTION.format(mark=mark, completion=text, criteria=criterion)
        prompts.append(tokens.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        ))  # fmt: skip
        is_met.append(int(bool({*text.split()} & {*wanted})))
    ids = tokens(prompts, return_tensors="pt", add_special_tokens=False).input_ids
    no_and_yes = tokens.convert_tokens_to_ids(["No", "Yes"])
    return model(ids).logits[:, -1, no_and_yes], torch.tensor(is_met)
