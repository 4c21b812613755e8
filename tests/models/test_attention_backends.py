"""The attention backends of a CPU: equal outputs of each kind of batch, and the choice."""

import math
from random import Random

import pytest
import torch
from test_packed_backbone import base, features, group, packed_backbone, random_ids
from tolerance import assert_computed

from alarm_models.modeling import backend_selection
from alarm_models.modeling.attention_kernels import (
    COMPILED,
    FUSED,
    fastest_attention,
    measure_attention,
)
from alarm_models.modeling.backend_selection import execution, select_backend
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.kernels.library import compiled_kernels
from alarm_models.modeling.packed import compiled
from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, pack
from alarm_models.modeling.packed.compiled import CompiledBackend
from alarm_models.modeling.packed.sdpa import AttentionParams, Window
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

needs_kernels = pytest.mark.skipif(
    compiled_kernels(torch.float32) is None, reason="no compiled kernels for this processor"
)

_DIM = 16


def ids(count: int, seed: int) -> tuple[int, ...]:
    choose = Random(seed)
    return tuple(choose.randrange(30_000) for _ in range(count))


def attended(
    batch: PackedBatch,
    params: AttentionParams,
    backend: AttentionBackend,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float32,
    dim: int = _DIM,
) -> torch.Tensor:
    """Return a backend's outputs for random states of four heads."""
    seed = torch.Generator().manual_seed(0)

    def states(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(1, tokens, heads, dim, generator=seed).to(dtype).transpose(1, 2)

    query = states(len(batch.ids), 4)
    key, value = states(batch.num_keys, kv_heads), states(batch.num_keys, kv_heads)
    return backend.attend(query, key, value, ForwardContext(batch, (), ()), params)


def tree() -> PackedBatch:
    """Pack conversations with prefixes on two levels, and more.

    After the prompt come nodes of less than a block of queries, and of many.
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


@needs_kernels
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dim", [8, 10, 32, 80])
def test_compiled_attention_over_prefixes_of_depth_two_equals_fused(
    kv_heads: int, dim: int
) -> None:
    params = AttentionParams(0.3, causal=True)
    fused, outputs = (attended(tree(), params, one, kv_heads, dim=dim) for one in (FUSED, COMPILED))
    assert_computed(outputs, fused)


@needs_kernels
@pytest.mark.parametrize("size", [1, 7, 16, 32])
def test_plan_of_blocks_of_any_size_has_each_query_and_key_once(size: int) -> None:
    for batch, causal, window in [
        (tree(), True, None),
        (comb(5), True, None),
        (ragged(), False, None),
        (ragged(), True, Window(20, 0)),
        (ragged(), False, Window(9, 9)),
        (ragged(), False, Window(20, 20, True)),
    ]:
        plan = compiled._plan(batch, causal, window, size)
        assert plan is not None
        assert seen_by_plan(plan) == seen(batch, causal, window)


def seen_by_plan(plan: compiled._Plan) -> list[list[int]]:
    """Return the keys that each query attends to."""
    keys: list[list[int]] = []
    for first_query, num_queries, first_segment, last_segment in plan.blocks.tolist():
        assert first_query == len(keys)
        of_block: list[list[int]] = [[] for _ in range(num_queries)]
        for first, last, start, end, least, most in plan.segments[
            first_segment:last_segment
        ].tolist():
            for query in range(start, min(end, num_queries)):
                of_block[query] += (
                    key
                    for key in range(first, last)
                    if least <= key - first - (query - start) <= most
                )
        keys += of_block
    return [sorted(of_query) for of_query in keys]


def seen(batch: PackedBatch, causal: bool, window: Window | None) -> list[list[int]]:
    """Return the same from the nodes."""
    keys: list[list[int]] = [[] for _ in batch.ids]
    for node in batch.nodes:
        for after in range(node.row.end, node.subtree_end):
            keys[after] += range(*node.keys)
        length = node.row.end - node.row.start
        for query in range(length):
            for key in range(length):
                if window is not None:
                    is_seen = -window.back <= key - query <= window.ahead
                    is_seen |= window.first_is_global and key == 0
                else:
                    is_seen = not causal or key <= query
                if is_seen:
                    keys[node.row.start + query].append(node.keys.start + key)
    return [sorted(of_query) for of_query in keys]


@needs_kernels
@pytest.mark.parametrize("is_too_deep", [False, True])
def test_compiled_attention_over_prefixes_in_many_spans_equals_fused(
    is_too_deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, params = comb(12), AttentionParams(0.3, causal=True)
    expected = attended(batch, params, FUSED)
    if is_too_deep:
        monkeypatch.setattr(compiled, "_MAX_SPANS", 2)
    assert (compiled._plan(batch, True, None, 32) is None) == is_too_deep
    assert_computed(attended(batch, params, CompiledBackend()), expected)


@needs_kernels
def test_compiled_attention_to_the_states_of_another_row_is_refused() -> None:
    batch, params = ragged(), AttentionParams(0.3, causal=False)
    query = torch.randn(1, 4, len(batch.ids), _DIM)
    key = torch.randn(1, 4, 30, _DIM)  # as a decoder attends to its encoder
    with pytest.raises(ValueError, match="987 queries and 30 keys in one packed row"):
        COMPILED.attend(query, key, key, ForwardContext(batch, (), ()), params)


@needs_kernels
@pytest.mark.parametrize("params", [AttentionParams(0.3, causal=True, softcap=3.0)])
def test_compiled_attention_with_a_soft_cap_is_that_of_torch(params: AttentionParams) -> None:
    fused, outputs = (attended(tree(), params, one) for one in (FUSED, COMPILED))
    assert torch.equal(outputs, fused)


@needs_kernels
def test_compiled_attention_of_ragged_encoder_samples_equals_fused() -> None:
    params = AttentionParams(0.3, causal=False)
    fused, outputs = (attended(ragged(), params, one) for one in (FUSED, COMPILED))
    assert_computed(outputs, fused)


@needs_kernels
@pytest.mark.parametrize("window", [Window(20, 0), Window(9, 9), Window(20, 20, True)])
def test_compiled_attention_within_windows_equals_fused(window: Window) -> None:
    params = AttentionParams(0.3, causal=window.ahead == 0, window=window)
    fused, outputs = (attended(ragged(), params, one, 2) for one in (FUSED, COMPILED))
    assert_computed(outputs, fused)


@needs_kernels
def test_compiled_attention_of_large_logits_equals_fused() -> None:
    # Logits of a thousand are rounded to 1e-4.
    params = AttentionParams(60.0, causal=True)
    fused, outputs = (attended(tree(), params, one) for one in (FUSED, COMPILED))
    assert (outputs - fused).norm() <= 1e-4 * fused.norm()


@needs_kernels
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("states", ["key", "value"])
def test_compiled_attention_to_what_is_no_number_breaks_no_other_sample_or_head(
    states: str, broken: float
) -> None:
    # All queries are in the same blocks.
    prompt = ids(20, 1)
    batch = pack([prompt + ids(5, 2), prompt + ids(6, 3), ids(7, 4), ids(8, 5)], share=True)
    seed = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, len(batch.ids), _DIM, generator=seed)
    start, end = next(node.row for node in batch.nodes if node.row.end - node.row.start == 5)
    (key if states == "key" else value)[0, 1, start + 2] = broken
    params = AttentionParams(0.3, causal=True)
    outputs = COMPILED.attend(query, key, value, ForwardContext(batch, (), ()), params)
    is_number = torch.isfinite(outputs[0]).all(-1)  # [tokens, heads]
    if states == "value" or math.isnan(broken):
        assert not is_number[start + 2 : end, 1].any()
    is_number[start:end, 1] = True
    assert is_number.all()


@pytest.mark.parametrize(("scale", "error"), [(0.3, 1e-2), (4.0, 3e-2)])
@pytest.mark.parametrize("backend", [FUSED, COMPILED], ids=lambda one: one.name)
def test_attention_in_bfloat16_is_as_near_to_float32_as_its_rounding(
    backend: AttentionBackend, scale: float, error: float
) -> None:
    if not backend.supports(torch.device("cpu"), torch.bfloat16):
        pytest.skip("no compiled kernels in bfloat16 for this processor")
    params = AttentionParams(scale, causal=True)
    exact = attended(tree(), params, FUSED, 2)
    outputs = attended(tree(), params, backend, 2, torch.bfloat16)
    assert (outputs - exact).norm() <= error * exact.norm()


@needs_kernels
@torch.inference_mode()
def test_select_backend_on_compiled_attention_uses_cached_prefixes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: COMPILED)
    backbone = select_backend(base("qwen3"), prefix_cache_bytes=1 << 24)
    assert "attention=alarm_compiled " in execution(backbone)
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
def test_select_backend_if_compiled_attention_fails_uses_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    batch = features(random_ids(9, 1))
    expected = packed_backbone("llama").forward(batch).states
    monkeypatch.setattr(backend_selection, "fastest_attention", lambda *_: COMPILED)
    monkeypatch.setattr(CompiledBackend, "attend", broken)
    backbone = select_backend(base("llama"))
    assert "attention=alarm_packed" in execution(backbone)
    assert_computed(backbone.forward(batch).states, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_on_any_processor_is_measured_or_left_alone(dtype: torch.dtype) -> None:
    assert fastest_attention(dtype, torch.get_num_threads()) in (FUSED, COMPILED)


def test_measure_attention_of_an_inexact_backend_selects_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CompiledBackend, "attend", lambda self, query, *_: query.transpose(1, 2))
    assert measure_attention(torch.float32, 1) is FUSED


def test_fastest_attention_if_deterministic_is_not_measured() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest_attention.__wrapped__(torch.float32, 1) is FUSED
    finally:
        torch.use_deterministic_algorithms(False)
