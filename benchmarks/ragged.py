"""Ragged answers without shared prompts: an encoder made on the spot.

Ours (packed) against transformers one by one, and in batches sorted by length.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers as hf
from timing import in_turns, report

from alarm_models.features import Features
from alarm_models.network import Network
from alarm_models.sample import Span
from alarm_models.sources import Source, sequence_classifier

VOCABULARY = 30522


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--median", type=int, default=82, help="tokens of a sample")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32, help="samples of a sorted batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = hf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 32,
            num_labels=1,
        )
        hf.BertForSequenceClassification(config).save_pretrained(folder)
        ours = sequence_classifier(Source(Path(folder), torch.float32, torch.device("cpu")))
        plain = hf.BertForSequenceClassification.from_pretrained(folder).eval()
    rounds = {
        number: make_samples(options.samples, options.median, seed=number)
        for number in range(-1, options.rounds)
    }
    ways = {
        "ours": lambda number: score_ours(ours, rounds[number]),
        "transformers, one by one": lambda number: in_batches(plain, rounds[number], 1),
        "transformers, sorted batches": lambda number: in_batches(
            plain, rounds[number], options.batch
        ),
    }
    title = f"{options.samples} ragged samples, float32, cpu"
    report(title, in_turns(ways, options.rounds), "ours", "transformers, one by one")


def make_samples(count: int, median: int, seed: int) -> list[tuple[int, ...]]:
    """Make token ids whose lengths spread as answers' do: log-normal around the median."""
    choose = torch.Generator().manual_seed(seed + 10)
    lengths = (torch.randn(count, generator=choose) * 0.5).exp() * median
    return [
        tuple(torch.randint(5, VOCABULARY, (length,), generator=choose).tolist())
        for length in lengths.long().clamp(8, 500).tolist()
    ]


def score_ours(network: Network, samples: list[tuple[int, ...]]) -> torch.Tensor:
    """Score samples as the server does, 8192 tokens a batch."""
    scores: list[torch.Tensor] = []
    batch: list[Features] = []
    for ids in samples:
        if sum(one.num_tokens for one in batch) + len(ids) > 8192:
            scores += network.outputs(batch)
            batch = []
        batch.append(Features(ids, (Span(0, 1),), truncated=False))
    return torch.cat([*scores, *network.outputs(batch)]).flatten()


@torch.inference_mode()
def in_batches(
    model: hf.PreTrainedModel, samples: list[tuple[int, ...]], size: int
) -> torch.Tensor:
    """Score samples in padded batches, sorted by length; return them in the order given."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index]))
    scores = torch.empty(len(samples))
    for at in range(0, len(order), size):
        batch = order[at : at + size]
        longest = max(len(samples[index]) for index in batch)
        ids = torch.tensor(
            [[*samples[index], *[0] * (longest - len(samples[index]))] for index in batch]
        )
        mask = torch.tensor(
            [[1] * len(samples[index]) + [0] * (longest - len(samples[index])) for index in batch]
        )
        scores[batch] = model(ids, mask).logits.flatten()
    return scores


if __name__ == "__main__":
    main()
