"""A group: G completions of one prompt, scored by a Llama made on the spot.

Ours (packed, the prompt computed once) against transformers one by one and in one padded batch.
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

VOCABULARY = 32000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16], help="sizes G")
    parser.add_argument("--prompt", type=int, default=900, help="tokens of the shared prompt")
    parser.add_argument("--completion", type=int, default=100, help="mean tokens of a completion")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        make_llama(Path(folder), options.layers, options.hidden)
        ours = sequence_classifier(Source(Path(folder), dtype, device))
        plain = hf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    plain = plain.to(device).eval()

    for size in options.groups:
        groups = {
            number: make_group(size, options.prompt, options.completion, seed=number)
            for number in range(-1, options.rounds)
        }
        ways = {
            "ours": lambda number: score_ours(ours, groups[number]),  # noqa: B023
            "transformers, one by one": lambda number: one_by_one(plain, groups[number]),  # noqa: B023
            "transformers, padded": lambda number: padded(plain, groups[number]),  # noqa: B023
        }
        title = f"group of {size}, {options.dtype}, {options.device}"
        report(title, in_turns(ways, options.rounds), "ours", "transformers, one by one")


def make_llama(folder: Path, layers: int, hidden: int) -> None:
    """Save a Llama classifier with random weights."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        num_labels=1,
        pad_token_id=0,
    )
    hf.LlamaForSequenceClassification(config).save_pretrained(folder)


def make_group(size: int, prompt: int, completion: int, seed: int) -> list[tuple[int, ...]]:
    """Make token ids: one prompt, and completions of half to one and a half times the mean."""
    choose = torch.Generator().manual_seed(seed + 10)

    def ids(count: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (count,), generator=choose).tolist()

    shared = ids(prompt)
    lengths = torch.randint(completion // 2, completion * 3 // 2 + 1, (size,), generator=choose)
    return [(*shared, *ids(length)) for length in lengths.tolist()]


def score_ours(network: Network, group: list[tuple[int, ...]]) -> torch.Tensor:
    """Score a group as the server does."""
    features = [Features(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in group]
    return torch.cat(network.outputs(features)).flatten()


@torch.inference_mode()
def one_by_one(model: hf.PreTrainedModel, group: list[tuple[int, ...]]) -> torch.Tensor:
    """Score each sample alone."""
    return (
        torch.cat([model(torch.tensor([ids], device=model.device)).logits for ids in group])
        .float()
        .cpu()
        .flatten()
    )


@torch.inference_mode()
def padded(model: hf.PreTrainedModel, group: list[tuple[int, ...]]) -> torch.Tensor:
    """Score the group in one batch, padded to its longest."""
    longest = max(map(len, group))
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in group])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in group])
    return model(ids.to(model.device), mask.to(model.device)).logits.float().cpu().flatten()


if __name__ == "__main__":
    main()
