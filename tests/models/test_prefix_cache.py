"""The prefix cache: what earlier batches computed is not computed again, and scores stay."""

from functools import cache

import pytest
import tiny
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_computed

from alarm_models.modeling.backend_selection import select_backend
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.prefix_cache import CachedBatch, PrefixCache
from alarm_models.modeling.padded import PaddedBackbone
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

PROMPT = tuple(range(100, 130))  # 30 ids
TURN = tuple(range(200, 220))  # 20 ids


def last_read(*samples: tuple[int, ...]) -> list[ModelInput]:
    return [ModelInput(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in samples]


@cache
def both_backbones(architecture: str) -> tuple[PaddedBackbone, PackedBackbone]:
    torch.manual_seed(0)
    model: hf.PreTrainedModel = hf.AutoModel.from_config(tiny.config(architecture)).eval()
    torch.manual_seed(0)
    plain = PaddedBackbone(hf.AutoModel.from_config(tiny.config(architecture)).eval())
    packed = select_backend(model, prefix_cache_bytes=1 << 30)
    assert isinstance(packed, PackedBackbone)
    return plain, packed


@torch.inference_mode()
def num_run(backbone: PackedBackbone, *samples: tuple[int, ...]) -> list[int]:
    batch = last_read(*samples)
    return backbone.forward(batch).num_computed


@pytest.fixture
def llama() -> PackedBackbone:
    _, backbone = both_backbones("llama")
    backbone.clear_prefix_cache()
    return backbone


def test_prefix_cache_of_an_earlier_batch_skips_its_prompt(llama: PackedBackbone) -> None:
    assert num_run(llama, (*PROMPT, 1, 2)) == [32]
    assert num_run(llama, (*PROMPT, 3), (*PROMPT, 4, 5)) == [1, 2]


def test_prefix_cache_of_a_conversation_skips_its_earlier_turns(llama: PackedBackbone) -> None:
    assert num_run(llama, (*PROMPT, 1)) == [31]
    assert num_run(llama, (*PROMPT, *TURN, 1)) == [21]
    assert num_run(llama, (*PROMPT, *TURN, 2), (*PROMPT, 9)) == [1, 1]


def test_prefix_cache_with_shared_system_message_serves_each_prompt(llama: PackedBackbone) -> None:
    assert num_run(llama, (*PROMPT, *TURN, 1)) == [51]
    other = tuple(range(300, 320))
    assert num_run(llama, (*PROMPT, *TURN, 2), (*PROMPT, *other, 3)) == [1, 21]


def test_prefix_cache_computes_read_positions_again(llama: PackedBackbone) -> None:
    assert num_run(llama, (*PROMPT, 1)) == [31]
    assert num_run(llama, (*PROMPT, 1)) == [1]


def test_prefix_cache_once_cleared_computes_the_prompt_again(llama: PackedBackbone) -> None:
    assert num_run(llama, (*PROMPT, 1)) == [31]
    llama.clear_prefix_cache()
    assert num_run(llama, (*PROMPT, 2)) == [31]


def test_prefix_cache_on_out_of_memory_is_cleared(
    llama: PackedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_run(llama, (*PROMPT, 1))
    with monkeypatch.context() as patched:
        patched.setattr(PackedBackbone, "_states", _out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            num_run(llama, (*PROMPT, 2))
    assert num_run(llama, (*PROMPT, 3)) == [31]


def _out_of_memory(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("the device is full")


def test_prefix_cache_over_its_bytes_evicts_the_oldest_batch() -> None:
    cache = PrefixCache(max_bytes=2 * 160)  # each batch below keeps 160 bytes

    def cached_batch(first: int) -> CachedBatch:
        ids = tuple(range(first, first + 20))
        layer = (torch.zeros(1, 1, 20, 1), torch.zeros(1, 1, 20, 1))
        return CachedBatch([ids], [(Span(0, 20),)], {0: layer})

    for first in (0, 100, 200):
        cache.insert(cached_batch(first))
    assert cache.num_bytes == 320
    assert cache.lookup(tuple(range(20)), 0) is None
    assert cache.lookup((*range(200, 218), 7), 0) is not None


def test_prefix_cache_insert_of_too_large_a_batch_keeps_nothing() -> None:
    cache = PrefixCache(max_bytes=100)
    layer = (torch.zeros(1, 1, 20, 1), torch.zeros(1, 1, 20, 1))
    cache.insert(CachedBatch([tuple(range(20))], [(Span(0, 20),)], {0: layer}))
    assert cache.num_bytes == 0


def test_prefix_cache_lookup_finds_batches_of_the_same_owner_only() -> None:
    cache = PrefixCache(max_bytes=10_000)
    ids = tuple(range(20))
    layer = (torch.zeros(1, 1, 40, 1), torch.zeros(1, 1, 40, 1))
    pieces = [(Span(0, 20),), (Span(20, 40),)]
    cache.insert(CachedBatch([ids, ids], pieces, {0: layer}, owners=["a", "b"]))
    found = {owner: cache.lookup(ids, 0, owner) for owner in ("", "a", "b", "c")}
    assert {owner: known and known.spans for owner, known in found.items()} == {
        "": None,
        "a": (Span(0, 20),),
        "b": (Span(20, 40),),
        "c": None,
    }


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_prefix_cache_over_any_batches_is_exact(data: st.DataObject) -> None:
    plain, packed = both_backbones(data.draw(st.sampled_from(["llama", "qwen3", "gemma2"])))
    if data.draw(st.booleans()):
        packed.clear_prefix_cache()
    words = [tuple(range(10 * n, 10 * n + 20)) for n in range(1, 4)]
    for _ in range(data.draw(st.integers(1, 3))):
        samples = data.draw(
            st.lists(
                st.tuples(
                    st.lists(st.sampled_from(words), max_size=3),
                    st.lists(st.integers(1, 3), min_size=1, max_size=3),
                ),
                min_size=1,
                max_size=5,
            )
        )
        batch = []
        for prefix, end in samples:
            ids = (*(one for part in prefix for one in part), *end)
            reads = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=2))
            spans = tuple(Span(at, at + 1) for at in sorted(reads))
            batch.append(ModelInput(ids, spans, truncated=False))
        with torch.inference_mode():
            wanted = torch.cat([plain.forward([one]).states for one in batch])
            assert_computed(packed.forward(batch).states, wanted)
