"""PackedBackbone beside PaddedBackbone: the same states from every architecture."""

import copy
from functools import cache
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ARCHITECTURES, DECODERS
from tolerance import assert_computed

from alarm_models.modeling.backend_selection import select_backend
from alarm_models.modeling.inputs import ModelInput, ReadStates
from alarm_models.modeling.packed import last_layer
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.batch import pack
from alarm_models.modeling.packed.sdpa import (
    SdpaBackend,
    Window,
    attend,
    attend_blocks,
    mask_to_bias,
    window_blocks,
)
from alarm_models.modeling.padded import PaddedBackbone
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

PACKABLE = [name for name in ARCHITECTURES if name != "deberta-v2"]


def base(architecture: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model: hf.PreTrainedModel = hf.AutoModel.from_config(tiny.config(architecture)).eval()
    return model


def features(*samples: tuple[int, ...]) -> list[ModelInput]:
    return [
        ModelInput(ids, tuple(Span(at, at + 1) for at in range(len(ids))), truncated=False)
        for ids in samples
    ]


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    choose = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(10, 500, (count,), generator=choose).tolist())


def group(num: int, shared: int, own: int) -> list[tuple[int, ...]]:
    prompt = random_ids(shared, 99)
    return [prompt + random_ids(own + index, index) for index in range(num)]


@cache
def padded_backbone(architecture: str) -> PaddedBackbone:
    return PaddedBackbone(base(architecture), has_global=architecture == "longformer")


@cache
def packed_backbone(architecture: str) -> PackedBackbone:
    backbone = select_backend(base(architecture), has_global=architecture == "longformer")
    assert isinstance(backbone, PackedBackbone)
    return backbone


@torch.inference_mode()
def alone(architecture: str, batch: list[ModelInput]) -> torch.Tensor:
    return torch.cat([padded_backbone(architecture).forward([one]).states for one in batch])


@torch.inference_mode()
def packed(architecture: str, batch: list[ModelInput]) -> ReadStates:
    return packed_backbone(architecture).forward(batch)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_states_equal_those_of_each_sample_alone(architecture: str) -> None:
    batch = features(*group(4, 30, 5), random_ids(1, 5), random_ids(90, 6), random_ids(17, 7))
    states = packed(architecture, batch).states
    assert_computed(states, alone(architecture, batch))


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_reads_of_some_tokens_equal_their_states_among_all(architecture: str) -> None:
    samples = [*group(3, 30, 5), random_ids(90, 6)]
    batch = [
        ModelInput(ids, (Span(4, 5), Span(len(ids) - 1, len(ids)), Span(0, 3)), truncated=False)
        for ids in samples
    ]
    states = packed(architecture, batch).states
    assert_computed(states, alone(architecture, batch))


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_reads_of_all_tokens_but_one_equal_their_states_among_all(architecture: str) -> None:
    samples = [random_ids(90, 6), random_ids(17, 7), *group(3, 30, 5)]
    batch = [ModelInput(ids, (Span(1, len(ids)),), truncated=False) for ids in samples]
    states = packed(architecture, batch).states
    assert_computed(states, alone(architecture, batch))


