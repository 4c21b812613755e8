"""VarlenBackend beside PaddedBackbone.

Its kernel runs on CUDA alone; elsewhere a twin that attends sequence by sequence, as torch's
documentation of `varlen_attn` has it, stands in for the kernel, and all else is ours.
"""

from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packed_backbone import alone, base, features, group, packed_backbone, random_ids
from tolerance import assert_computed

from alarm_models.modeling.attention_kernels import COMPILED, FUSED
from alarm_models.modeling.backend_selection import select_backend
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.batch import pack
from alarm_models.modeling.packed.sdpa import attend, mask_to_bias
from alarm_models.modeling.packed.varlen import VarlenBackend, varlen, varlen_batches
from alarm_models.modeling.padded import PaddedBackbone

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SERVED = ["llama", "qwen3", "modernbert", "roberta"]


def twin(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert return_aux.lse
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    out, lse = torch.zeros_like(query), query.new_zeros(query.shape[1], len(query))
    times = query.shape[1] // key.shape[1]
    for n in range(len(cu_seq_q) - 1):
        own, keys = slice(*cu_seq_q[n : n + 2]), slice(*cu_seq_k[n : n + 2])
        q = query[own].transpose(0, 1)[None]
        k, v = (
            part[keys].repeat_interleave(times, 1).transpose(0, 1)[None] for part in (key, value)
        )
        # Of unlike lengths, the last query stands at the last key.
        place = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        distance = torch.arange(k.shape[2]) - place
        left, right = window_size
        mask = torch.ones_like(distance, dtype=torch.bool)
        mask &= (distance >= -left) | (left < 0)
        mask &= (distance <= right) | (right < 0)
        attended = attend(q, k, v, scale, bias=mask_to_bias(mask, q.dtype))
        out[own], lse[:, own] = attended.out[0].transpose(0, 1), attended.lse[0]
    return out, lse


def varlen_backbone(architecture: str, **options: Any) -> PackedBackbone:
    return PackedBackbone(base(architecture), VarlenBackend(), **options)


@pytest.fixture(autouse=True)
def _twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", twin)


@pytest.mark.parametrize("architecture", SERVED)
@torch.inference_mode()
def test_varlen_states_equal_those_of_each_sample_alone(architecture: str) -> None:
    batch = features(*group(4, 30, 5), random_ids(1, 5), random_ids(90, 6), random_ids(17, 7))
    backbone = varlen_backbone(architecture, share=architecture in tiny.DECODERS)
    assert_computed(backbone.forward(batch).states, alone(architecture, batch))


@torch.inference_mode()
def test_varlen_longformer_is_exact_within_its_windows() -> None:
    batch = features(random_ids(90, 6), random_ids(17, 7), random_ids(200, 8))
    plain = PaddedBackbone(base("longformer"), has_global=False)
    wanted = torch.cat([plain.forward([one]).states for one in batch])
    backbone = varlen_backbone("longformer", share=False)
    assert_computed(backbone.forward(batch).states, wanted)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=7))
@torch.inference_mode()
def test_varlen_of_any_prefix_tree_is_exact_also_when_cached(paths: list[list[int]]) -> None:
    # Each step of a path is 18 ids, so that common steps are shared on several levels.
    samples = [sum((random_ids(18, step) for step in path), ()) for path in paths]
    batch = features(*samples)
    # Read the last token alone: what is read has to be computed, the rest may be cached.
    batch = [type(one)(one.ids, one.read_positions[-1:], truncated=False) for one in batch]
    backbone = _with_prefix_cache()
    wanted = alone("llama", batch)
    for _ in range(2):
        assert_computed(backbone.forward(batch).states, wanted)


_KEPT: list[PackedBackbone] = []


def _with_prefix_cache() -> PackedBackbone:
    if not _KEPT:
        _KEPT.append(varlen_backbone("llama", share=True, prefix_cache_bytes=1 << 24))
    return _KEPT[0]


def test_varlen_batches_have_one_call_a_prefix_depth() -> None:
    system, one, other = range(20), range(100, 120), range(200, 220)
    samples = [(*system, *one, 7), (*system, *one, 8), (*system, *other, 9)]
    own, first, second = varlen_batches(pack(samples, share=True), CPU)
    # The row: the system message, `one`, 7, 8, then `other` with 9.
    assert own.cu_seqlens_q.tolist() == [0, 20, 40, 41, 42, 63]
    assert own.queries.tolist() == own.keys.tolist() == list(range(63))
    assert first.queries.tolist() == list(range(20, 63))
    assert first.keys.tolist() == list(range(20))
    assert second.queries.tolist() == [40, 41]
    assert second.keys.tolist() == list(range(20, 40))
    assert (own.max_seqlen_q, first.max_seqlen_q, second.max_seqlen_k) == (21, 43, 20)


def test_varlen_with_softcap_is_refused() -> None:
    with pytest.raises(ValueError, match="does not support a softcap"):
        varlen_backbone("gemma2", share=True).forward(features(random_ids(9, 1)))


def test_select_backend_on_a_cpu_selects_one_of_a_cpu() -> None:
    name = packed_backbone("llama")._model.config._attn_implementation
    assert name in {one.name for one in (FUSED, COMPILED)}


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", SERVED)
@torch.inference_mode()
def test_select_backend_on_a_gpu_selects_varlen(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model: hf.PreTrainedModel = base(architecture).to("cuda", torch.bfloat16)  # type: ignore[arg-type]
    batch = features(*group(4, 30, 5), random_ids(90, 6))
    wanted = torch.cat(
        [PaddedBackbone(model, has_global=False).forward([one]).states for one in batch]
    )
    backbone = select_backend(model)
    assert isinstance(backbone, PackedBackbone)
    assert model.config._attn_implementation == "alarm_varlen"
    assert (backbone.forward(batch).states - wanted).norm() <= 5e-2 * wanted.norm()
