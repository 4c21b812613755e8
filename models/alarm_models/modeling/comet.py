"""COMET: an encoder with a layer mix, a sentence score, and error tags of a translation.

Source: Unbabel's COMET (Apache-2.0), `UnifiedMetric` and `XCOMETMetric` (arXiv 2310.10482).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.backend_selection import probe_padding, select_kernels
from alarm_models.modeling.checkpoint import read_tensors
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ForwardOutput, ModelInput, split_sequences
from alarm_models.modeling.padded import pad_batch

__all__ = ["CONFIG_KEY", "ENCODER", "CometForm", "CometNetwork", "comet_form", "comet_head"]

#: The key of config.json with the hyperparameters, as written by the conversion.
CONFIG_KEY = "comet"

#: The prefix of the encoder's tensor names.
ENCODER = "encoder.model"


@dataclass(frozen=True, slots=True)
class CometForm:
    """The hyperparameters of a checkpoint that affect its scores."""

    class_identifier: str
    activations: str
    final_activation: str | None
    sent_layer: int | str
    layer_transformation: str
    layer_norm: bool
    word_layer: int
    input_segments: tuple[str, ...]

    @property
    def has_reference(self) -> bool:
        """Whether it was also trained with references."""
        return "ref" in self.input_segments


def comet_form(folder: Path, config: Mapping[str, Any]) -> CometForm:
    """Read the hyperparameters written by the conversion; raise `CheckpointError`."""
    hparams = config.get(CONFIG_KEY)
    known = ("xcomet_metric", "unified_metric")
    class_name = hparams.get("class_identifier") if isinstance(hparams, Mapping) else None
    if not isinstance(hparams, Mapping) or class_name not in known:
        raise CheckpointError(
            f"{folder}: kind `comet` reads checkpoints of {' and '.join(known)} "
            f"({'found ' + str(class_name) if class_name else 'config.json has none'}) that "
            "`python -m alarm_models.modeling.comet_conversion` wrote"
        )
    is_x = class_name == "xcomet_metric"
    return CometForm(
        str(class_name),
        str(hparams.get("activations", "Tanh")),
        hparams.get("final_activation"),
        hparams.get("sent_layer", "mix"),
        str(hparams.get("layer_transformation", "sparsemax")),
        bool(hparams.get("layer_norm", not is_x)),
        int(hparams.get("word_layer", 36 if is_x else 24)),
        ("mt", "src", "ref")
        if is_x
        else tuple(hparams.get("input_segments", ("mt", "src", "ref"))),
    )


class _CometHead(torch.nn.Module):
    """Computes the sentence score from the mixed first states, and tags from one layer's states."""

    def __init__(
        self,
        form: CometForm,
        estimator: torch.nn.Module,
        tagger: torch.nn.Module | None,
        mix: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self._form = form
        self._estimator = estimator
        self._tagger = tagger
        self._mix = None if mix is None else torch.nn.Parameter(mix, requires_grad=False)
        self.num_tags = 0 if tagger is None else int(getattr(tagger, "out_features", 0))

    def scores(self, layers: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Return sentence scores ``[batch, 1]`` from all layers' states and the attention mask."""
        if self._mix is None:
            return self._scored(layers[int(self._form.sent_layer)][:, 0])
        if len(layers) != len(self._mix):
            raise CheckpointError(
                f"{len(self._mix)} layers are mixed, but the encoder has {len(layers)}"
            )
        firsts = [self._normed(one, mask) if self._form.layer_norm else one[:, 0] for one in layers]
        return self._scored(torch.einsum("l,lbh->bh", self._mix, torch.stack(firsts)))

    def _scored(self, states: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._estimator(states)
        return scores

    def _normed(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return first states, normalized by the mean and variance over a sample's tokens."""
        states, dtype = states.float(), states.dtype  # 64 tokens of 1024 exceed float16
        inside = mask[..., None].float()
        count = inside.sum((1, 2), keepdim=True) * states.shape[-1]
        mean = (states * inside).sum((1, 2), keepdim=True) / count
        variance = (((states - mean) * inside) ** 2).sum((1, 2), keepdim=True) / count
        return ((states - mean) / torch.sqrt(variance + 1e-12))[:, 0].to(dtype)

    def tags(self, layers: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return tag logits ``[batch, tokens, tags]``; None if the model has no tagger."""
        if self._tagger is None:
            return None
        logits: torch.Tensor = self._tagger(layers[self._form.word_layer])
        return logits


def comet_head(folder: Path, form: CometForm) -> _CometHead:
    """Read a checkpoint's head; raise `CheckpointError`."""
    tensors = read_tensors(folder, "estimator.ff")
    places = sorted({int(key.partition(".")[0]) for key in tensors})
    if not places:
        raise CheckpointError(f"{folder} has no estimator.ff.0.weight: is it a COMET checkpoint?")
    layers: list[torch.nn.Module] = []
    for place in places:
        layers += [_activation(form.activations)] if layers else []
        layers.append(_linear(tensors, f"{place}."))
    if form.final_activation is not None:
        layers.append(_activation(form.final_activation))
    tags = read_tensors(folder, "hidden2tag")
    mixed = read_tensors(folder, "layerwise_attention")
    if form.sent_layer == "mix" and "gamma" not in mixed:
        raise CheckpointError(f"{folder} has no layerwise_attention.gamma")
    return _CometHead(
        form,
        torch.nn.Sequential(*layers),
        _linear(tags, "") if tags else None,
        _mix(mixed, form.layer_transformation) if form.sent_layer == "mix" else None,
    ).eval()


def _linear(tensors: Mapping[str, torch.Tensor], prefix: str) -> torch.nn.Linear:
    weight, bias = tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def _activation(name: str) -> torch.nn.Module:
    module: torch.nn.Module = getattr(torch.nn, name)()
    return module


def _mix(tensors: Mapping[str, torch.Tensor], transformation: str) -> torch.Tensor:
    """Return the layer weights, ``[layers]``: gamma times softmax or sparsemax of scalars."""
    index = 0
    scalars = []
    while f"scalar_parameters.{index}" in tensors:
        scalars.append(tensors[f"scalar_parameters.{index}"].float().reshape(1))
        index += 1
    raw = torch.cat(scalars)
    # COMET 2.2.4 reads "sparsemax_patch" as softmax.
    weights = _sparsemax(raw) if transformation == "sparsemax" else raw.softmax(0)
    return tensors["gamma"].float() * weights


def _sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """Project scores onto the simplex (Martins and Astudillo 2016, arXiv 1602.02068)."""
    ordered = scores.sort(descending=True).values
    sums = ordered.cumsum(0)
    counts = torch.arange(1, len(scores) + 1)
    size = int((1 + counts * ordered > sums).sum())
    return (scores - (sums[size - 1] - 1) / size).clamp(min=0)


class CometNetwork:
    """An encoder with COMET's head: one row per read, the sentence score followed by tag logits.

    Every row of a sequence has the same score.
    """

    def __init__(self, model: PreTrainedModel, head: _CometHead, form: CometForm) -> None:
        self._model: Any = model
        self._head = head
        self.form = form
        self.config: Any = model.config
        self.dtype = model.dtype
        self.num_outputs = 1 + head.num_tags
        self.pooling: Pooling | None = Pooling.OWN
        self._padding, self.max_positions = probe_padding(model, self._run_padded)
        self.stateful = model if self._padding.is_stateful else None
        self.cost = self._padding.cost
        kernels = select_kernels(
            model, lambda batch: torch.cat(self._padding.run(batch, self._run_padded))
        )
        self.execution = f"layout={self.cost.value} {kernels}"

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch; each sequence of a sample runs as a separate sample."""
        rows = iter(self._padding.run(split_sequences(batch), self._run_padded))
        by_sample = [torch.cat([next(rows) for _ in one.ids_of_sequences]) for one in batch]
        return ForwardOutput(by_sample, [one.num_tokens for one in batch])

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is no prefix cache."""

    def _run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        inputs = pad_batch(batch, self._model)
        layers = self._model(**inputs, output_hidden_states=True).hidden_states
        scores = self._head.scores(layers, inputs["attention_mask"])
        tags = self._head.tags(layers)
        rows = []
        for index, one in enumerate(batch):
            reads = [span.start for span in one.read_positions]
            row = scores[index].expand(len(reads), 1)
            if tags is not None:
                row = torch.cat([row, tags[index, reads]], -1)
            rows.append(row.float().cpu())
        return rows
