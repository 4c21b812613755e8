"""Heads: sequence and token classifiers, vocabulary, MLP; those of ArmoRM, QRM, URM and PairRM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import read_tensors

__all__ = [
    "Head",
    "Pooling",
    "gated_head",
    "mlp",
    "pair_head",
    "select_token_logits",
    "sequence_head",
    "token_head",
    "vocabulary_head",
    "weighed_head",
]

#: Number of tokens, of each of two samples, by which a vocabulary head is compared with its model.
_NUM_COMPARED = 8


class Pooling(StrEnum):
    """The tokens whose hidden states give a whole-sequence score."""

    FIRST = "first"
    LAST = "last"
    #: transformers' decoders: the last token that is not the configured padding.
    LAST_NOT_PADDING = "last_not_padding"
    MEAN = "mean"
    #: The model pools by itself.
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Head:
    """Maps hidden states ``[rows, hidden]`` to outputs ``[rows, num_outputs]``."""

    apply: Callable[[torch.Tensor], torch.Tensor]
    num_outputs: int
    pooling: Pooling | None

    @property
    def module(self) -> torch.nn.Module:
        """The module of a head that was built from tensors, for moving it to a device."""
        if not isinstance(self.apply, torch.nn.Module):
            raise TypeError("this head belongs to its model")
        return self.apply

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head."""
        return self.apply(states)


def sequence_head(model: PreTrainedModel) -> Head | None:
    """Return a sequence classifier's head; None if its pooling is not known."""
    classifier: Any = model
    labels = int(classifier.config.num_labels)
    match model.config.model_type:
        case _ if isinstance(getattr(model, "score", None), torch.nn.Linear):
            return Head(classifier.score, labels, Pooling.LAST_NOT_PADDING)
        case "roberta" | "xlm-roberta" | "camembert" | "longformer":
            # These heads select the first token's state themselves.
            return Head(lambda rows: classifier.classifier(rows[:, None]), labels, Pooling.FIRST)
        case "bert":
            pool = classifier.base_model.pooler
            return Head(
                lambda rows: classifier.classifier(pool(rows[:, None])), labels, Pooling.FIRST
            )
        case "modernbert":
            pooling = {"cls": Pooling.FIRST, "mean": Pooling.MEAN}[model.config.classifier_pooling]
            return Head(lambda rows: classifier.classifier(classifier.head(rows)), labels, pooling)
        case _:
            return None


def token_head(model: PreTrainedModel) -> Head | None:
    """Return a token classifier's head; None if its structure is not known."""
    classifier: Any = model
    labels = int(classifier.config.num_labels)
    match model.config.model_type:
        case _ if isinstance(getattr(model, "score", None), torch.nn.Linear):
            return Head(classifier.score, labels, None)
        case "bert" | "roberta" | "xlm-roberta" | "camembert" | "longformer":
            return Head(classifier.classifier, labels, None)
        case "modernbert":
            return Head(lambda rows: classifier.classifier(classifier.head(rows)), labels, None)
        case _:
            return None


def mlp(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    activation: type[torch.nn.Module] = torch.nn.ReLU,
) -> Head:
    """Build a head from the tensors under its name.

    ``weight [outputs, hidden]`` with or without ``bias`` is a linear head; ``0.weight``,
    ``2.weight`` and so on are linear layers with an activation between them, mostly a ReLU
    (Qwen2.5-Math-PRM, INF-ORM).
    """
    prefixes = sorted(
        (key.removesuffix("weight") for key in tensors if key.endswith("weight")),
        key=lambda prefix: int(prefix.rstrip(".") or 0) if prefix.rstrip(".").isdigit() else 0,
    )
    if not prefixes or any(prefix and not prefix[:-1].isdigit() for prefix in prefixes):
        raise CheckpointError(
            f"the checkpoint holds no tensor {name}.weight, and no layers {name}.0.weight, ...; "
            "is `head` right?"
        )
    layers: list[torch.nn.Module] = []
    for prefix in prefixes:
        weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
        if weight.ndim != 2:
            raise CheckpointError(
                f"{name}.{prefix}weight has shape {list(weight.shape)}, not two dimensions"
            )
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers += [activation()] if layers else []
        layers.append(linear)
    return Head(torch.nn.Sequential(*layers), int(weight.shape[0]), None)


