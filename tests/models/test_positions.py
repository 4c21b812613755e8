"""What a model makes of positions, read off the model: its limit, and what its length changes."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from scoring import load, score
from tolerance import computed
from unusual import CONFIGURATIONS, LONGROPE, classifier, features, ids, network, plain

from alarm_models.errors import RecipeError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.network import WholeNetwork
from alarm_models.modeling.packed.positions import first_position, lengths_of
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.types import Sample, Span

pytestmark = pytest.mark.numeric

TEMPLATE = "{prompt} {completion}"


def saved(name: str, folder: Path, **changed: Any) -> hf.PreTrainedModel:
    configuration, small = CONFIGURATIONS[name]
    torch.manual_seed(0)
    made = configuration(**{**small, "vocab_size": 500, **changed})
    model = hf.AutoModelForSequenceClassification.from_config(made).eval()
    tiny.save(model, tiny.tokenizer(bos=True, eos=True), folder)
    return model


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("bart", 66),  # its table has two rows more than it says
        ("data2vec", 65),  # the first position is the one past padding id 0
        ("electra", 66),
        ("esm", 65),
        ("ibert", 65),
        ("luke", 65),
        ("mpnet", 64),  # padding id 1, whatever the configuration says
        ("opt", 66),
        ("qwen2-yarn", 66),  # no table: what the configuration says
    ],
)
def test_limit_is_the_size_of_the_position_tables(name: str, limit: int, tmp_path: Path) -> None:
    saved(name, tmp_path, max_position_embeddings=66)
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE))
    assert model.limit == limit
    (one,) = score(model, [Sample("a " * 100, "Jane.")])
    assert (one.num_tokens, one.truncated) == (limit, True)


def test_limit_without_one_in_the_configuration_is_the_recipes(tmp_path: Path) -> None:
    saved("xlnet", tmp_path)  # its configuration says -1
    model = load(SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE, max_tokens=2000))
    assert model.limit == 2000
    (one,) = score(model, [Sample("a b " * 300, "Jane.")])
    assert (one.num_tokens > 512, one.truncated) == (True, False)


def test_limit_with_dynamic_rope_may_be_its_factor_times_the_positions(tmp_path: Path) -> None:
    saved("llama-dynamic", tmp_path)  # 64 positions, factor 4
    spec = SequenceSpec(checkpoint=str(tmp_path), template=TEMPLATE)
    assert load(spec).limit == 64
    assert load(spec.model_copy(update={"max_tokens": 256})).limit == 256
    with pytest.raises(RecipeError, match="256 positions"):
        load(spec.model_copy(update={"max_tokens": 257}))


def test_first_position_is_the_tables_padding_id() -> None:
    names = ("data2vec", "mpnet", "electra", "phi3")
    assert [first_position(classifier(name)) for name in names] == [0, 1, None, None]


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_lengths_with_longrope_split_at_its_limit(name: str) -> None:
    lengths = lengths_of(classifier(name))
    assert lengths.parts([10, 64, 65, 12, 300]) == [[0, 1, 3], [2, 4]]
    assert lengths.num_classes == 2


def test_lengths_with_dynamic_rope_split_each_length_past_its_limit() -> None:
    lengths = lengths_of(classifier("llama-dynamic"))
    assert lengths.parts([10, 64, 65, 12, 65, 66]) == [[0, 1, 3], [2, 4], [5]]
    assert lengths.num_classes == 1  # of those that may be cached


@pytest.mark.parametrize("name", ["qwen2-yarn", "electra", "xlnet"])
def test_lengths_with_plain_rope_split_nothing(name: str) -> None:
    assert lengths_of(classifier(name)).parts([1, 64, 65, 4000]) == [[0, 1, 2, 3]]


def test_lengths_with_rope_by_layer_type_check_each_type() -> None:
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    made = hf.Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": LONGROPE, "sliding_attention": plain_rope},
    )
    assert lengths_of(hf.AutoModel.from_config(made)).parts([64, 65]) == [[0], [1]]


def test_prefix_cache_of_short_samples_is_not_used_by_a_long_one() -> None:
    model = classifier("phi3")
    served = network(model)
    fresh = classifier("phi3")
    for num_tokens in (50, 90, 50, 60, 100):
        sample = ids(num_tokens, num_tokens, prompt=40)
        (output,) = served.forward(features(served, [sample]))
        assert output.item() == computed(plain(fresh, sample))


def test_dynamic_rope_after_a_long_sample_is_reset() -> None:
    served, fresh = network(classifier("llama-dynamic")), classifier("llama-dynamic")
    for num_tokens in (40, 200, 100, 64, 65, 40):
        sample = ids(num_tokens)
        (output,) = served.forward(features(served, [sample]))
        assert output.item() == computed(plain(fresh, sample))


@pytest.mark.parametrize(
    ("name", "is_stateful"),
    [("phi3", True), ("llama-dynamic", True), ("bigbird", True), ("t5", False)],
)
def test_network_whose_passes_change_it_is_stateful(name: str, is_stateful: bool) -> None:
    model = classifier(name)
    assert (network(model).stateful is not None) == is_stateful


def test_padded_longrope_splits_batches_at_its_limit() -> None:
    configuration, small = CONFIGURATIONS["phi3"]
    torch.manual_seed(0)
    causal: Any = hf.AutoModelForCausalLM.from_config(configuration(**small)).eval()
    served = WholeNetwork(causal, select=lambda logits: logits[:, :3])
    samples = [ids(num_tokens) for num_tokens in (30, 90, 64, 65, 12)]
    batch = [ModelInput(one, (Span(len(one) - 1, len(one)),), truncated=False) for one in samples]
    for sample, output in zip(samples, served.forward(batch), strict=True):
        with torch.inference_mode():
            wanted = causal(input_ids=torch.tensor([sample])).logits[0, -1, :3]
        assert output[0].tolist() == computed(wanted.tolist())
