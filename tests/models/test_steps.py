"""Kind `steps` against a plain base model and the head that Qwen2.5-Math-PRM has."""

from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tiny import Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.recipe.specs import StepsSpec
from alarm_models.types import Message, Sample, Score, SegmentScore, Span

pytestmark = pytest.mark.numeric

STEPS = ["Two and two.", "That is\nfour.", "So it is 4."]
SAMPLE = Sample("What is 2 + 2?", "\n\n".join(STEPS))


def head() -> torch.nn.Sequential:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors = {f"score.{name}": tensor for name, tensor in head().state_dict().items()}
    return tiny.base_with(tmp_path_factory.mktemp("prm"), tensors)


def spec(checkpoint: Checkpoint, **more: object) -> StepsSpec:
    return StepsSpec.model_validate({"checkpoint": str(checkpoint.folder), "head": "score"} | more)


@torch.inference_mode()
def plain(checkpoint: Checkpoint, text: str, places: slice = slice(None)) -> list[float]:
    """Return the second label's probability at the step tokens, as the model's card does."""
    inputs = checkpoint.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    logits = head()(checkpoint.model(**inputs).last_hidden_state[0])
    at = inputs["input_ids"][0] == checkpoint.tokenizer.convert_tokens_to_ids("<extra_0>")
    chances: list[float] = logits[at].softmax(-1)[places, 1].tolist()
    return chances


