"""One forward pass that several heads read: as each in a pass of its own, on any backbone."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import save_file
from tolerance import assert_computed, computed

from alarm_models.modeling.inputs import BatchLayout, ModelInput, TokenSequence
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.reward_models.base import NeuralRewardModel, can_share_pass
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample, Span

pytestmark = pytest.mark.numeric

SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("A long question " * 6, "with a long answer " * 5),
    Sample("Hi", "Hello"),
]


def load_heads(
    architecture: str, folder: Path, *specs: dict[str, Any]
) -> tuple[NeuralRewardModel, ...]:
    """Load models of a base with heads `one` and `two`."""
    torch.manual_seed(0)
    base = hf.AutoModel.from_config(tiny.config(architecture))
    tiny.save(base, tiny.tokenizer(bos=True, eos=True), folder)
    heads = {f"{name}.weight": torch.randn(1, 32) for name in ("one", "two")}
    save_file(base.state_dict() | heads, folder / "model.safetensors", metadata={"format": "pt"})
    loader = Loader(torch.device("cpu"))
    loaded = []
    for keys in specs:
        table = {"checkpoint": str(folder), "template": "{prompt} {completion}"} | keys
        model = loader.load(SequenceSpec.model_validate(table), {})
        assert isinstance(model, NeuralRewardModel)
        loaded.append(model)
    return tuple(loaded)


def inputs(model: NeuralRewardModel) -> list[ModelInput]:
    return [one for one in model.prepare(SAMPLES) if isinstance(one, ModelInput)]


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES])
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_shared_pass_gives_each_head_what_a_pass_of_its_own_gives(
    architecture: str, pooling: str, tmp_path: Path
) -> None:
    one, two = load_heads(
        architecture, tmp_path, {"head": "one"}, {"head": "two", "pooling": pooling}
    )
    assert one.pass_key == two.pass_key is not None
    own, other = inputs(one), inputs(two)
    alone, other_alone = one.forward(own), two.forward(other)
    # The second sample is not asked of the other head.
    output, (shared,) = one.forward_shared(own, [(two, [other[0], None, other[2]])])
    assert list(output.num_computed) == list(alone.num_computed)
    for index in range(3):
        assert_computed(output[index], alone[index])
    assert shared[1] is None
    for index in (0, 2):
        rows = shared[index]
        assert rows is not None
        assert_computed(rows, other_alone[index])


def test_models_of_other_texts_or_bases_have_other_pass_keys(tmp_path: Path) -> None:
    one, other_text, other_dtype, with_suffix = load_heads(
        "llama",
        tmp_path,
        {"head": "one"},
        {"head": "two", "template": "{completion}"},
        {"head": "two", "dtype": "bfloat16"},
        {"head": "two", "suffix": "</s>"},
    )
    keys = {model.pass_key for model in (one, other_text, other_dtype, with_suffix)}
    assert len(keys) == 4


def test_models_of_one_classifier_share_its_weights_and_its_pass(tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier("roberta", tmp_path)
    loader = Loader(torch.device("cpu"))
    table = {"checkpoint": str(checkpoint.folder), "template": "{prompt} {completion}"}
    raw, squashed = (
        loader.load(SequenceSpec.model_validate(table | more), {})
        for more in ({}, {"activation": "sigmoid"})
    )
    assert isinstance(raw, NeuralRewardModel)
    assert isinstance(squashed, NeuralRewardModel)
    assert raw.pass_key == squashed.pass_key is not None
    own = inputs(raw)
    output, (shared,) = raw.forward_shared(own, [(squashed, inputs(squashed))])
    for one, row, same in zip(own, output, shared, strict=True):
        assert same is not None
        value, squashed_value = raw.read(one, row).value, squashed.read(one, same).value
        assert value is not None
        assert squashed_value == computed(1 / (1 + math.exp(-value)))


def features(ids: tuple[int, ...], *reads: Span, types: tuple[int, ...] = ()) -> ModelInput:
    return ModelInput(ids, reads, False, token_type_ids=types)


END, START, WHOLE = Span(3, 4), Span(0, 1), Span(0, 4)


@pytest.mark.parametrize(
    ("own", "other", "cost", "can"),
    [
        (features((1, 2, 3, 4), END), features((1, 2, 3, 4), Span(2, 3)), "shared", True),
        (features((1, 2, 3, 4), END), features((1, 2, 3, 5), END), "packed", False),
        (features((1, 2, 3, 4), END), features((1, 2, 3, 4), END, types=(0,) * 4), "packed", False),
        # A read at the start would keep the prompt from coming from the prefix cache.
        (features((1, 2, 3, 4), END), features((1, 2, 3, 4), WHOLE), "shared", False),
        (features((1, 2, 3, 4), END), features((1, 2, 3, 4), WHOLE), "packed", True),
        (features((1, 2, 3, 4), START), features((1, 2, 3, 4), WHOLE), "shared", True),
    ],
)
def test_inputs_share_a_pass_where_tokens_are_the_same_and_no_prefix_is_lost(
    own: ModelInput, other: ModelInput, cost: str, can: bool
) -> None:
    assert can_share_pass(own, other, BatchLayout(cost)) is can


def test_inputs_of_several_sequences_share_no_pass() -> None:
    sequence = TokenSequence((1, 2, 3, 4), (END,))
    several = ModelInput.of_sequences([sequence, sequence], truncated=False)
    assert not can_share_pass(several, several, BatchLayout.PACKED)
