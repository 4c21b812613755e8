"""The two attention backends of a CPU: equal outputs of each kind of batch, and the choice."""

from random import Random

import pytest
import torch
from test_packed_backbone import base, features, group, packed_backbone, random_ids
from tolerance import assert_computed

from alarm_models.modeling import backend_selection
from alarm_models.modeling.attention_kernels import (
    FUSED,
    MATMUL,
    fastest_attention,
    measure_attention,
)
from alarm_models.modeling.backend_selection import execution, select_backend
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, pack
from alarm_models.modeling.packed.sdpa import AttentionParams, Window
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

_DIM = 16


def ids(count: int, seed: int) -> tuple[int, ...]:
    choose = Random(seed)
    return tuple(choose.randrange(30_000) for _ in range(count))


def attended(
    batch: PackedBatch, params: AttentionParams, kv_heads: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of both backends for random states of four heads."""
    seed = torch.Generator().manual_seed(0)

    def states(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(1, tokens, heads, _DIM, generator=seed).to(dtype).transpose(1, 2)

    query = states(len(batch.ids), 4)
    key, value = states(batch.num_keys, kv_heads), states(batch.num_keys, kv_heads)
    fused, matmul = (
        backend.attend(query, key, value, ForwardContext(batch, (), ()), params)
        for backend in (FUSED, MATMUL)
    )
    return fused, matmul


def tree() -> PackedBatch:
    """Pack conversations with prefixes on two levels, one of them longer than a piece, and more."""
    prompt = ids(300, 1)
    turns = [prompt + ids(length, length) for length in (30, 20)]
    samples = [turn + ids(length, length) for turn in turns for length in (3, 9, 25)]
    return pack([*samples, ids(7, 2)], share=True)


def ragged() -> PackedBatch:
    return pack([ids(length, length) for length in (5, 30, 31, 1, 300, 530, 90)], share=False)


@pytest.mark.parametrize(("kv_heads", "softcap"), [(4, None), (2, 3.0)])
def test_matmul_over_prefixes_of_depth_two_equals_fused(
    kv_heads: int, softcap: float | None
) -> None:
    params = AttentionParams(0.3, causal=True, softcap=softcap)
    fused, matmul = attended(tree(), params, kv_heads)
    assert_computed(matmul, fused)


def test_matmul_of_ragged_encoder_samples_equals_fused() -> None:
    fused, matmul = attended(ragged(), AttentionParams(0.3, causal=False), 4)
    assert_computed(matmul, fused)


@pytest.mark.parametrize("window", [Window(20, 0), Window(9, 9), Window(20, 20, True)])
def test_matmul_within_windows_equals_fused(window: Window) -> None:
    params = AttentionParams(0.3, causal=window.ahead == 0, window=window)
    fused, matmul = attended(ragged(), params, 2)
    assert_computed(matmul, fused)


def test_matmul_in_bfloat16_is_as_near_to_float32_as_its_rounding() -> None:
    params = AttentionParams(0.3, causal=True)
    exact, _ = attended(tree(), params, 2)
    for outputs in attended(tree(), params, 2, torch.bfloat16):
        assert (outputs - exact).norm() <= 1e-2 * exact.norm()


@torch.inference_mode()
def test_select_backend_on_matmul_uses_cached_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: MATMUL)
    backbone = select_backend(base("qwen3"), prefix_cache_bytes=1 << 24)
    assert "attention=alarm_matmul" in execution(backbone)
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

    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: MATMUL)
    monkeypatch.setattr(type(MATMUL), "attend", broken)
    backbone = select_backend(base("llama"))
    assert "attention=alarm_packed" in execution(backbone)
    batch = features(random_ids(9, 1))
    assert_computed(backbone.forward(batch).states, packed_backbone("llama").forward(batch).states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_on_any_processor_is_measured_or_left_alone(dtype: torch.dtype) -> None:
    assert fastest_attention(dtype, torch.get_num_threads()) in (FUSED, MATMUL)


def test_measure_attention_of_an_inexact_backend_selects_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(MATMUL), "attend", lambda self, query, *_: query.transpose(1, 2))
    assert measure_attention(torch.float32, 1) is FUSED


def test_fastest_attention_if_deterministic_is_not_measured() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest_attention.__wrapped__(torch.float32, 1) is FUSED
    finally:
        torch.use_deterministic_algorithms(False)
