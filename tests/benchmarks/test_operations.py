"""Operation counts match counts worked out by hand."""

import transformers as hf
from operations import of_apart, of_group

# Three tokens of prompt, and two of a completion.
GROUP = [[1, 2, 3, 4, 5]]


def llama(layers: int) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        hidden_size=2, intermediate_size=5, num_hidden_layers=layers, num_attention_heads=1
    )


def longformer(layers: int, window: int) -> hf.LongformerConfig:
    return hf.LongformerConfig(
        hidden_size=2,
        intermediate_size=5,
        num_hidden_layers=layers,
        num_attention_heads=1,
        attention_window=[window] * layers,
    )


def test_single_layer_counts_only_keys_and_values() -> None:
    # 5 tokens times 2 matrices of 2 x 2, two operations each.
    assert of_group(llama(1), GROUP) == of_apart(longformer(1, 8), GROUP) == 5 * 2 * 4 * 2


def test_keys_and_values_that_heads_share_count_once() -> None:
    grouped = hf.LlamaConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    # 5 tokens times 2 matrices of 4 x 2, two operations each.
    assert of_group(grouped, GROUP) == 5 * 2 * 8 * 2


def test_layer_before_the_last_counts_in_full() -> None:
    # 46 weights; a token sees those before it and itself: 1 + 2 + 3 + 4 + 5, 4 numbers each.
    more = of_group(llama(2), GROUP) - of_group(llama(1), GROUP)
    assert more == 2 * (5 * 46 + 15 * 4)


def test_common_prefix_counts_once() -> None:
    prompt = list(range(100))
    group = [prompt + [200 + number] * 10 for number in range(2)]
    alone, both = of_group(llama(1), group[:1]), of_group(llama(1), group)
    assert both / alone == 120 / 110
    # In pairs: the second completion's, with the prompt and within, are new.
    more = of_group(llama(2), group) - both - (of_group(llama(2), group[:1]) - alone)
    assert more == 2 * (10 * 46 + (10 * 100 + 55) * 4)


def test_encoder_tokens_attend_to_their_whole_sample_only() -> None:
    # 36 weights; 5 x 5 and 2 x 2 pairs.
    bert = hf.BertConfig(
        hidden_size=2, intermediate_size=5, num_hidden_layers=2, num_attention_heads=1
    )
    assert of_apart(bert, [*GROUP, [1, 2]]) == 2 * (7 * 36 + (25 + 4) * 4) + 2 * 7 * 8


def test_longformer_tokens_attend_to_half_a_window_per_side() -> None:
    # Five tokens that see one on each side: 2 + 3 + 3 + 3 + 2 pairs, 12 fewer than all.
    wide, narrow = of_apart(longformer(2, 8), GROUP), of_apart(longformer(2, 2), GROUP)
    assert wide - narrow == 2 * 12 * 4