def vocabulary_head(model: PreTrainedModel, token_ids: Sequence[int]) -> Head | None:
    """Return a causal model's head for some tokens; None if it is not one of the known forms.

    Those are a linear layer on the states of the base, whose output may be scaled (Cohere,
    Granite) or capped (Gemma 2) as configured. The first of them is returned that gives the
    model's own logits.
    """
    forms = (one for one in _vocabulary_forms(model) if _gives_logits(model, one))
    logits = next(forms, None)
    if logits is None:
        return None
    return Head(
        lambda states: select_token_logits(logits(states), token_ids),
        len(token_ids) + 1,
        Pooling.LAST,
    )


def _vocabulary_forms(model: PreTrainedModel) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield the functions from states to logits that a configuration suggests."""
    causal: Any = model
    config = causal.config.get_text_config()
    linear = causal.get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear) or causal.base_model is causal:
        return
    names = ("final_logit_softcapping", "logits_soft_cap")
    if cap := next((one for name in names if (one := getattr(config, name, None))), None):
        yield lambda states: torch.tanh(linear(states) / cap) * cap
    if factor := getattr(config, "logit_scale", None):
        yield lambda states: linear(states) * factor
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda states: linear(states) / divisor
    yield linear


def _gives_logits(model: PreTrainedModel, form: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether a form applied to the states of the base equals the logits, but for rounding.

    Both are computed from equal states, so that nothing but the form can differ.
    """
    causal: Any = model
    choose = torch.Generator().manual_seed(0)
    try:
        num_ids = causal.get_input_embeddings().num_embeddings
        ids = torch.randint(num_ids, (2, _NUM_COMPARED), generator=choose)
        inputs = {"input_ids": ids.to(model.device), "use_cache": False}
        with torch.inference_mode():
            wanted = causal(**inputs).logits.float()
            found = form(causal.base_model(**inputs).last_hidden_state).float()
    except Exception:  # a model whose code differs may raise anything
        return False
    error = torch.finfo(model.dtype).eps
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=error, atol=error)


