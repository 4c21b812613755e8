"""Kind `sequence` against transformers run plainly, one sample at a time."""

from pathlib import Path

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file
from scoring import load, score
from tiny import ARCHITECTURES, Checkpoint
from tolerance import computed

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Message, Sample, Score

pytestmark = pytest.mark.numeric

SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("Say nothing.", ""),
    Sample("A long question " * 12, "with a long answer " * 9),
    Sample("", "Only an answer, without any question."),
    Sample("🙂 東京", "naïve café"),
]
TEMPLATE = "Human: {prompt}\nAssistant: {completion}"


def texts(template: str) -> list[str]:
    return [
        template.replace("{prompt}", str(one.prompt)).replace("{completion}", str(one.completion))
        for one in SAMPLES
    ]


@pytest.mark.parametrize("pad_is_eos", [False, True], ids=["pad", "pad_is_eos"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_sequence_in_any_batch_gives_transformers_scores(
    architecture: str, pad_is_eos: bool, tmp_path: Path
) -> None:
    checkpoint = tiny.sequence_classifier(architecture, tmp_path, pad_is_eos=pad_is_eos)
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))
    scores = score(model, SAMPLES)
    for text, one in zip(texts(TEMPLATE), scores, strict=True):
        assert one.value == computed(checkpoint.plain_logits(text).item())


def test_sequence_pooling_without_effect_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier("llama", tmp_path)
    averaged = {"checkpoint": str(tmp_path), "template": TEMPLATE, "pooling": "mean"}
    with pytest.raises(RecipeError, match=r"no effect .* reads the last token\. Name"):
        load(SequenceSpec(**averaged))
    inputs = checkpoint.tokenizer(texts(TEMPLATE)[0], return_tensors="pt")
    with torch.inference_mode():
        mean = checkpoint.model.model(**inputs).last_hidden_state[0].mean(0)
        wanted = checkpoint.model.score(mean).item()
    (one,) = score(load(SequenceSpec(**averaged, head="score")), SAMPLES[:1])
    assert one.value == computed(wanted)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_sequence_ending_with_end_of_text_is_read_as_transformers_does(
    pad_is_eos: bool, tmp_path: Path
) -> None:
    checkpoint = tiny.sequence_classifier("llama", tmp_path, pad_is_eos=pad_is_eos)
    template = TEMPLATE + "</s>"
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=template))
    for text, one in zip(texts(template), score(model, SAMPLES), strict=True):
        assert one.value == computed(checkpoint.plain_logits(text).item())


def test_sequence_chat_template_is_applied_once(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder)))
    prompt = (Message("system", "Be brief."), Message("user", "Hi"))
    (got,) = score(model, [Sample(prompt, "Hello")])
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    ids = llama.tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        assert got.value == computed(llama.model(**ids).logits.item())
    assert got.num_tokens == ids["input_ids"].shape[1]


def test_sequence_template_with_bos_gets_no_second_one(llama: Checkpoint) -> None:
    bare = load(SequenceSpec(checkpoint=str(llama.folder), template="{completion}"))
    own = load(SequenceSpec(checkpoint=str(llama.folder), template="<s>{completion}"))
    assert score(own, SAMPLES) == score(bare, SAMPLES)


@pytest.mark.parametrize("as_bin", [False, True], ids=["safetensors", "bin"])
def test_sequence_with_named_head_reads_the_last_token(as_bin: bool, tmp_path: Path) -> None:
    checkpoint = tiny.base_with_head(tmp_path, as_bin=as_bin)
    spec = SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, head="regression_head")
    weights = (
        torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        if as_bin
        else load_file(tmp_path / "model.safetensors")
    )["regression_head.weight"]
    for text, one in zip(texts(TEMPLATE), score(load(spec), SAMPLES), strict=True):
        with torch.inference_mode():
            hidden = checkpoint.model(
                **checkpoint.tokenizer(text, return_tensors="pt")
            ).last_hidden_state
        assert one.value == computed((hidden[0, -1] @ weights[0]).item())


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_sequence_with_pooling_reads_the_first_token_or_the_mean(
    pooling: str, tmp_path: Path
) -> None:
    checkpoint = tiny.base_with_head(tmp_path)
    spec = SequenceSpec.model_validate(
        {
            "checkpoint": str(tmp_path),
            "template": TEMPLATE,
            "head": "regression_head",
            "pooling": pooling,
        }
    )
    weights = load_file(tmp_path / "model.safetensors")
    head = weights["regression_head.weight"][0]
    for text, one in zip(texts(TEMPLATE), score(load(spec), SAMPLES), strict=True):
        with torch.inference_mode():
            hidden = checkpoint.model(
                **checkpoint.tokenizer(text, return_tensors="pt")
            ).last_hidden_state[0]
        state = hidden[0] if pooling == "first" else hidden.mean(0)
        assert one.value == computed((state @ head).item())


