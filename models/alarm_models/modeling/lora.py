"""PEFT LoRA adapters: reads them and merges them into a model's weights at load time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import read_file
from alarm_models.modeling.inspection import read_json_object

__all__ = ["CONFIG", "Adapter", "adapter_tensors", "read_adapter"]

CONFIG = "adapter_config.json"

#: The prefix of tensor names in an adapter file: PEFT's name of the wrapped model.
_WRAPPED = "base_model.model."

#: Options that change the meaning of the tensors; not supported.
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "alora_invocation_tokens", "layer_replication",
    "trainable_token_indices", "target_parameters", "megatron_config", "use_bdlora",
    "velora_config", "monteclora_config", "arrow_config",
)  # fmt: skip

#: Initializations that also change the base model's weights.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")

#: Names of heads: read by `head` in a recipe, or by a classifier itself.
_HEADS = frozenset(
    {"lm_head", "score", "classifier", "v_head", "value_head", "regression_head", "score_head"}
)

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The changes of an adapter, by tensor names of the model that it was trained on.

    ``factors`` are A ``[rank, in]`` and B ``[out, rank]`` with their scaling by module;
    ``replaced`` are whole tensors, such as those of a head. With ``keeps_ties`` tied embeddings
    were trained as one.
    """

    folder: Path
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
    replaced: Mapping[str, torch.Tensor]
    keeps_ties: bool = False

    def num_labels(self) -> int | None:
        """The number of rows of the adapter's head; None if it has no head."""
        for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
            if name in self.replaced:
                return int(self.replaced[name].shape[0])
        return None

    @torch.no_grad()
    def merge_into(self, model: Any) -> set[str]:
        """Merge into a model's weights in place, in their dtype; return names of replaced tensors.

        A weight gains ``scaling * B @ A`` (Hu et al. 2021, arXiv 2106.09685), computed in float32.
        A head that the model does not have is skipped. Raises `CheckpointError` for any other
        tensor that the model does not have. Input and output embeddings that share a weight get
        their own if the adapter changes one of them: PEFT trains that one alone.
        """
        self._untie_embeddings(model)
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        base = f"{model.base_model_prefix}."
        replaced = set()
        # Whole tensors first: a LoRA may apply to one of them (`base_layer`).
        for name, tensor in self.replaced.items():
            target = next(
                (one for one in (name, name.removeprefix(base)) if one in parameters), None
            )
            if target is None:
                if name.partition(".")[0] in _HEADS:
                    continue
                raise self._unknown_parameter(name, parameters)
            if parameters[target].shape != tensor.shape:
                raise CheckpointError(
                    f"{self.folder}: {name} is {list(tensor.shape)}, in the checkpoint "
                    f"{list(parameters[target].shape)}: merge the adapter where it was trained "
                    "(`merge_and_unload`), and serve that"
                )
            parameters[target].copy_(tensor)
            replaced.add(target)
        for name, (a, b, scaling) in self.factors.items():
            module = modules.get(name) or modules.get(name.removeprefix(base))
            weight = getattr(module, "weight", None)
            if weight is None:
                if name.partition(".")[0] in _HEADS:
                    continue
                raise self._unknown_parameter(f"{name}.weight", parameters)
            change = (b.to(weight.device).float() @ a.to(weight.device).float()) * scaling
            if isinstance(module, Conv1D | torch.nn.Embedding):
                change = change.T
            if change.shape != weight.shape:
                raise CheckpointError(
                    f"{self.folder}: the change of {name} is {list(change.shape)}, the weight "
                    f"{list(weight.shape)}: `checkpoint` must be the model that it was trained on"
                )
            weight.add_(change.to(weight.dtype))
        return replaced

    def _untie_embeddings(self, model: Any) -> None:
        """Give a model's output embeddings their own weight if the adapter changes either."""
        tables = (_table(model.get_input_embeddings), _table(model.get_output_embeddings))
        first, last = (getattr(one, "weight", None) for one in tables)
        if first is None or first is not last or self.keeps_ties:
            return
        base = f"{model.base_model_prefix}."
        names = [name for name, one in model.named_modules() if one in tables]
        changed = {*self.factors, *(name.rpartition(".")[0] for name in self.replaced)}
        changed |= {name.removeprefix(base) for name in changed}
        if any(one in changed or one.removeprefix(base) in changed for one in names):
            tables[1].weight = torch.nn.Parameter(last.detach().clone(), requires_grad=False)
            model.config.get_text_config().tie_word_embeddings = False
            model.config.tie_word_embeddings = False

    def _unknown_parameter(self, name: str, parameters: Mapping[str, Any]) -> CheckpointError:
        examples = ", ".join(list(parameters)[:2])
        return CheckpointError(
            f"{self.folder} changes {name}, which the model does not have (it has {examples}, "
            "...): `checkpoint` must be the model that it was trained on"
        )


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter; raise `CheckpointError` for an unsupported one, naming the option."""
    try:
        config = read_json_object(folder / CONFIG)
        tensors = list(_named(folder))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: the adapter cannot be read: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: the adapter cannot be read: {reason}") from error
    if not tensors:
        raise CheckpointError(
            f"{folder} has neither adapter_model.safetensors nor adapter_model.bin"
        )
    _require_plain_lora(folder, config)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        factor = _FACTOR.fullmatch(name)
        if factor is not None:
            pairs.setdefault(factor[1], {})[factor[3]] = tensor
        elif ".lora_" in name:
            raise CheckpointError(f"{folder} has {name}, which is not supported: {_MERGE_ADVICE}")
        elif ".original_module." not in name:
            replaced[name] = tensor
    incomplete = sorted(name for name, pair in pairs.items() if len(pair) < 2)
    if incomplete:
        raise CheckpointError(f"{folder} has only one of lora_A and lora_B for {incomplete[0]}")
    try:
        factors = {
            name: (pair["A"], pair["B"], _scaling(config, name)) for name, pair in pairs.items()
        }
    except (TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        raise CheckpointError(
            f"{folder}: {CONFIG} has no valid scaling (r, lora_alpha, rank_pattern, "
            f"alpha_pattern): {error}"
        ) from error
    return Adapter(folder, factors, replaced, bool(config.get("ensure_weight_tying")))


def adapter_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter's folder whose names are ``name`` or begin with ``name.``.

    Includes those of LLaMA-Factory's ``value_head.safetensors``.
    """
    return {
        key[len(name) + 1 :]: tensor
        for key, tensor in _named(folder)
        if key == name or key.startswith(f"{name}.")
    }


