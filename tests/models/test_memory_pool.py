"""The memory pool of a prefix cache: blocks do not overlap, return to it, and are reused."""

from random import Random

import pytest
import torch

from alarm_models.modeling.packed.memory_pool import MemoryBlock, MemoryPool
from alarm_models.modeling.packed.prefix_cache import BatchKV, CachedBatch, PrefixCache
from alarm_models.types import Span


def filled(block: MemoryBlock | None, number: float) -> tuple[MemoryBlock, torch.Tensor]:
    """Write a number into all of a block."""
    assert block is not None
    tensor = block.tensor(torch.Size([block.num_bytes // 4]), torch.float32)
    return block, tensor.fill_(number)


def test_pool_hands_out_its_memory_once() -> None:
    pool = MemoryPool(256)
    blocks = [filled(pool.allocate(64), number) for number in range(4)]
    assert pool.allocate(1) is None
    assert [tensor.unique().tolist() for _, tensor in blocks] == [[0], [1], [2], [3]]


def test_pool_joins_the_blocks_that_return() -> None:
    pool = MemoryPool(256)
    blocks = [pool.allocate(64) for _ in range(4)]
    del blocks[1:3]
    assert pool.allocate(129) is None
    assert pool.allocate(128) is not None


def test_pool_reuses_the_oldest_memory_first() -> None:
    pool = MemoryPool(256)
    first, second = (filled(pool.allocate(64), number) for number in (1, 2))
    del first
    third, _ = filled(pool.allocate(64), 3)
    assert third.tensor(torch.Size([1]), torch.uint8).data_ptr() == second[1].data_ptr() + 64


def test_pool_after_random_use_is_whole_again() -> None:
    choose, pool = Random(0), MemoryPool(1 << 14)
    kept: list[tuple[MemoryBlock, torch.Tensor, int]] = []
    for number in range(2000):
        block = pool.allocate(choose.randrange(1, 2000))
        if block is None or choose.random() < 0.4:
            del kept[: choose.randrange(4)]
        else:
            kept.append((*filled(block, number), number))
        assert all(bool((tensor == value).all()) for _, tensor, value in kept)
    kept.clear()
    del block
    assert pool.allocate(1 << 14) is not None


def batch_of(cache: PrefixCache, first: int, num_tokens: int = 20) -> CachedBatch:
    """Run a batch of one sample with one layer and insert it: 4 bytes a token, twice."""
    ids = tuple(range(first, first + num_tokens))
    kv = BatchKV([], cache.allocate)
    kv.update(0, *(torch.full((1, 1, num_tokens, 1), float(first)) for _ in range(2)))
    cached = CachedBatch([ids], [(Span(0, num_tokens),)], kv.layers, blocks=kv.blocks)
    cache.insert(cached)
    return cached


def test_pooled_cache_evicts_its_oldest_batch_for_a_new_one() -> None:
    cache = PrefixCache(max_bytes=2 * 2 * 128, pooled=True)  # 80 bytes are rounded up
    for first in (0, 100, 200):
        batch_of(cache, first)
    found = [cache.lookup(tuple(range(first, first + 20)), 0) for first in (0, 100, 200)]
    assert [hit is None for hit in found] == [True, False, False]
    assert cache.num_bytes == 2 * 2 * 128


def test_pooled_cache_never_overwrites_a_prefix_in_use() -> None:
    cache = PrefixCache(max_bytes=2 * 2 * 128, pooled=True)
    batch_of(cache, 7)
    hit = cache.lookup(tuple(range(7, 27)), 0)  # as a running batch has it
    assert hit is not None
    for first in (100, 200, 300):
        batch_of(cache, first)
    key, value = hit.batch.layers[0]
    assert key.unique().tolist() == value.unique().tolist() == [7]


@pytest.mark.parametrize("num_tokens", [40, 100])  # 160 and 400 bytes of 256
def test_batch_larger_than_its_pool_is_computed_but_not_cached(num_tokens: int) -> None:
    cache = PrefixCache(max_bytes=256, pooled=True)
    kv = BatchKV([], cache.allocate)
    states = torch.arange(float(num_tokens)).view(1, 1, -1, 1)
    key, value = kv.update(0, states, states + 1)
    assert torch.equal(key, states)
    assert torch.equal(value, states + 1)
    ids = tuple(range(num_tokens))
    cache.insert(CachedBatch([ids], [(Span(0, num_tokens),)], kv.layers, blocks=kv.blocks))
    assert cache.lookup(ids, 0) is None
