"""Kind `generative` against transformers' own logits of the next token."""

from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tiny import DECODERS, Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.recipe.specs import GenerativeSpec
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("A long question " * 12, "with a long answer " * 9),
]
TEMPLATE = "Q: {prompt} A: {completion} Right?"


def spec(checkpoint: Checkpoint, **more: object) -> GenerativeSpec:
    base = {"checkpoint": str(checkpoint.folder), "template": TEMPLATE, "positive": " question"}
    return GenerativeSpec.model_validate(base | more)


@torch.inference_mode()
def next_logits(checkpoint: Checkpoint, text: str, *, special: bool = True) -> torch.Tensor:
    inputs = checkpoint.tokenizer(text, return_tensors="pt", add_special_tokens=special)
    logits: torch.Tensor = checkpoint.model(**inputs).logits[0, -1]
    return logits


def text(sample: Sample) -> str:
    return TEMPLATE.format(prompt=sample.prompt, completion=sample.completion)


@pytest.fixture(scope="module")
def llama_lm(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.causal("llama", tmp_path_factory.mktemp("causal"))


@pytest.mark.parametrize("architecture", [*DECODERS, "gpt2"])
def test_generative_score_is_the_next_tokens_logit_or_logprob(
    architecture: str, tmp_path: Path
) -> None:
    checkpoint = tiny.causal(architecture, tmp_path)
    token = checkpoint.tokenizer.convert_tokens_to_ids("Ġquestion")
    by_logit = score(load(spec(checkpoint)), SAMPLES)
    by_chance = score(load(spec(checkpoint, positive=token, measure="logprob")), SAMPLES)
    for sample, logit, chance in zip(SAMPLES, by_logit, by_chance, strict=True):
        logits = next_logits(checkpoint, text(sample))
        assert logit.value == computed(logits[token].item())
        assert chance.value == computed(logits.log_softmax(-1)[token].item())


def test_generative_with_negative_gives_a_margin_or_a_probability(llama_lm: Checkpoint) -> None:
    both = {"positive": " question", "negative": " answer"}
    margins = score(load(spec(llama_lm, **both)), SAMPLES)
    chances = score(load(spec(llama_lm, **both, activation="sigmoid")), SAMPLES)
    yes, no = llama_lm.tokenizer.convert_tokens_to_ids(["Ġquestion", "Ġanswer"])
    for sample, margin, chance in zip(SAMPLES, margins, chances, strict=True):
        logits = next_logits(llama_lm, text(sample))[[yes, no]]
        assert margin.value == computed((logits[0] - logits[1]).item())
        assert chance.value == computed(logits.softmax(-1)[0].item())


def test_generative_with_generation_prompt_is_nemotrons_reward(llama_lm: Checkpoint) -> None:
    turns = [
        {"role": "user", "content": SAMPLES[0].prompt},
        {"role": "assistant", "content": SAMPLES[0].completion},
    ]
    for begins in (False, True):
        model = load(spec(llama_lm, template="chat", positive=0, generation_prompt=begins))
        (one,) = score(model, SAMPLES[:1])
        rendered = llama_lm.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=begins
        )
        wanted = next_logits(llama_lm, rendered, special=False)[0]
        assert one.value == computed(wanted.item())


def test_generative_ask_is_rendered_as_a_user_message(llama_lm: Checkpoint) -> None:
    ask = "Does {completion} answer {prompt}?"
    (one,) = score(load(spec(llama_lm, template="chat", ask=ask)), SAMPLES[:1])
    turn = ask.format(prompt=SAMPLES[0].prompt, completion=SAMPLES[0].completion)
    rendered = f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
    token = llama_lm.tokenizer.convert_tokens_to_ids("Ġquestion")
    wanted = next_logits(llama_lm, rendered, special=False)[token]
    assert one.value == computed(wanted.item())


def test_generative_ask_over_long_prompt_truncates_the_prompts_start(llama_lm: Checkpoint) -> None:
    ask = "{prompt}\nIs it {completion}?"
    model = load(spec(llama_lm, template="chat", ask=ask, max_tokens=64))
    (one,) = score(model, [Sample("word " * 300, "so")])
    assert one.truncated
    assert one.num_tokens == 64


def test_generative_group_computes_its_prompt_once(llama_lm: Checkpoint) -> None:
    model = load(spec(llama_lm))
    features = model.prepare([Sample("A long question " * 9, end) for end in ("yes", "no")])
    first, second = model.forward(features).num_computed  # type: ignore[arg-type]
    assert second < first / 4


def test_generative_with_text_of_several_tokens_is_refused(llama_lm: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="'certainly' is not a single token"):
        load(spec(llama_lm, positive="certainly"))
    with pytest.raises(CheckpointError, match="outside the vocabulary of 500"):
        load(spec(llama_lm, negative=500))
    with pytest.raises(ValueError, match="remove `template`"):
        spec(llama_lm, ask="{completion}?")