@pytest.mark.parametrize("architecture", ["llama", "roberta"])
def test_packed_reads_of_every_token_run_the_last_layer_itself(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = features(random_ids(90, 6), random_ids(17, 7))
    reference = alone(architecture, batch)
    backbone = packed_backbone(architecture)
    monkeypatch.delattr(last_layer, "attend_reads")
    with torch.inference_mode():
        assert_computed(backbone.forward(batch).states, reference)


@pytest.mark.parametrize(
    ("architecture", "is_pruned"),
    [("llama", True), ("qwen3", True), ("roberta", True), ("gemma2", False), ("modernbert", False)],
)
def test_select_backend_with_known_model_type_prunes_last_layer(
    architecture: str, is_pruned: bool
) -> None:
    assert packed_backbone(architecture).is_pruned is is_pruned


@pytest.mark.parametrize("architecture", DECODERS)
def test_packed_causal_model_computes_a_shared_prompt_once(architecture: str) -> None:
    batch = features(*(ids[:16] for ids in group(4, 16, 0)), *group(2, 300, 0))
    assert packed(architecture, batch[:4]).num_computed == [16, 0, 0, 0]


def test_packed_chain_of_prefixes_equals_each_alone() -> None:
    steps = random_ids(40 * 16, 3)
    prefixes = [steps[: 16 * (level + 1)] for level in range(40)]
    batch = [ModelInput(one, (Span(len(one) - 1, len(one)),), truncated=False) for one in prefixes]
    states, num_computed = packed("llama", batch)
    assert num_computed == [16] * 40
    some = [0, 19, 39]
    assert_computed(states[some], alone("llama", [batch[index] for index in some]))


@pytest.mark.parametrize("architecture", ["roberta", "modernbert", "longformer"])
def test_packed_encoder_shares_no_prefix(architecture: str) -> None:
    batch = features(*group(3, 30, 5))
    assert packed(architecture, batch).num_computed == [35, 36, 37]


def test_packed_samples_past_a_sliding_window_are_exact_and_not_shared() -> None:
    batch = features(*group(3, 40, 9))  # gemma2's window is 16 here
    states, num_computed = packed("gemma2", batch)
    assert num_computed == [49, 50, 51]
    assert_computed(states, alone("gemma2", batch))


@pytest.mark.parametrize(
    ("architecture", "is_told"), [("mistral", True), ("qwen2_moe", False), ("phimoe", False)]
)
@torch.inference_mode()
def test_long_window_in_the_mask_alone_is_not_ignored(architecture: str, is_told: bool) -> None:
    # Qwen2-MoE and PhiMoE apply their window by the mask, which packed batches do not have.
    more: dict[str, Any] = {
        "mistral": {},
        "qwen2_moe": {
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"],
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        "phimoe": {"num_local_experts": 4},
    }[architecture]
    config = hf.CONFIG_MAPPING[architecture](
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=2048,
        initializer_range=0.3, pad_token_id=0, sliding_window=600, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(config).eval()
    sample = random_ids(900, 3)
    last = [ModelInput(sample, (Span(899, 900),), truncated=False)]
    (wanted,) = PaddedBackbone(model).forward(last).states
    served = select_backend(model)
    assert isinstance(served, PackedBackbone) == is_told
    assert_computed(served.forward(last).states[0], wanted)


@torch.inference_mode()
def test_error_in_16_bits_does_not_grow_with_the_number_of_prefixes() -> None:
    torch.manual_seed(0)
    config = tiny.config("llama", num_hidden_layers=4, max_position_embeddings=2048)
    model = hf.AutoModel.from_config(config).bfloat16().eval()
    exact = copy.deepcopy(model).float()
    whole = random_ids(600, 4)
    expected = exact(input_ids=torch.tensor([whole])).last_hidden_state[0, -1]
    backbone = PackedBackbone(model, SdpaBackend(), share=True)

    def error(depth: int) -> float:
        samples = [whole[: 600 - 16 * n] for n in range(depth)]
        batch = [
            ModelInput(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in samples
        ]
        state = backbone.forward(batch).states[0].float()
        return float((state - expected).norm() / expected.norm())

    assert error(35) < 1.3 * error(1)


def test_packed_padding_id_inside_a_sample_keeps_robertas_positions() -> None:
    batch = features((5, tiny.PAD, 6, 7), (8, 9))
    states = packed("roberta", batch).states
    assert_computed(states, alone("roberta", batch))


def test_select_backend_with_custom_attention_pads() -> None:
    assert isinstance(select_backend(base("deberta-v2")), PaddedBackbone)


def test_select_backend_of_a_padded_model_leaves_it_unchanged() -> None:
    model = base("deberta-v2")
    before = model.config._attn_implementation
    select_backend(model)
    assert model.config._attn_implementation == before


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_packed_group_of_any_lengths_is_exact(data: st.DataObject) -> None:
    shared = data.draw(st.integers(0, 40))
    owns = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=6))
    prompt = random_ids(shared, 1)
    samples = [prompt + random_ids(own, seed) for seed, own in enumerate(owns)]
    batch = features(*(ids or (7,) for ids in samples))
    architecture = data.draw(st.sampled_from(["llama", "qwen3"]))
    states = packed(architecture, batch).states
    assert_computed(states, alone(architecture, batch))


@pytest.mark.parametrize(("has_global", "reads"), [(True, (0,)), (False, (0, 3, 60, 170))])
@torch.inference_mode()
def test_packed_longformer_last_layer_with_few_reads_is_exact(
    has_global: bool, reads: tuple[int, ...]
) -> None:
    batch = [
        ModelInput(
            random_ids(length, length), tuple(Span(at, at + 1) for at in own), truncated=False
        )
        for length in (9, 40, 90, 200)
        if (own := [at for at in reads if at < length])
    ]
    model = base("longformer")
    plain = PaddedBackbone(model, has_global=has_global)
    wanted = torch.cat([plain.forward([one]).states for one in batch])
    backbone = PackedBackbone(model, SdpaBackend(), share=False, has_global=has_global)
    assert_computed(backbone.forward(batch).states, wanted)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=3),
    st.integers(0, 150),
    st.integers(0, 150),
    st.booleans(),
    st.booleans(),
)
def test_window_blocks_equal_masked_attention(
    lengths: list[int], back: int, ahead: int, first_is_global: bool, softcapped: bool
) -> None:
    torch.manual_seed(sum(lengths))
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 8)
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    distance = place - place.unsqueeze(1)
    mask = (distance >= -back) & (distance <= ahead) | (place == 0) & torch.tensor(first_is_global)
    mask &= sample == sample.unsqueeze(1)
    softcap = 3.0 if softcapped else None
    bias = mask_to_bias(mask, query.dtype)
    wanted = attend(query, key, value, 0.3, softcap=softcap, bias=bias).out
    samples = [tuple(range(1000 * n, 1000 * n + length)) for n, length in enumerate(lengths)]
    layout = pack(samples, share=False)
    band = Window(back, ahead, first_is_global)
    blocks = window_blocks(layout, query.device, query.dtype, band)
    got = torch.empty_like(query)
    attend_blocks(query, key, value, got, 0.3, blocks, softcap)
    assert_computed(got, wanted)