def chat(prompt: str, completion: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>\n"


def grades(one: Score) -> list[float | None]:
    assert one.segments is not None
    return [segment.score for segment in one.segments]


def test_steps_are_read_at_the_token_after_each(checkpoint: Checkpoint) -> None:
    other = Sample("A much longer question " * 9, "Yes.\n\nNo.")
    one, two = score(load(spec(checkpoint)), [SAMPLE, other])
    text = chat(str(SAMPLE.prompt), "".join(f"{step}<extra_0>" for step in STEPS))
    assert grades(one) == computed(plain(checkpoint, text))
    text = chat(str(other.prompt), "Yes.<extra_0>No.<extra_0>")
    assert grades(two) == computed(plain(checkpoint, text))


def test_steps_segments_are_spans_of_the_completion(checkpoint: Checkpoint) -> None:
    (one,) = score(load(spec(checkpoint)), [SAMPLE])
    assert one.segments is not None
    text = SAMPLE.completion_text
    assert [text[slice(*segment.span)] for segment in one.segments] == STEPS


def test_steps_with_step_token_in_the_text_keep_their_scores(checkpoint: Checkpoint) -> None:
    sample = Sample("Say <extra_0>.", "One <extra_0>\n\nTwo")
    (one,) = score(load(spec(checkpoint)), [sample])
    text = chat("Say <extra_0>.", "One <extra_0><extra_0>Two<extra_0>")
    assert grades(one) == computed(plain(checkpoint, text, slice(2, None)))


def test_steps_from_the_caller_replace_the_segmenters(checkpoint: Checkpoint) -> None:
    sample = Sample("p", "one two three", segments={"steps": (Span(0, 3), Span(4, 13))})
    (one,) = score(load(spec(checkpoint)), [sample])
    text = chat("p", "one<extra_0>two three<extra_0>")
    assert grades(one) == computed(plain(checkpoint, text))


def test_steps_of_turns_are_what_the_policy_answered_in_each(checkpoint: Checkpoint) -> None:
    completion = (
        Message("assistant", "Two and\n\ntwo."),
        Message("tool", "4"),
        Message("assistant", "<think>Fine.</think>So it is 4."),
    )
    sample = Sample("What is 2 + 2?", completion)
    (one,) = score(load(spec(checkpoint, segmenter="turns")), [sample])
    text = chat("What is 2 + 2?", "Two and\n\ntwo.<extra_0>So it is 4.<extra_0>")
    assert grades(one) == computed(plain(checkpoint, text))
    given = sample.completion_text
    spans = [segment.span for segment in one.segments or ()]
    assert [given[slice(*span)] for span in spans] == ["Two and\n\ntwo.", "So it is 4."]


def test_steps_of_messages_and_of_text_template_are_equal(checkpoint: Checkpoint) -> None:
    prompt = (Message("user", "What is 2 + 2?"),)
    (chatted,) = score(load(spec(checkpoint)), [Sample(prompt, SAMPLE.completion)])
    template = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>"
    (written,) = score(load(spec(checkpoint, template=template + "\n")), [SAMPLE])
    text = f"<s>{chat('What is 2 + 2?', ''.join(f'{step}<extra_0>' for step in STEPS))}"
    assert grades(written) == computed(plain(checkpoint, text))
    assert grades(chatted) == grades(*score(load(spec(checkpoint)), [SAMPLE]))


@pytest.mark.parametrize(
    ("reduction", "value"), [("min", 0.25), ("mean", 0.5), ("product", 0.09375), ("last", 0.5)]
)
def test_steps_score_is_the_reduction_of_their_probabilities(
    checkpoint: Checkpoint, reduction: str, value: float
) -> None:
    model = load(spec(checkpoint, reduction=reduction))
    (features,) = model.prepare([SAMPLE])
    assert not isinstance(features, Score | SampleError)
    ln3 = torch.tensor(3.0).log()
    read = model.read(features, torch.tensor([[0.0, ln3], [ln3, 0.0], [5.0, 5.0]]))
    assert read.value == computed(value)
    assert read.segments is not None
    assert [segment.label for segment in read.segments] == ["good", "bad", "bad"]


def test_steps_with_labels_in_the_recipe_use_them(checkpoint: Checkpoint) -> None:
    swapped = spec(checkpoint, labels=("right", "wrong"), positive_label="right")
    (one,), (other,) = (score(load(each), [SAMPLE]) for each in (spec(checkpoint), swapped))
    for a, b in zip(grades(one), grades(other), strict=True):
        assert a == computed(1 - (b or 0))
    with pytest.raises(RecipeError, match="positive_label 'fine'"):
        load(spec(checkpoint, positive_label="fine"))


def test_steps_with_right_truncation_leave_the_last_unread(checkpoint: Checkpoint) -> None:
    model = load(spec(checkpoint, truncation="right", max_tokens=48))
    (one,) = score(model, [SAMPLE])
    assert one.truncated
    assert one.segments is not None
    assert one.segments[-1] == SegmentScore(one.segments[-1].span, None, None, None)
    assert grades(one)[0] is not None


def test_steps_with_long_prompt_truncate_its_start(checkpoint: Checkpoint) -> None:
    (one,) = score(load(spec(checkpoint, max_tokens=100)), [Sample("word " * 300, "Yes.\n\nNo.")])
    assert one.truncated
    assert None not in grades(one)


def test_steps_of_blank_completion_need_no_forward_pass(checkpoint: Checkpoint) -> None:
    assert load(spec(checkpoint)).prepare([Sample("p", " \n\n")]) == [Score(None, (), 0, False)]


def test_steps_without_head_use_a_token_classifier(tmp_path: Path) -> None:
    tagger = tiny.token_classifier(tmp_path, ("-", "+"), architecture="roberta")
    model = load(StepsSpec(checkpoint=str(tmp_path), template="{prompt} {completion}"))
    (one,) = score(model, [Sample("p", "One.\n\nTwo.")])
    logits = tagger.plain_logits("p One.<extra_0>Two.<extra_0>")
    ids = tagger.tokenizer("p One.<extra_0>Two.<extra_0>").input_ids
    at = [i for i, token in enumerate(ids) if token == 6]
    assert grades(one) == computed(logits[at].softmax(-1)[:, 1].tolist())
    assert one.segments is not None
    assert {segment.label for segment in one.segments} <= {"-", "+"}


def test_steps_with_step_token_of_several_tokens_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="is not a single token"):
        load(spec(checkpoint, step_token="a step ends here"))
