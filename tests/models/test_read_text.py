"""What models read of samples: the tokens they get, and what of the text is not among them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from comet_checkpoints import XCOMET, write
from scoring import load, score
from test_steps import head
from tiny import Checkpoint

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.read_text import ReadSample, ReadText
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.preprocessing.truncation import Truncation
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.recipe.specs import CometSpec, SegmentsSpec, SequenceSpec, StepsSpec
from alarm_models.reward_models.base import NeuralRewardModel
from alarm_models.types import Message, Sample, Span

SAMPLE = Sample("What is the capital of France? " * 3, "It is Paris. Ünïcode 😀 too.")
TEMPLATE = "Human: {prompt}\n\nAssistant: {completion}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.sequence_classifier("llama", tmp_path_factory.mktemp("llama"))


def sequence(checkpoint: Checkpoint, **more: object) -> NeuralRewardModel:
    keys = {"checkpoint": str(checkpoint.folder), "template": TEMPLATE, **more}
    return neural(SequenceSpec.model_validate(keys))


@pytest.fixture(scope="module")
def model(llama: Checkpoint) -> NeuralRewardModel:
    return sequence(llama)


def neural(spec: Any) -> NeuralRewardModel:
    model = load(spec)
    assert isinstance(model, NeuralRewardModel)
    return model


def read(model: NeuralRewardModel, sample: Sample) -> ReadSample:
    """Return what a model reads; its ids and counts are those of the score."""
    found = model.read_sample(sample)
    assert isinstance(found, ReadSample)
    (features,) = model.prepare([sample])
    assert isinstance(features, ModelInput)
    assert [text.kept_ids for text in found.texts] == list(features.ids_of_sequences)
    (scored,) = score(model, [sample])
    assert (found.num_tokens, found.truncated) == (scored.num_tokens, scored.truncated)
    assert found.omitted == scored.omitted
    return found


def completion_of(model: NeuralRewardModel, text: ReadText) -> str:
    assert text.completion is not None
    return "".join(model.token_texts(text.ids)[text.completion.start : text.completion.end])


def test_read_sample_has_the_rendered_text_and_the_completion(model: NeuralRewardModel) -> None:
    (text,) = read(model, SAMPLE).texts
    written = "".join(model.token_texts(text.ids))
    assert written == f"<s> {TEMPLATE.format(prompt=SAMPLE.prompt, completion=SAMPLE.completion)}"
    assert completion_of(model, text).strip() == SAMPLE.completion
    assert text.dropped == ()


@pytest.mark.parametrize("truncation", [Truncation.PROMPT, Truncation.RIGHT])
def test_read_sample_marks_what_truncation_dropped(
    llama: Checkpoint, model: NeuralRewardModel, truncation: Truncation
) -> None:
    limit = model.prepare([SAMPLE])[0].num_tokens - 6
    short = sequence(llama, max_tokens=limit, truncation=truncation)
    found = read(short, SAMPLE)
    (text,) = found.texts
    ((start, end),) = text.dropped
    assert (len(text.ids), found.num_tokens) == (limit + 6, limit)
    dropped = "".join(model.token_texts(text.ids)[start:end]).strip()
    is_prompt = truncation is Truncation.PROMPT
    whole = str(SAMPLE.prompt if is_prompt else SAMPLE.completion)
    assert dropped
    assert dropped in whole
    assert found.omitted == ("prompt_start" if is_prompt else "completion_end",)


def test_read_sample_that_is_too_long_is_its_scores_error(llama: Checkpoint) -> None:
    found = sequence(llama, max_tokens=10).read_sample(SAMPLE)
    assert isinstance(found, SampleError)
    assert found.code == "too_long"


def test_read_sample_of_thoughts_has_the_parts_left_out(llama: Checkpoint) -> None:
    model = sequence(llama, template="chat")
    completion = "<think>so</think>Paris."
    found = read(model, Sample((Message("user", "Where?"),), completion))
    assert found.omitted == ("thinking",)
    assert [completion[a:b] for a, b in found.left_out(len(completion))] == ["<think>so</think>"]
    assert completion_of(model, found.texts[0]).strip() == "Paris."


def test_read_sample_of_segments_has_separators_and_the_dropped_prompt(tmp_path: Path) -> None:
    checkpoint = tiny.token_classifier(tmp_path, ("bad", "good"))
    keys = {"template": "{prompt} answer: ", "positive_label": "good", "negative_label": "bad"}
    keys |= {"checkpoint": str(tmp_path), "truncation": "prompt"}
    sample = Sample("Where is Paris? " * 4, "It is in France. It is big.")
    whole = neural(SegmentsSpec.model_validate(keys))
    (text,) = read(whole, sample).texts
    assert completion_of(whole, text) == "</s> It is in France.</s> It is big."
    short = neural(SegmentsSpec.model_validate({**keys, "max_tokens": len(text.ids) - 5}))
    (cut,) = read(short, sample).texts
    assert [end - start for start, end in cut.dropped] == [5]
    assert checkpoint.tokenizer.decode(cut.ids) == "".join(short.token_texts(cut.ids))


def test_read_sample_of_steps_has_their_tokens(tmp_path: Path) -> None:
    tensors = {f"score.{name}": tensor for name, tensor in head().state_dict().items()}
    checkpoint = tiny.base_with(tmp_path, tensors)
    spec = StepsSpec.model_validate({"checkpoint": str(checkpoint.folder), "head": "score"})
    model = neural(spec)
    (text,) = read(model, Sample("What is 2 + 2?", "Two and two.\n\nFour.")).texts
    assert completion_of(model, text) == "Two and two.<extra_0> Four.<extra_0>"


def test_read_sample_of_comet_has_each_joined_text(tmp_path: Path) -> None:
    folder = tmp_path / "xcomet"
    write(folder, XCOMET, tags=4)
    keys = recipe_of_checkpoint(str(folder)).table["models"]["rm"]
    model = neural(CometSpec.model_validate(keys))
    fields = {"source": "A red kite rises.", "reference": "Ein roter Milan steigt auf."}
    found = read(model, Sample("Translate.", "Ein roter Drache.", fields=fields))
    assert len(found.texts) == 3
    completion = Tokenizer(folder).ids("Ein roter Drache.")
    for text in found.texts:
        assert text.completion is not None
        assert text.ids[slice(*text.completion)] == completion


def test_token_texts_of_a_character_of_several_tokens_are_with_the_last(llama: Checkpoint) -> None:
    tokenizer = Tokenizer(llama.folder)
    ids = tokenizer.ids("a 😀 b")
    texts = tokenizer.token_texts(ids)
    assert "".join(texts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(texts)
    assert "" in texts


def test_token_offsets_cover_the_text_without_special_tokens(model: NeuralRewardModel) -> None:
    text = "Paris, 😀"
    places = model.token_offsets(text)
    assert places[0].start == 0
    assert places[-1] == Span(7, 8)
    covered = {at for place in places for at in range(*place)}
    assert "".join(text[at] for at in sorted(covered)).replace(" ", "") == "Paris,😀"
