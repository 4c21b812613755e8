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


def test_block_of_a_pool_is_not_exceeded() -> None:
    block, _ = filled(MemoryPool(256).allocate(60), 1)
    assert block.num_bytes == 64
    with pytest.raises(ValueError, match="128 bytes are more than the 64 of the block"):
        block.tensor(torch.Size([32]), torch.float32)


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


@pytest.mark.parametrize("num_tokens", [40, 100])  # twice 160 and 400 bytes, of 256
def test_batch_larger_than_its_pool_is_computed_but_not_cached(num_tokens: int) -> None:
    cache = PrefixCache(max_bytes=256, pooled=True)
    batch_of(cache, 1000)
    kv = BatchKV([], cache.allocate)
    states = torch.arange(float(num_tokens)).view(1, 1, -1, 1)
    key, value = kv.update(0, states, states + 1)
    assert torch.equal(key, states)
    assert torch.equal(value, states + 1)
    ids = tuple(range(num_tokens))
    cache.insert(CachedBatch([ids], [(Span(0, num_tokens),)], kv.layers, blocks=kv.blocks))
    assert cache.lookup(ids, 0) is None
    assert cache.lookup(tuple(range(1000, 1020)), 0) is not None


def test_batch_whose_pool_is_in_use_by_its_own_prefix_is_not_cached() -> None:
    cache = PrefixCache(max_bytes=256, pooled=True)
    held = batch_of(cache, 7)
    batch_of(cache, 100)
    assert cache.lookup(tuple(range(100, 120)), 0) is None
    assert held.layers[0][0].unique().tolist() == [7]


def test_closed_cache_takes_nothing_from_a_pass_that_still_runs() -> None:
    cache = PrefixCache(max_bytes=1024, pooled=True)
    kv = BatchKV([], cache.allocate)
    cache.close()
    key, _ = kv.update(0, torch.ones(1, 1, 20, 1), torch.ones(1, 1, 20, 1))
    assert key.sum() == 20
    cache.insert(CachedBatch([tuple(range(20))], [(Span(0, 20),)], kv.layers, blocks=kv.blocks))
    assert (cache.lookup(tuple(range(20)), 0), cache.num_bytes) == (None, 0)


def test_cache_without_address_space_for_its_pool_still_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refused)
    cache = PrefixCache(max_bytes=1024, pooled=True)
    batch_of(cache, 7)
    assert cache.lookup(tuple(range(7, 27)), 0) is not None
