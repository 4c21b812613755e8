"""Token types for copied words, the same in a batch as alone."""

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from scoring import load, score
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.segmentation import SUPPORT_TYPES, word_types
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import SegmentsSpec, SequenceSpec
from alarm_models.reward_models.base import HostModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

PROMPT = "The quick brown fox jumps over the dog."
SAMPLES = [
    Sample(PROMPT, "A quick brown fox sleeps. It does not mind."),
    Sample("Nothing of it.", "A quick brown fox sleeps. It does not mind."),
    Sample(PROMPT, "No."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    model = hf.BertModel(config, add_pooling_layer=False)
    tiny.save(model, tiny.tokenizer(bos=True, eos=True), made)
    state = dict(model.state_dict()) | {"whole.weight": torch.randn(1, 32)}
    state |= {"parts.weight": torch.randn(2, 32)}
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    return made


def whole(folder: Path, *, mark_copied: bool | Literal["support"]) -> SequenceSpec:
    return SequenceSpec(
        checkpoint=str(folder),
        template="{completion}",
        head="whole",
        pooling="mean",
        mark_copied=mark_copied,
    )


def parts(folder: Path) -> SegmentsSpec:
    return SegmentsSpec(
        checkpoint=str(folder),
        template="{prompt}",
        head="parts",
        labels=("error", "ok"),
        positive_label="ok",
        negative_label="error",
        mark_copied=True,
    )


def test_mark_copied_gives_copied_words_token_type_one(folder: Path) -> None:
    model = load(whole(folder, mark_copied=True))
    (features,) = model.prepare(SAMPLES[:1])
    assert isinstance(features, ModelInput)
    tokens = hf.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(features.ids)
    marked = [
        token for token, kind in zip(tokens, features.token_type_ids, strict=True) if kind == 1
    ]
    text = "".join(marked).replace("Ġ", " ").split()
    assert text == ["quick", "brown", "fox"]


def test_mark_copied_with_another_prompt_changes_the_score(folder: Path) -> None:
    grounded, made_up, _ = score(load(whole(folder, mark_copied=True)), SAMPLES)
    assert grounded.value != made_up.value
    plain = score(load(whole(folder, mark_copied=False)), SAMPLES)
    assert plain[0].value == computed(plain[1].value)


def test_mark_copied_in_a_batch_gives_the_scores_of_each_alone(folder: Path) -> None:
    for model in (load(whole(folder, mark_copied=True)), load(parts(folder))):
        together = score(model, SAMPLES)
        for sample, one in zip(SAMPLES, together, strict=True):
            (alone,) = score(model, [sample])
            assert one.value == computed(alone.value)


def test_mark_copied_with_truncated_prompt_keeps_types_with_their_words(folder: Path) -> None:
    spec = parts(folder).model_copy(update={"max_tokens": 32})
    long = Sample(PROMPT * 9, "A quick brown fox sleeps.")
    (features,) = load(spec).prepare([long])
    assert isinstance(features, ModelInput)
    assert features.truncated
    assert len(features.token_type_ids) == len(features.ids) == 32
    tokens = hf.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(features.ids)
    marked = [
        token for token, kind in zip(tokens, features.token_type_ids, strict=True) if kind == 1
    ]
    assert "".join(marked).replace("Ġ", " ").split() == ["quick", "brown", "fox"]


def with_types(folder: Path, number: int, made: Path) -> Path:
    """Copy the checkpoint with another number of token types."""
    shutil.copytree(folder, made)
    config = json.loads((folder / "config.json").read_text()) | {"type_vocab_size": number}
    (made / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    name = "embeddings.token_type_embeddings.weight"
    state[name] = torch.cat([state[name]] * 55)[:number].contiguous()
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.mark.parametrize(("mark", "found"), [(True, 1), ("support", 2)])
def test_mark_copied_with_too_few_token_types_is_refused(
    mark: bool | Literal["support"], found: int, folder: Path, tmp_path: Path
) -> None:
    few = with_types(folder, found, tmp_path / "few")
    with pytest.raises(CheckpointError, match="type_vocab_size"):
        load(whole(few, mark_copied=mark))


def test_mark_copied_support_gives_tokens_the_types_of_their_words(
    folder: Path, tmp_path: Path
) -> None:
    made = with_types(folder, SUPPORT_TYPES, tmp_path / "made")
    sample = Sample("Ann sang. Bob danced.", "It was Ann, not Bob Lee.")
    for spec in (
        whole(made, mark_copied="support"),
        parts(made).model_copy(update={"mark_copied": "support"}),
    ):
        (features,) = load(spec).prepare([sample])
        assert isinstance(features, ModelInput)
        kinds = [kind for kind in features.token_type_ids if kind]
        marked = word_types(sample.prompt_text, sample.completion_text, "support")
        assert len({kind for *_, kind in marked}) > 2
        assert list(dict.fromkeys(kinds)) == list(dict.fromkeys(kind for *_, kind in marked))


def test_mark_copied_support_uses_the_question_that_the_template_names(
    folder: Path, tmp_path: Path
) -> None:
    made = with_types(folder, SUPPORT_TYPES, tmp_path / "made")
    prompt = "question: Who sang? context: Ann sang a song. Bob danced."
    fields = {"question": FieldPattern("question:(.*?)context:")}
    specs = (
        whole(made, mark_copied="support").model_copy(
            update={"template": "{question} {completion}"}
        ),
        parts(made).model_copy(update={"template": "{question} ", "mark_copied": "support"}),
    )
    questions = ({}, {"question": "Who sang?"}, {"question": "Who danced?"})
    for spec in specs:
        model = Loader(torch.device("cpu")).load(spec, fields)
        assert not isinstance(model, HostModel)
        found = []
        for features in model.prepare([Sample(prompt, "Bob.", fields=one) for one in questions]):
            assert isinstance(features, ModelInput)
            found.append(set(features.token_type_ids))
        assert found[0] == found[1] != found[2]
