"""Kind `segments` against a plain token classifier, and what must not shift its labels."""

from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tiny import EOS, Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.recipe.specs import SegmentsSpec
from alarm_models.reward_models.base import RewardModel
from alarm_models.types import Message, Sample, Score, Span

pytestmark = pytest.mark.numeric

LABELS = ("F-ERR", "Ignore", "O")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.token_classifier(tmp_path_factory.mktemp("tokens"), LABELS)


def spec(checkpoint: Checkpoint, **more: object) -> SegmentsSpec:
    base = {
        "checkpoint": str(checkpoint.folder),
        "template": "{prompt} answer: ",
        "positive_label": "O",
        "negative_label": "F-ERR",
    }
    return SegmentsSpec.model_validate(base | more)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> RewardModel:
    return load(spec(checkpoint))


def margins(one: Score) -> list[float | None]:
    assert one.segments is not None
    return [segment.score for segment in one.segments]


def plain_margins(checkpoint: Checkpoint, text: str) -> list[float]:
    """Run transformers on words; read O less F-ERR at each separator but the closing one."""
    inputs = checkpoint.tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
    with torch.inference_mode():
        logits = checkpoint.model(**inputs).logits[0]
    places = (inputs["input_ids"][0] == EOS).nonzero()[:-1, 0]
    return (logits[places, 2] - logits[places, 0]).tolist()


def test_segments_are_read_at_the_separator_before_each(
    checkpoint: Checkpoint, model: RewardModel
) -> None:
    samples = [
        Sample("Where is Paris?", "It is in France. It is big."),
        Sample("A much longer question " * 9, "Yes. No. Maybe."),
    ]
    first, second = score(model, samples)
    text = "Where is Paris? answer: </s> It is in France. </s> It is big."
    assert margins(first) == computed(plain_margins(checkpoint, text))
    text = f"{samples[1].prompt} answer: </s> Yes. </s> No. </s> Maybe."
    assert margins(second) == computed(plain_margins(checkpoint, text))


def test_segments_score_is_the_share_of_positive_ones(model: RewardModel) -> None:
    sample = Sample("p", "One is. Two is. Three is. Four is.")
    (features,) = model.prepare([sample])
    outputs = torch.tensor([[0.0, 9, 1], [1, 9, 0], [0, 9, 3], [2, 9, 2]])
    assert not isinstance(features, Score | SampleError)
    read = model.read(features, outputs)
    assert read.value == 0.5
    assert read.segments is not None
    assert [segment.label for segment in read.segments] == ["O", "F-ERR", "O", "F-ERR"]
    assert margins(read) == [1, -1, 3, 0]


def test_segments_from_the_caller_replace_the_segmenters(model: RewardModel) -> None:
    sample = Sample("p", "one two three", segments={"sentences": (Span(0, 3), Span(4, 13))})
    (one,) = score(model, [sample])
    assert one.segments is not None
    assert [segment.span for segment in one.segments] == [Span(0, 3), Span(4, 13)]


def test_segments_of_turns_are_what_the_policy_answered_in_each(checkpoint: Checkpoint) -> None:
    completion = (
        Message("assistant", "<think>Hm.</think>It is in France."),
        Message("tool", "Paris: France"),
        Message("assistant", "It is big. Very."),
    )
    sample = Sample("Where is Paris?", completion)
    (one,) = score(load(spec(checkpoint, segmenter="turns")), [sample])
    text = "Where is Paris? answer: </s> It is in France. </s> It is big. Very."
    assert margins(one) == computed(plain_margins(checkpoint, text))
    given = sample.completion_text
    spans = [segment.span for segment in one.segments or ()]
    assert [given[slice(*span)] for span in spans] == ["It is in France.", "It is big. Very."]
    assert one.omitted == ("thinking", "tool_results")


def test_segments_with_separator_in_the_text_keep_their_labels(
    checkpoint: Checkpoint, model: RewardModel
) -> None:
    (one,) = score(model, [Sample("p </s> q", "It </s> is. It was.")])
    text = "p </s> q answer: </s> It </s> is. </s> It was."
    by_place = plain_margins(checkpoint, text)
    assert margins(one) == computed([by_place[1], by_place[3]])


def test_segments_of_blank_completion_need_no_forward_pass(model: RewardModel) -> None:
    assert model.prepare([Sample("p", "")]) == [Score(None, (), 0, False)]


def test_segments_with_long_prompt_truncate_its_start(
    checkpoint: Checkpoint,
) -> None:
    short = load(spec(checkpoint, max_tokens=64))
    (one,) = score(short, [Sample("word " * 300, "It is. It was.")])
    assert one.truncated
    assert one.num_tokens == 64
    assert None not in margins(one)


def test_segments_with_right_truncation_leave_the_last_unread(checkpoint: Checkpoint) -> None:
    short = load(spec(checkpoint, max_tokens=24, truncation="right"))
    sample = Sample("p", "It is here. " + "and it goes on and on " * 3 + ". It was.")
    (one,) = score(short, [sample])
    assert one.truncated
    assert margins(one)[0] is not None
    assert margins(one)[-1] is None


def test_segments_with_no_segment_left_fail_the_sample(checkpoint: Checkpoint) -> None:
    short = load(spec(checkpoint, max_tokens=24, truncation="right"))
    (error,) = short.prepare([Sample("word " * 300, "It is.")])
    assert isinstance(error, SampleError)
    assert error.code == "too_long"


def test_segments_without_label_names_use_positions(tmp_path: Path) -> None:
    unnamed = tiny.token_classifier(tmp_path, ("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(CheckpointError, match="LABEL_0"):
        load(spec(unnamed))
    (by_position,) = score(load(spec(unnamed, labels=LABELS)), [Sample("p", "It is.")])
    named = tiny.token_classifier(tmp_path / "named", LABELS)
    (by_name,) = score(load(spec(named)), [Sample("p", "It is.")])
    assert margins(by_position) == margins(by_name)


def test_segments_with_named_head_read_separators_or_means(tmp_path: Path) -> None:
    base = tiny.base_with_head(tmp_path, head="aspect", outputs=2)
    common = {"head": "aspect", "labels": ("F-ERR", "O")}
    sample = Sample("p", "It is. It was.")
    (at_separator,) = score(load(spec(base, **common)), [sample])
    (over_segment,) = score(load(spec(base, **common, pooling="mean")), [sample])
    assert len(margins(at_separator)) == len(margins(over_segment)) == 2
    assert margins(at_separator) != margins(over_segment)