def select_token_logits(logits: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the logits of some tokens and the log-sum-exp over all: ``[rows, tokens + 1]``."""
    logits = logits.float()
    return torch.cat([logits[:, list(token_ids)], logits.logsumexp(-1, keepdim=True)], -1)


#: ArmoRM's default, used if the configuration has none.
_TEMPERATURE = 10.0


class _Gated(torch.nn.Module):
    """Maps ``[rows, hidden]`` to ``[rows, 3 * objectives]``: rewards, rewards @ M, and the gate.

    Every row has all three: rewards are read at the sample's last row, the gate at its prompt's.
    """

    def __init__(
        self,
        regression: torch.nn.Module,
        gate: torch.nn.Module,
        transform: torch.Tensor,
        scale: torch.Tensor,
        temperature: float,
    ) -> None:
        super().__init__()
        self._regression = regression
        self._gate = gate
        self._temperature = temperature
        self._transform = torch.nn.Parameter(transform, requires_grad=False)
        self._scale = torch.nn.Parameter(scale, requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply regression layer, reward transform and gate."""
        rewards = self._regression(states)
        return torch.cat([rewards, rewards @ self._transform, self._weights(states)], -1)

    def _weights(self, states: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self._gate(states) / self._temperature, -1) * self._scale


class _QuantileGated(_Gated):
    """QRM's head: each objective has quantiles, whose mean is its reward (arXiv 2409.10164).

    As in the published class, the returned rewards are transformed, and everything is computed in
    float32.
    """

    num_quantiles = 1

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply regression layer, mean over quantiles, reward transform and gate."""
        states = states.float()
        quantiles = self._regression(states).unflatten(-1, (-1, self.num_quantiles))
        rewards = quantiles.mean(-1) @ self._transform
        return torch.cat([rewards, rewards, self._weights(states)], -1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Apply a function such as a device move, but keep float32."""

        def in_float32(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result.float() if result.is_floating_point() else result

        return super()._apply(in_float32, recurse)  # type: ignore[no-untyped-call]


def gated_head(folder: Path, name: str, config: Any) -> Head:
    """Read the regression layer of that name, and the gate, from a checkpoint.

    A layer with more rows than the gate has outputs has several quantiles per objective (QRM).
    """
    regression = mlp(read_tensors(folder, name), name)
    tensors = read_tensors(folder, "gating.layers")
    gate, num_objectives = _gate_layers(tensors, "gating.layers")
    transform = read_tensors(folder, "reward_transform_matrix").get("")
    scale = read_tensors(folder, "gating.logit_scale").get("")
    num_quantiles = int(getattr(config, "num_quantiles", None) or 1)
    if regression.num_outputs != num_objectives * num_quantiles:
        times = f" of {num_quantiles} quantiles" if num_quantiles > 1 else ""
        raise CheckpointError(
            f"{folder}: the gate has {num_objectives} objectives{times}, but {name} has "
            f"{regression.num_outputs}"
        )
    form = _Gated if num_quantiles == 1 else _QuantileGated
    head = form(
        regression.module,
        gate,
        torch.eye(num_objectives) if transform is None else transform,
        torch.ones(1) if scale is None else scale,
        float(getattr(config, "gating_temperature", _TEMPERATURE)),
    )
    if isinstance(head, _QuantileGated):
        head.num_quantiles = num_quantiles
    return Head(head.eval(), 3 * num_objectives, None)


def _gate_layers(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.nn.Module, int]:
    """Build a gate, linear layers with a ReLU between them, and count its outputs.

    A ReLU may be followed by batch normalization (QRM), with its running mean and variance.
    """
    normalized = {
        key.removesuffix("running_mean"): tensors[key]
        for key in tensors
        if key.endswith(".running_mean")
    }
    linear = {
        key: one
        for key, one in tensors.items()
        if not any(key.startswith(prefix) for prefix in normalized)
    }
    plain = mlp(linear, name)
    if not normalized:
        return plain.module, plain.num_outputs
    layers: list[torch.nn.Module] = []
    linears = [one for one in plain.module.children() if isinstance(one, torch.nn.Linear)]
    places = sorted({int(key.partition(".")[0]) for key in tensors})
    for place in places:
        prefix = f"{place}."
        if prefix in normalized:
            norm = torch.nn.BatchNorm1d(len(normalized[prefix]))
            norm.load_state_dict(
                {
                    key.removeprefix(prefix): one
                    for key, one in tensors.items()
                    if key.startswith(prefix)
                }
            )
            layers.append(norm)
        else:
            layers.append(linears.pop(0))
            layers += [torch.nn.ReLU()] if linears else []
    return torch.nn.Sequential(*layers), plain.num_outputs


class _Weighed(torch.nn.Module):
    """URM's head: maps ``[rows, hidden]`` to the outputs and the weighted sum of the attributes.

    An attribute has two outputs, the mean and the scale of a normal distribution; the sum is over
    the means (arXiv 2410.00847).
    """

    def __init__(self, outputs: torch.nn.Module, weights: torch.nn.Module) -> None:
        super().__init__()
        self._outputs = outputs
        self._weights = weights

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head, and append the weighted sum of the means."""
        outputs = self._outputs(states)
        score = (outputs[..., ::2] * self._weights(states)).sum(-1, keepdim=True)
        return torch.cat([outputs, score], -1)


def weighed_head(folder: Path, name: str, gate: str) -> Head:
    """Read a head with means and scales, and the network ``gate`` that weights the means.

    The network's layers have a SELU between them. The last output is the score.
    """
    outputs = mlp(read_tensors(folder, name), name)
    weights = mlp(read_tensors(folder, gate), gate, torch.nn.SELU)
    if outputs.num_outputs != 2 * weights.num_outputs:
        raise CheckpointError(
            f"{folder}: {gate} weights {weights.num_outputs} attributes, but {name} has "
            f"{outputs.num_outputs} outputs, not two per attribute"
        )
    return Head(_Weighed(outputs.module, weights.module), outputs.num_outputs + 1, None)


class _Paired(torch.nn.Module):
    """PairRM's head: the margin of the first of two candidates over the second.

    Maps the states at prompt, first and second candidate, ``[3 * pairs, hidden]``, to
    ``[3 * pairs, 1]``: the margin of each pair, repeated for its three states. The scores of a
    candidate, one per task, are computed from the prompt's and its own state; the margin is the
    mean difference. Source: Jiang et al. 2023, arXiv 2306.02561.
    """

    def __init__(self, scores: torch.nn.Module) -> None:
        super().__init__()
        self._scores = scores

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head to each candidate, and subtract."""
        prompt, *candidates = states.reshape(-1, 3, states.shape[-1]).unbind(1)
        first, second = (self._scores(torch.cat([prompt, one], -1)) for one in candidates)
        margin: torch.Tensor = (first - second).mean(-1, keepdim=True)  # [pairs, 1]
        return margin.repeat_interleave(3, 0)


def pair_head(folder: Path, name: str) -> Head:
    """Read the head of a pair ranker: two linear layers with a tanh between them."""
    scores = mlp(read_tensors(folder, name), name, torch.nn.Tanh)
    return Head(_Paired(scores.module).eval(), 1, Pooling.OWN)