def _table(get: Callable[[], Any]) -> Any:
    """Return a table of embeddings; None if the model's class has none."""
    try:
        return get()
    except (NotImplementedError, AttributeError):
        return None


_MERGE_ADVICE = (
    "merge the adapter in its training environment (`merge_and_unload`) and serve the result"
)


def _require_plain_lora(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is a PEFT adapter of type {kind or 'unknown'}; only LoRA is supported: "
            f"{_MERGE_ADVICE}"
        )
    used = [name for name in _REFUSED if config.get(name)]
    initialization = str(config.get("init_lora_weights", "")).lower()
    used += [
        f"init_lora_weights = {config['init_lora_weights']!r}"
        for name in _CHANGES_BASE
        if initialization.startswith(name)
    ]
    if used:
        raise CheckpointError(f"{folder} uses {', '.join(used)}, not supported: {_MERGE_ADVICE}")


def _named(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an adapter's files with their names in the wrapped model."""
    for stem in ("adapter_model", "value_head"):
        for suffix in (".safetensors", ".bin"):
            file = folder / f"{stem}{suffix}"
            if file.is_file():
                for key, tensor in read_file(file).items():
                    name = key.removeprefix(_WRAPPED).replace(".modules_to_save.", ".")
                    yield name.replace(".base_layer.", "."), tensor
                break


def _scaling(config: Mapping[str, Any], name: str) -> float:
    rank = _pattern(config.get("rank_pattern"), name, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
