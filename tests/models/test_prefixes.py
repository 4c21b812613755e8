"""Scores of prefixes, against each prefix scored alone by transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from scoring import load, score
from tiny import ARCHITECTURES, Checkpoint
from tolerance import computed

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.recipe.specs import MultiObjectiveSpec, SequenceSpec
from alarm_models.reward_models.base import RewardModel
from alarm_models.reward_models.prefixes import (
    MAX_PREFIXES,
    cut_completion,
    merge_segments,
    num_shared_tokens,
    segments_of,
)
from alarm_models.types import Message, Sample, Score, Span

pytestmark = pytest.mark.numeric

TEMPLATE = "Human: {prompt}\nAssistant: {completion}</s>"
PROMPT = "What is the capital of France, and does the quick brown fox know?"
#: Cut after "brown fo", its text has other tokens there than "brown fox" has.
SPLIT_WORD = Sample(
    PROMPT,
    "The quick brown fox jumps over the lazy dog.",
    segments={"sentences": (Span(0, 5), Span(6, 18), Span(18, 44))},
    prefix_segmenter="sentences",
)
SENTENCES = Sample(
    PROMPT, "Paris is the capital. The dog does not mind! 東京?", prefix_segmenter="sentences"
)
UNMARKED = Sample(PROMPT, "Paris.")


def ends_of(one: Score) -> list[int]:
    return [0, *(segment.span.end for segment in one.segments or ())][:-1]


def assert_each_as_if_alone(checkpoint: Checkpoint, sample: Sample, one: Score) -> None:
    def alone(completion: str) -> float:
        text = TEMPLATE.format(prompt=sample.prompt, completion=completion)
        return float(checkpoint.plain_logits(text).item())

    whole = str(sample.completion)
    assert one.value == computed(alone(whole))
    wanted = [alone(whole[:end]) for end in ends_of(one)]
    assert [prefix.value for prefix in one.prefixes] == computed(wanted)
    assert [segment.score for segment in one.segments or ()] == computed([*wanted[1:], one.value])


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_prefixes_in_one_batch_score_as_each_alone(architecture: str, tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier(architecture, tmp_path)
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))
    samples = [SENTENCES, UNMARKED, SPLIT_WORD]
    first, plain, second = score(model, samples)
    assert_each_as_if_alone(checkpoint, SENTENCES, first)
    assert_each_as_if_alone(checkpoint, SPLIT_WORD, second)
    assert (plain.segments, plain.prefixes) == (None, ())


def test_prefixes_of_a_continued_message_begin_after_its_prefill(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    prompt = (Message("user", PROMPT), Message("assistant", "Well, "))
    (one,) = score(model, [replace(SENTENCES, prompt=prompt, continue_final_message=True)])
    whole = str(SENTENCES.completion)
    for got, end in zip((one, *one.prefixes), (len(whole), *ends_of(one)), strict=True):
        text = TEMPLATE.format(prompt=PROMPT, completion=f"Well, {whole[:end]}")
        assert got.value == computed(llama.plain_logits(text).item())


def test_prefixes_of_causal_models_cost_their_closing_tokens(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    (features,) = model.prepare([replace(SPLIT_WORD, prompt=PROMPT * 4)])
    assert isinstance(features, ModelInput)
    (num_computed,) = model.forward([features]).num_computed
    # Four sequences: each of the prefixes adds less than a node's sixteen tokens.
    assert len(features.sequences) == 4
    assert len(features.ids) < num_computed < len(features.ids) + 3 * 16
    assert features.num_cost_tokens == num_computed


def test_prefixes_of_samples_of_one_prompt_share_it(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    group = [replace(one, prompt=PROMPT * 4) for one in (SENTENCES, SPLIT_WORD)]
    prepared = [one for one in model.prepare(group) if isinstance(one, ModelInput)]
    together = sum(model.forward(prepared).num_computed)
    apart = [model.forward([one]).num_computed[0] for one in prepared]
    num_prompt = len(llama.tokenizer(f"Human: {PROMPT * 4}\nAssistant:").input_ids)
    assert together <= sum(apart) - num_prompt + 1


@pytest.mark.parametrize("num_tokens", [40, 75])
def test_prefixes_of_a_prompt_too_long_keep_the_same_part_of_it(
    llama: Checkpoint, num_tokens: int
) -> None:
    spec = SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE, max_tokens=num_tokens)
    model = load(spec)
    sample = replace(SENTENCES, prompt="alpha beta gamma " * 40)
    (one,) = score(model, [sample])
    assert one.truncated
    whole = str(sample.completion)
    texts = [
        TEMPLATE.format(prompt=sample.prompt, completion=whole[:end])
        for end in (len(whole), *ends_of(one))
    ]
    # The prompt's first token has the template's space before it, and stays.
    start = len(llama.tokenizer("Human: a").input_ids)
    num_dropped = len(llama.tokenizer(texts[0]).input_ids) - num_tokens
    for text, got in zip(texts, (one, *one.prefixes), strict=True):
        ids = llama.tokenizer(text).input_ids
        del ids[start : start + num_dropped]
        with torch.inference_mode():
            assert got.value == computed(llama.model(torch.tensor([ids])).logits.item())


def test_prefixes_cut_on_the_right_score_what_is_left(llama: Checkpoint) -> None:
    spec = SequenceSpec(
        checkpoint=str(llama.folder), template=TEMPLATE, max_tokens=30, truncation="right"
    )
    (one,) = score(load(spec), [SENTENCES])
    assert one.truncated
    text = TEMPLATE.format(prompt=PROMPT, completion="Paris is the capital.")
    ids = llama.tokenizer(text).input_ids[:30]
    with torch.inference_mode():
        alone = llama.model(input_ids=torch.tensor([ids])).logits.item()
    assert one.prefixes[1].value == computed(alone)


def test_prefixes_of_a_completion_that_does_not_fit_are_too_long(llama: Checkpoint) -> None:
    spec = SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE, max_tokens=16)
    (error,) = load(spec).prepare([SENTENCES])
    assert isinstance(error, SampleError)
    assert error.code == "too_long"


def chat_ids(checkpoint: Checkpoint, *turns: tuple[str, str]) -> Any:
    messages = [{"role": role, "content": content} for role, content in turns]
    return checkpoint.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)


def test_prefixes_of_messages_are_closed_by_the_chat_template(llama: Checkpoint) -> None:
    model: RewardModel = load(SequenceSpec(checkpoint=str(llama.folder)))
    completion = (Message("assistant", "Hello. You?"), Message("assistant", "Yes. No."))
    sample = Sample("Hi", completion, prefix_segmenter="sentences")
    (one,) = score(model, [sample])
    turns = [
        [("assistant", "")],
        [("assistant", "Hello.")],
        [("assistant", "Hello. You?")],
        [("assistant", "Hello. You?"), ("assistant", "Yes.")],
        [("assistant", "Hello. You?"), ("assistant", "Yes. No.")],
    ]
    wanted = []
    for answer in turns:
        with torch.inference_mode():
            ids = chat_ids(llama, ("user", "Hi"), *answer)
            wanted.append(llama.model(**ids).logits.item())
    assert [prefix.value for prefix in one.prefixes] + [one.value] == computed(wanted)


def test_prefix_that_is_not_finite_fails_its_sample_alone(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    (features,) = model.prepare([SENTENCES])
    assert isinstance(features, ModelInput)
    (rows,) = model.forward([features])
    rows = rows.clone()
    rows[1] = float("nan")
    with pytest.raises(SampleError, match="not finite"):
        model.read(features, rows)


def test_prefixes_have_every_output_of_a_model_with_several(tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier("llama", tmp_path, labels=2)
    spec = MultiObjectiveSpec(
        checkpoint=str(tmp_path), template=TEMPLATE, objectives=("help", "truth")
    )
    (one,) = score(load(spec), [SENTENCES])
    assert one.value is None
    truth = one.output("truth")
    for end, prefix in zip(ends_of(one), truth.prefixes, strict=True):
        text = TEMPLATE.format(prompt=PROMPT, completion=str(SENTENCES.completion)[:end])
        assert prefix.value == computed(checkpoint.plain_logits(text)[1].item())
    assert [segment.score for segment in truth.segments or ()][-1] == truth.value


def test_many_segments_are_merged_evenly() -> None:
    spans = [Span(2 * at, 2 * at + 1) for at in range(5)]
    assert merge_segments(spans, 5) == tuple(spans)
    assert merge_segments(spans, 2) == (Span(0, 3), Span(4, 9))
    many = Sample("?", "So. " * 500, prefix_segmenter="sentences")
    found = segments_of(many, "sentences")
    assert len(found) == MAX_PREFIXES
    assert (found[0].start, found[-1].end) == (0, 1999)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, ["I look.", "It is."]),
        ((Span(0, 4), Span(4, 16), Span(16, 23)), ["I lo", "ok.", "It is."]),
        ((Span(0, 23),), ["I look.\n\nParis.\n\nIt is."]),
        ((Span(9, 15), Span(15, 17)), []),
    ],
    ids=["found", "clipped", "across", "of the tool"],
)
def test_segments_end_in_messages_that_the_policy_wrote(
    given: tuple[Span, ...] | None, wanted: list[str]
) -> None:
    messages = (
        Message("assistant", "I look."),
        Message("tool", "Paris."),
        Message("assistant", "It is."),
    )
    sample = Sample("?", messages, segments={} if given is None else {"sentences": given})
    spans = segments_of(sample, "sentences")
    assert [sample.completion_text[start:end] for start, end in spans] == wanted


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        (0, [""]),
        (3, ["abc"]),
        (4, ["abcd"]),
        (6, ["abcd"]),
        (7, ["abcd", "e"]),
        (8, ["abcd", "ef"]),
    ],
)
def test_cut_completion_of_messages_ends_within_one(end: int, wanted: list[str]) -> None:
    messages = (Message("assistant", "abcd"), Message("assistant", "ef"))
    cut = cut_completion(Sample("?", messages, token_offsets=(Span(0, 1),)), end)
    assert isinstance(cut.completion, tuple)
    assert [message.content for message in cut.completion] == wanted
    assert cut.token_offsets is None


def test_num_shared_tokens_are_those_that_a_packed_batch_spares() -> None:
    prompt, segment = tuple(range(20)), tuple(range(100, 116))
    # Twice the prompt and once the segment after it.
    sequences = [(*prompt, *segment, 7, 8), (*prompt, 9), (*prompt, *segment, 9)]
    assert num_shared_tokens(sequences) == 2 * 20 + 16
    assert num_shared_tokens(sequences[:1]) == 0


def test_prefixes_of_models_that_share_none_count_in_full(tmp_path: Path) -> None:
    tiny.sequence_classifier("roberta", tmp_path)
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))
    (features,) = model.prepare([SENTENCES])
    assert isinstance(features, ModelInput)
    assert model.cost is BatchLayout.PACKED
    assert features.num_cost_tokens == features.num_tokens
