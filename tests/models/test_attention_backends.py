"""The attention backends of a CPU: equal outputs of each kind of batch, and the choice."""

from random import Random
from typing import Any

import pytest
import torch
from test_packed_backbone import base, features, group, packed_backbone, random_ids
from tolerance import assert_computed

from alarm_models.modeling import backend_selection
from alarm_models.modeling.attention_kernels import (
    FUSED,
    MATMULS,
    fastest_attention,
    measure_attention,
)
from alarm_models.modeling.backend_selection import execution, select_backend
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.packed import matmul as matmul_module
from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, pack
from alarm_models.modeling.packed.matmul import MatmulBackend
from alarm_models.modeling.packed.sdpa import AttentionParams, Window
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

_DIM = 16


@pytest.fixture(autouse=True, params=[1, 1 << 40], ids=["by head", "fused over prefixes"])
def least_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_module, "_MIN_LOGITS", request.param)


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 products here; `ONEDNN_MAX_CPU_ISA` may leave them out."""
    ones = torch.ones(4, 4, dtype=torch.bfloat16)
    try:
        matmul_module._product(ones, ones)
    except RuntimeError:
        return False
    return True


def ids(count: int, seed: int) -> tuple[int, ...]:
    choose = Random(seed)
    return tuple(choose.randrange(30_000) for _ in range(count))


def attended(
    batch: PackedBatch,
    params: AttentionParams,
    backend: AttentionBackend,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return a backend's outputs for random states of four heads."""
    seed = torch.Generator().manual_seed(0)

    def states(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(1, tokens, heads, _DIM, generator=seed).to(dtype).transpose(1, 2)

    query = states(len(batch.ids), 4)
    key, value = states(batch.num_keys, kv_heads), states(batch.num_keys, kv_heads)
    return backend.attend(query, key, value, ForwardContext(batch, (), ()), params)


def tree() -> PackedBatch:
    """Pack conversations with prefixes on two levels, one of them longer than a piece, and more.

    After the prompt come nodes of few tokens, of more than a batched node, and of long ones.
    """
    prompt = ids(300, 1)
    turns = [prompt + ids(length, length) for length in (30, 20)]
    samples = [turn + ids(length, length) for turn in turns for length in (3, 9, 25, 140)]
    return pack([*samples, prompt + ids(600, 3), ids(7, 2)], share=True)


def comb(depth: int) -> PackedBatch:
    """Pack a conversation of ``depth`` turns, and after each turn an answer that ends there."""
    turns = [ids(20, 100 + turn) for turn in range(depth)]
    prefixes = [tuple(one for turn in turns[: end + 1] for one in turn) for end in range(depth)]
    # Smaller ids come first, so that an answer is between a turn and the next one.
    return pack([(*prefix, *[0] * 79, end) for end, prefix in enumerate(prefixes)], share=True)


def ragged() -> PackedBatch:
    return pack([ids(length, length) for length in (5, 30, 31, 1, 300, 530, 90)], share=False)


each_matmul = pytest.mark.parametrize("matmul", MATMULS, ids=lambda one: one.name)


@each_matmul
@pytest.mark.parametrize(("kv_heads", "softcap"), [(4, None), (2, 3.0)])
def test_matmul_over_prefixes_of_depth_two_equals_fused(
    matmul: MatmulBackend, kv_heads: int, softcap: float | None
) -> None:
    params = AttentionParams(0.3, causal=True, softcap=softcap)
    fused, outputs = (attended(tree(), params, one, kv_heads) for one in (FUSED, matmul))
    assert_computed(outputs, fused)


@each_matmul
@pytest.mark.parametrize(("depth", "is_too_deep"), [(5, False), (12, True)])
def test_matmul_over_prefixes_in_many_spans_equals_fused(
    matmul: MatmulBackend, depth: int, is_too_deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, params = comb(depth), AttentionParams(0.3, causal=True)
    expected = attended(batch, params, FUSED)
    num_spans = []
    attend_prefix = matmul_module._attend_prefix

    def counted(*given: Any) -> None:
        num_spans.append(len(given[4].path))
        attend_prefix(*given)

    monkeypatch.setattr(matmul_module, "_attend_prefix", counted)
    assert_computed(attended(batch, params, matmul), expected)
    # The fused kernel, which merges one span after another, runs if the tree is too deep.
    assert max(num_spans, default=0) == (0 if is_too_deep else depth - 1)


@each_matmul
def test_matmul_of_ragged_encoder_samples_equals_fused(matmul: MatmulBackend) -> None:
    params = AttentionParams(0.3, causal=False)
    fused, outputs = (attended(ragged(), params, one) for one in (FUSED, matmul))
    assert_computed(outputs, fused)


@each_matmul
@pytest.mark.parametrize("window", [Window(20, 0), Window(9, 9), Window(20, 20, True)])
def test_matmul_within_windows_equals_fused(matmul: MatmulBackend, window: Window) -> None:
    params = AttentionParams(0.3, causal=window.ahead == 0, window=window)
    fused, outputs = (attended(ragged(), params, one, 2) for one in (FUSED, matmul))
    assert_computed(outputs, fused)


@pytest.mark.skipif(not multiplies_bfloat16(), reason="oneDNN has no bfloat16 for this processor")
@pytest.mark.parametrize(("scale", "error"), [(0.3, 1e-2), (4.0, 3e-2)])
@pytest.mark.parametrize("backend", [FUSED, *MATMULS], ids=lambda one: one.name)
def test_attention_in_bfloat16_is_as_near_to_float32_as_its_rounding(
    backend: AttentionBackend, scale: float, error: float
) -> None:
    params = AttentionParams(scale, causal=True)
    exact = attended(tree(), params, FUSED, 2)
    outputs = attended(tree(), params, backend, 2, torch.bfloat16)
    assert (outputs - exact).norm() <= error * exact.norm()


@each_matmul
@torch.inference_mode()
def test_select_backend_on_matmul_uses_cached_prefixes(
    matmul: MatmulBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: matmul)
    backbone = select_backend(base("qwen3"), prefix_cache_bytes=1 << 24)
    assert f"attention={matmul.name} " in execution(backbone)
    # Reads alone are computed, so only the last token is read here.
    batch = [
        ModelInput(one, (Span(len(one) - 1, len(one)),), truncated=False)
        for one in (*group(4, 30, 5), random_ids(90, 6))
    ]
    expected = packed_backbone("qwen3").forward(batch).states
    # The second time what follows the prompt is too short to be cached; of the last sample one
    # token is computed.
    for num_computed in (35 + 6 + 7 + 8 + 90, 5 + 6 + 7 + 8 + 1):
        states = backbone.forward(batch)
        assert_computed(states.states, expected)
        assert sum(states.num_computed) == num_computed


@torch.inference_mode()
def test_select_backend_if_matmul_fails_uses_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    batch = features(random_ids(9, 1))
    expected = packed_backbone("llama").forward(batch).states
    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: MATMULS[0])
    monkeypatch.setattr(MatmulBackend, "attend", broken)
    backbone = select_backend(base("llama"))
    assert "attention=alarm_packed" in execution(backbone)
    assert_computed(backbone.forward(batch).states, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_on_any_processor_is_measured_or_left_alone(dtype: torch.dtype) -> None:
    assert fastest_attention(dtype, torch.get_num_threads()) in (FUSED, *MATMULS)


def test_measure_attention_of_an_inexact_backend_selects_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MatmulBackend, "attend", lambda self, query, *_: query.transpose(1, 2))
    assert measure_attention(torch.float32, 1) is FUSED


def test_measure_attention_without_operators_selects_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(MatmulBackend, "attend", missing)
    assert measure_attention(torch.float32, 1) is FUSED


def test_fastest_attention_if_deterministic_is_not_measured() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest_attention.__wrapped__(torch.float32, 1) is FUSED
    finally:
        torch.use_deterministic_algorithms(False)
