"""What a group needs is counted so that it can be worked out by hand."""

import transformers as hf
from products import operations


def config(layers: int) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        hidden_size=2, intermediate_size=5, num_hidden_layers=layers, num_attention_heads=1
    )


def test_of_one_layer_keys_and_values_are_needed() -> None:
    # Three tokens of prompt and two of a completion: 5 times 2 matrices of 2 x 2, two operations.
    assert operations(config(1), 3, [2]) == 5 * 2 * 4 * 2


def test_a_layer_before_it_is_needed_whole() -> None:
    # 46 weights; 6 pairs in the prompt, 2 * 3 with it and 3 within the completion, 4 numbers each.
    more = operations(config(2), 3, [2]) - operations(config(1), 3, [2])
    assert more == 2 * (5 * 46 + (6 + 6 + 3) * 4)


def test_a_prompt_counts_once() -> None:
    once, twice = operations(config(1), 100, [10]), operations(config(1), 100, [10, 10])
    assert twice / once == 120 / 110
