"""Samples of several token sequences: each runs as it would alone, and shares as any other."""

from dataclasses import replace

import pytest
import tiny
import torch
import transformers as hf
from test_packed_backbone import base, random_ids
from tolerance import assert_computed

from alarm_models.modeling.backend_selection import select_backend
from alarm_models.modeling.heads import Head, Pooling, sequence_head
from alarm_models.modeling.inputs import (
    BatchLayout,
    ForwardOutput,
    ModelInput,
    TokenSequence,
    split_sequences,
    sum_by_sample,
)
from alarm_models.modeling.network import HeadedNetwork, WholeNetwork
from alarm_models.types import Span

PROMPT = random_ids(30, 1)
BETTER, WORSE, ALONE = (*PROMPT, 11, 12), (*PROMPT, 13), random_ids(9, 2)


def last(ids: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(ids, (Span(len(ids) - 1, len(ids)),))


def pair(*sequences: tuple[int, ...], owner: str = "") -> ModelInput:
    one = ModelInput.of_sequences([last(ids) for ids in sequences], truncated=False)
    return replace(one, owner=owner)


def single(ids: tuple[int, ...]) -> ModelInput:
    return ModelInput(ids, last(ids).read_positions, truncated=False)


def headed(architecture: str) -> HeadedNetwork:
    model = base(architecture)
    head = Head(torch.nn.Identity(), num_outputs=model.config.hidden_size, pooling=Pooling.LAST)
    return HeadedNetwork(model, select_backend(model, prefix_cache_bytes=1 << 24), head)


def test_model_input_of_sequences_counts_tokens_and_reads_of_all() -> None:
    one = pair((1, 2, 3), (4, 5))
    assert one.num_tokens == 5
    assert one.num_reads == 2
    assert one.ids_of_sequences == ((1, 2, 3), (4, 5))
    assert ModelInput.of_sequences(one.sequences, truncated=False) == one


def test_split_sequences_of_single_sequences_is_the_batch() -> None:
    batch = [single((1, 2)), single((3,))]
    assert split_sequences(batch) is batch


def test_split_sequences_keeps_the_owner_of_each() -> None:
    batch = [pair((1, 2), (3,), owner="a"), single((4, 5))]
    split = split_sequences(batch)
    assert [(one.ids, one.owner) for one in split] == [((1, 2), "a"), ((3,), "a"), ((4, 5), "")]
    assert sum_by_sample(batch, [10, 20, 5]) == [30, 5]


def test_forward_output_is_the_sequence_of_its_rows() -> None:
    rows = [torch.zeros(1, 2), torch.ones(3, 2)]
    output = ForwardOutput(rows, [4, 5])
    assert len(output) == 2
    assert output[1] is rows[1]
    assert list(output) == rows


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ["llama", "roberta", "longformer", "deberta-v2"])
def test_network_of_several_sequences_gives_the_rows_of_each(architecture: str) -> None:
    network = headed(architecture)
    batch = [pair(BETTER, WORSE), single(ALONE), pair(WORSE, ALONE, BETTER)]
    rows = network.forward(batch)
    alone = {ids: network.forward([single(ids)])[0] for ids in (BETTER, WORSE, ALONE)}
    assert_computed(rows[0], torch.cat([alone[BETTER], alone[WORSE]]))
    assert_computed(rows[1], alone[ALONE])
    assert_computed(rows[2], torch.cat([alone[WORSE], alone[ALONE], alone[BETTER]]))


@pytest.mark.numeric
def test_network_of_a_pair_computes_its_shared_prompt_once() -> None:
    network = headed("llama")
    assert network.cost is BatchLayout.PREFIX_SHARED
    assert network.forward([pair(BETTER, WORSE)]).num_computed == [33]  # 30 + 2 + 1
    assert network.forward([pair(BETTER, WORSE)]).num_computed == [3]  # the prompt is cached


@pytest.mark.numeric
def test_whole_network_of_several_sequences_gives_the_rows_of_each() -> None:
    torch.manual_seed(0)
    configuration = tiny.config("llama")
    configuration.pad_token_id, configuration.num_labels = 0, 1
    model = hf.AutoModelForSequenceClassification.from_config(configuration).eval()
    assert sequence_head(model) is not None  # it is run whole here all the same
    network = WholeNetwork(model)
    rows = network.forward([pair(BETTER, ALONE), single(WORSE)])
    assert rows.num_computed == [41, 31]
    alone = [network.forward([single(ids)])[0] for ids in (BETTER, ALONE)]
    assert_computed(rows[0], torch.cat(alone))
