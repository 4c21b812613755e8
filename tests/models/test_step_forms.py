"""Kind `steps` with other process reward models, compared with their cards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from scoring import load, score
from tiny import Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.recipe.specs import StepsSpec
from alarm_models.types import Message, Sample, Score, Span

pytestmark = pytest.mark.numeric

STEPS = ["Two and two.", "That is\nfour.", "So it is 4."]
SAMPLES = [
    Sample("What is 2 + 2?", "\n\n".join(STEPS)),
    Sample("Naïve 東京?", "🙂 café"),
    Sample("A much longer question " * 9, "Yes.\n\nNo."),
]


def steps_of(sample: Sample) -> list[str]:
    return sample.completion_text.split("\n\n")


def spec(checkpoint: Checkpoint, **more: object) -> StepsSpec:
    return StepsSpec.model_validate({"checkpoint": str(checkpoint.folder)} | more)


def grades(one: Score) -> list[float | None]:
    assert one.segments is not None
    return [segment.score for segment in one.segments]


@torch.inference_mode()
def logits(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    rows: torch.Tensor = checkpoint.model(torch.tensor([ids])).logits[0]
    return rows


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.causal("llama", tmp_path_factory.mktemp("causal_prm"))


def signs(checkpoint: Checkpoint) -> tuple[int, int]:
    plus, minus = (
        int(checkpoint.tokenizer(one, add_special_tokens=False).input_ids[-1]) for one in "+-"
    )
    return plus, minus


def test_steps_with_one_logit_give_sigmoid_as_in_skywork(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.randn(1)}
    checkpoint = tiny.base_with(tmp_path, head)
    tokens = checkpoint.tokenizer
    # The small tokenizer has no token of a line break alone: another stands for it.
    newline = tokens.convert_tokens_to_ids("<extra_0>")

    def wanted(sample: Sample) -> list[float]:
        ids = tokens(f"</s>{sample.prompt_text}\n", add_special_tokens=False).input_ids
        at = []
        for step in steps_of(sample):
            ids = [*ids, *tokens(step, add_special_tokens=False).input_ids, newline]
            at.append(len(ids) - 1)
        with torch.inference_mode():
            states = checkpoint.model(torch.tensor([ids])).last_hidden_state[0, at]
        values = states @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
        chances: list[float] = values.sigmoid().tolist()
        return chances

    made = spec(
        checkpoint,
        head="v_head.summary",
        template="</s>{prompt}\n{completion}",
        step_token="<extra_0>",
        tokenization="parts",
        special_tokens=False,
    )
    for sample, one in zip(SAMPLES, score(load(made), SAMPLES), strict=True):
        assert grades(one) == computed(wanted(sample))
        assert one.value == computed(min(wanted(sample)))


def test_steps_with_two_tokens_are_read_at_the_tag_as_in_math_shepherd(causal: Checkpoint) -> None:
    plus, minus = signs(causal)
    tag = causal.tokenizer.convert_tokens_to_ids("<extra_0>")
    made = spec(
        causal,
        template="{prompt} {completion}",
        step_template="Step {number}: {step} ",
        step_separator="\n",
        step_token="<extra_0>",
        positive=plus,
        negative=minus,
    )
    for sample, one in zip(SAMPLES, score(load(made), SAMPLES), strict=True):
        steps = [f"Step {n}: {step} <extra_0>" for n, step in enumerate(steps_of(sample), 1)]
        ids = causal.tokenizer(f"{sample.prompt_text} " + "\n".join(steps)).input_ids
        rows = logits(causal, ids)[:, [plus, minus]].softmax(-1)[:, 0].tolist()
        wanted = [row for row, token in zip(rows, ids, strict=True) if token == tag]
        assert grades(one) == computed(wanted)
        assert {segment.label for segment in one.segments or ()} <= {"good", "bad"}


def test_steps_in_turns_are_read_before_answers_as_in_rlhflow(
    causal: Checkpoint,
) -> None:
    plus, minus = signs(causal)
    made = spec(causal, step_answer="<extra_0>", positive=plus, negative=minus)
    chats = [
        *SAMPLES,
        Sample(
            (Message("system", "Be brief."), Message("user", "What is 2 + 2?")),
            "\n\n".join(STEPS),
        ),
    ]
    answer = causal.tokenizer.convert_tokens_to_ids("<extra_0>")
    for sample, one in zip(chats, score(load(made), chats), strict=True):
        prompt = sample.prompt
        turns = (
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [{"role": turn.role, "content": turn.content} for turn in prompt]
        )
        wanted = []
        for number, step in enumerate(steps_of(sample)):
            if number:
                turns.append({"role": "user", "content": step})
            else:
                turns[-1]["content"] += f" {step}"
            turns.append({"role": "assistant", "content": "<extra_0>"})
            text = causal.tokenizer.apply_chat_template(turns, tokenize=False)
            ids = causal.tokenizer(text, add_special_tokens=False).input_ids
            at = len(ids) - 1 - ids[::-1].index(answer)
            row = logits(causal, ids)[at - 1, [plus, minus]]
            wanted.append(row.softmax(-1)[0].item())
        assert grades(one) == computed(wanted)


def test_steps_in_turns_over_the_limit_truncate_the_prompt(causal: Checkpoint) -> None:
    plus, minus = signs(causal)
    made = spec(causal, step_answer="<extra_0>", positive=plus, negative=minus, max_tokens=60)
    (one,) = score(load(made), [Sample("the quick brown fox " * 40, "Yes.\n\nNo.")])
    assert (one.truncated, one.num_tokens, len(grades(one))) == (True, 60, 2)


def test_step_with_answer_placeholder_is_refused(causal: Checkpoint) -> None:
    plus, minus = signs(causal)
    model = load(spec(causal, step_answer="<extra_0>", positive=plus, negative=minus))
    (refused,) = model.prepare([Sample("p", "one \uf8ff")])
    assert isinstance(refused, SampleError)


def test_steps_from_the_caller_are_used_in_every_form(causal: Checkpoint) -> None:
    plus, minus = signs(causal)
    sample = Sample("p", "one two three", segments={"steps": (Span(0, 3), Span(4, 13))})
    given: Mapping[str, Any] = {"positive": plus, "negative": minus}
    for more in ({"step_answer": "<extra_0>"}, {"tokenization": "parts"}):
        (one,) = score(load(spec(causal, **given, **more)), [sample])
        assert [segment.span for segment in one.segments or ()] == [Span(0, 3), Span(4, 13)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"positive": 1}, "set both"),
        ({"positive": 1, "negative": 2, "head": "score"}, "exclude each other"),
        ({"step_template": "Step"}, "write {step} once"),
        ({"step_answer": "+", "template": "{completion}"}, "remove `template`"),
        ({"step_answer": "+", "tokenization": "parts"}, "step_answer excludes"),
    ],
)
def test_steps_spec_with_contradicting_keys_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StepsSpec.model_validate({"checkpoint": "x", **keys})
    assert said in str(caught.value)


def test_step_token_outside_the_vocabulary_is_refused(causal: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="outside the vocabulary of 500"):
        load(spec(causal, positive=1, negative=7000))