def test_sequence_with_long_prompt_truncates_the_prompt_only(llama: Checkpoint) -> None:
    spec = SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE, max_tokens=40)
    (long,) = score(load(spec), [Sample("word " * 200, "the answer")])
    assert long.truncated
    assert long.num_tokens == 40


def test_sequence_over_the_limit_fails_its_sample_alone(llama: Checkpoint) -> None:
    spec = SequenceSpec.model_validate(
        {
            "checkpoint": str(llama.folder),
            "template": TEMPLATE,
            "max_tokens": 40,
            "truncation": "error",
        }
    )
    short, long = load(spec).prepare([Sample("a", "b"), Sample("word " * 200, "b")])
    assert not isinstance(short, SampleError)
    assert isinstance(long, SampleError)
    assert long.code == "too_long"


def test_sequence_with_activation_applies_it(llama: Checkpoint) -> None:
    raw = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    named = SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE, activation="sigmoid")
    for one, other in zip(score(raw, SAMPLES), score(load(named), SAMPLES), strict=True):
        assert one.value is not None
        assert other.value == computed(torch.tensor(one.value).sigmoid().item())


def test_sequence_score_that_is_nan_fails_its_sample(llama: Checkpoint) -> None:
    model = load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE))
    (features,) = model.prepare(SAMPLES[:1])
    assert not isinstance(features, Score | SampleError)
    with pytest.raises(SampleError) as caught:
        model.read(features, torch.tensor([[float("nan")]]))
    assert caught.value.code == "non_finite"


def test_sequence_of_several_labels_is_refused(tmp_path: Path) -> None:
    tiny.sequence_classifier("llama", tmp_path, labels=3)
    with pytest.raises(CheckpointError, match=r"has 3; kind `multi-objective`"):
        load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))


def test_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    tiny.save(hf.LlamaModel(tiny.config("llama")), tiny.tokenizer(bos=True, eos=False), tmp_path)
    with pytest.raises(CheckpointError, match="would be random"):
        load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))


def test_checkpoint_with_pickled_object_is_refused(tmp_path: Path) -> None:
    tiny.base_with_head(tmp_path, as_bin=True)
    torch.save({"regression_head.weight": Path("an object")}, tmp_path / "pytorch_model.bin")
    with pytest.raises((CheckpointError, Exception), match=r"(?i)weights.?only|unsupported"):
        load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, head="regression_head"))


def test_checkpoint_that_is_missing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="give a folder, or download it once"):
        load(SequenceSpec(checkpoint="nobody/nothing", template=TEMPLATE))


def test_max_tokens_over_the_positions_is_refused(llama: Checkpoint) -> None:
    with pytest.raises(RecipeError, match="512 positions"):
        load(SequenceSpec(checkpoint=str(llama.folder), template=TEMPLATE, max_tokens=4096))


def test_fingerprint_changes_with_what_decides_a_score_only(
    llama: Checkpoint, tmp_path: Path
) -> None:
    def fingerprint(**changed: object) -> str:
        spec = {"checkpoint": str(llama.folder), "template": TEMPLATE} | changed
        return load(SequenceSpec.model_validate(spec)).fingerprint

    assert fingerprint() == fingerprint()
    tiny.sequence_classifier("llama", tmp_path, seed=1)
    others = [
        fingerprint(template="{completion}"),
        fingerprint(truncation="right"),
        fingerprint(dtype="bfloat16"),
        fingerprint(max_tokens=100),
        fingerprint(checkpoint=str(tmp_path)),
    ]
    assert len({fingerprint(), *others}) == 6


def test_loader_of_one_checkpoint_shares_its_base(tmp_path: Path) -> None:
    tiny.base_with_head(tmp_path)
    loader = Loader(torch.device("cpu"))
    spec = SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, head="regression_head")
    one, other = (loader.load(spec, {})._network for _ in range(2))  # type: ignore[attr-defined]
    assert one._backbone is other._backbone
