import pytest
import torch

from alarm_service.engine.devices import MIN_BATCH_TOKENS, search_batch_tokens


def test_search_batch_tokens_grows_while_tokens_get_cheaper() -> None:
    # 10 ms a batch and 1 us a token: the last doubling gains, from 766 to 867 thousand a second.
    assert search_batch_tokens(lambda num_tokens: 0.01 + num_tokens * 1e-6, 1 << 16) == 1 << 16
    # 0.5 ms a batch: 16384 tokens gain 3 % over 8192, too little.
    assert (
        search_batch_tokens(lambda num_tokens: 0.0005 + num_tokens * 1e-6, 1 << 16)
        == MIN_BATCH_TOKENS
    )


def test_search_batch_tokens_stops_at_a_slow_batch() -> None:
    tried = []

    def seconds(num_tokens: int) -> float:
        tried.append(num_tokens)
        return 0.3 + num_tokens * 1e-5  # 0.31 s for 1024, 0.46 s for 16384, 0.63 s for 32768

    assert search_batch_tokens(seconds, 1 << 16) == 1 << 15
    assert tried[-1] == 1 << 15


@pytest.mark.parametrize(("full_at", "budget"), [(1 << 16, 1 << 14), (2048, 1024)])
def test_search_batch_tokens_after_out_of_memory_leaves_margin(full_at: int, budget: int) -> None:
    def seconds(num_tokens: int) -> float:
        if num_tokens >= full_at:
            raise torch.OutOfMemoryError("the device is full")
        return 0.1 + num_tokens * 1e-6

    assert search_batch_tokens(seconds, 1 << 16) == budget
