"""Loads transformers checkpoints as networks; no forward pass runs during construction.

Importing this module replaces `PreTrainedModel.get_init_context` for the whole process, since
transformers changes the process-wide default dtype while it constructs a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaModel,
    LongformerModel,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from alarm_models.errors import CheckpointError
from alarm_models.modeling import internlm2
from alarm_models.modeling.backend_selection import Backbone, select_backend
from alarm_models.modeling.checkpoint import LazyTensor, is_under, open_tensors, read_tensors
from alarm_models.modeling.comet import ENCODER, CometNetwork, comet_form, comet_head
from alarm_models.modeling.compatibility import (
    loading_refusal,
    missing_refusal,
    require_known_tensors,
    require_readable_weights,
    require_stock_class,
)
from alarm_models.modeling.generation import TextGenerator
from alarm_models.modeling.heads import (
    Head,
    gated_head,
    mlp,
    pair_head,
    select_token_logits,
    sequence_head,
    token_head,
    vocabulary_head,
    weighed_head,
)
from alarm_models.modeling.inspection import CheckpointFacts, inspect_folder, no_weights
from alarm_models.modeling.lora import Adapter, adapter_tensors, read_adapter
from alarm_models.modeling.network import (
    MODEL_INIT_LOCK,
    HeadedNetwork,
    Network,
    OwnForwardNetwork,
    WholeNetwork,
)

__all__ = [
    "BaseModel",
    "CheckpointSource",
    "base_with_gate",
    "base_with_head",
    "base_with_weights",
    "comet_network",
    "load_base",
    "pair_ranker",
    "sequence_classifier",
    "text_generator",
    "token_classifier",
    "token_scorer",
]


_init_context: Any = PreTrainedModel.get_init_context


def _locked_init_context(cls: type[PreTrainedModel], *arguments: Any, **named: Any) -> list[Any]:
    """Add the model-init lock to transformers' init contexts: no pass sees a changed dtype."""
    return [MODEL_INIT_LOCK.exclusive(), *_init_context.__func__(cls, *arguments, **named)]


# Only construction needs the lock: reading the weights takes minutes and affects no other model.
PreTrainedModel.get_init_context = classmethod(_locked_init_context)  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """The checkpoint of a network, and how to run it.

    ``prefix_cache_bytes`` bounds the prefix cache of a causal model. ``prefix`` is the prefix
    of the base's tensor names if it is not the one of transformers; ``adapter`` is the folder of a
    LoRA adapter that is merged into the weights.
    """

    folder: Path
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool = False
    prefix_cache_bytes: int = 0
    prefix: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A transformer without its head, which several heads may share."""

    model: PreTrainedModel
    backbone: Backbone


def sequence_classifier(source: CheckpointSource) -> Network:
    """Load a sequence classifier.

    If its head can be separated, it is applied to the states at the read positions, so that padding
    does not affect it and packing is possible. A trusted custom class is run by its own forward.
    """
    facts = _facts(source)
    auto = "AutoModelForSequenceClassification"
    if source.trust_remote_code:
        auto_class = next((name for name in (auto, "AutoModel") if name in facts.auto_map), None)
        if auto_class is not None:
            loader = AutoModel if auto_class == "AutoModel" else AutoModelForSequenceClassification
            model = _load(loader, source, facts)
            if _is_own_class(model):
                return OwnForwardNetwork(model, str(source.folder))
            return _with_head(model, sequence_head(model), source, has_global=True)
    require_stock_class(facts, (auto, "AutoModel"), "a stock sequence classifier")
    model = _load(AutoModelForSequenceClassification, source, facts)
    return _with_head(model, sequence_head(model), source, has_global=True)


def token_classifier(source: CheckpointSource) -> Network:
    """Load a token classifier: one row of logits per token."""
    facts = _facts(source)
    if not source.trust_remote_code:
        names = ("AutoModelForTokenClassification", "AutoModel")
        require_stock_class(facts, names, "a stock token classifier")
    model = _load(AutoModelForTokenClassification, source, facts)
    return _with_head(model, token_head(model), source)


def load_base(source: CheckpointSource) -> BaseModel:
    """Load a base model, which several heads may share.

    If the checkpoint's class is a base with a head, the base inside it is used.
    """
    facts = _facts(source)
    model: Any = _load(AutoModel, source, facts, is_whole=False)
    if _is_own_class(model) and isinstance(model.base_model, PreTrainedModel):
        model = model.base_model
    return BaseModel(model, _select_backend(model, source))


def base_with_head(base: BaseModel, source: CheckpointSource, name: str) -> Network:
    """Add the head of that name to a base model: linear (openbmb/UltraRM-13b) or an MLP."""
    tensors = {} if source.adapter is None else adapter_tensors(source.adapter, name)
    head = mlp(tensors or read_tensors(source.folder, name), name)
    _require_fit(head, base, source, name)
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(base.model, base.backbone, head)


def base_with_gate(base: BaseModel, source: CheckpointSource, name: str) -> Network:
    """Add a regression layer of that name and its gate to a base model (ArmoRM, QRM).

    The outputs are three times the objectives; see `alarm_models.modeling.heads`.
    """
    head = gated_head(source.folder, name, base.model.config)
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(base.model, base.backbone, head)


def base_with_weights(base: BaseModel, source: CheckpointSource, name: str, gate: str) -> Network:
    """Add a head of that name and the network that weights its means to a base model (URM).

    The outputs are those of the head, then the score.
    """
    head = weighed_head(source.folder, name, gate)
    _require_fit(head, base, source, name)
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(base.model, base.backbone, head)


def token_scorer(source: CheckpointSource, token_ids: tuple[int, ...]) -> Network:
    """Load a causal model that scores candidates for the next token.

    The outputs are the logits of ``token_ids``, then the log of the sum over the vocabulary.
    """
    facts = _facts(source)
    model: Any = _load(AutoModelForCausalLM, source, facts, is_whole=False)
    head = vocabulary_head(model, token_ids)
    if head is None:
        return WholeNetwork(model, select=lambda logits: select_token_logits(logits, token_ids))
    return HeadedNetwork(model.base_model, _select_backend(model.base_model, source), head)


def text_generator(source: CheckpointSource) -> TextGenerator:
    """Load a causal model that generates text, with transformers' own attention."""
    return TextGenerator(_load(AutoModelForCausalLM, source, _facts(source), is_whole=False))


def comet_network(source: CheckpointSource) -> CometNetwork:
    """Load COMET's encoder, and the head that mixes its layers."""
    facts = _facts(source)
    form = comet_form(source.folder, facts.config)
    head = comet_head(source.folder, form)
    model = _load(AutoModel, replace(source, prefix=ENCODER), facts, is_whole=False)
    _onto_device(head.to(source.dtype), source.device)
    return CometNetwork(model, head, form)


#: Names in the files of PairRM.
_RANKER_BASE, _RANKER_HEAD = "pretrained_model", "head_layer"


def pair_ranker(source: CheckpointSource) -> Network:
    """Load PairRM: its base, and the head that reads prompt and candidates."""
    facts = _facts(source)
    model = _load(AutoModel, replace(source, prefix=_RANKER_BASE), facts, is_whole=False)
    head = pair_head(source.folder, _RANKER_HEAD)
    first = next(one for one in head.module.modules() if isinstance(one, torch.nn.Linear))
    if first.in_features != 2 * model.config.hidden_size:
        raise CheckpointError(
            f"{source.folder}: {_RANKER_HEAD} has {first.in_features} inputs, not two states of "
            f"width {model.config.hidden_size}: it is no PairRM"
        )
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(model, _select_backend(model, source), head)


def _facts(source: CheckpointSource) -> CheckpointFacts:
    """Inspect a checkpoint; refuse one that cannot be served as on its model card."""
    facts = inspect_folder(source.folder)
    if not facts.tensors:
        raise CheckpointError(no_weights(source.folder))
    require_readable_weights(facts)
    return facts


def _is_own_class(model: PreTrainedModel) -> bool:
    """Return whether a model's class is the checkpoint's own code."""
    return type(model).__module__.startswith("transformers_modules.")


def _require_fit(head: Head, base: BaseModel, source: CheckpointSource, name: str) -> None:
    """Raise `CheckpointError` if a head does not fit the width of the base's states."""
    first = next(one for one in head.module.modules() if isinstance(one, torch.nn.Linear))
    hidden = getattr(base.model.config.get_text_config(), "hidden_size", first.in_features)
    if first.in_features != hidden:
        raise CheckpointError(
            f"{source.folder}: the head {name} has {first.in_features} inputs, but the base's "
            f"states have width {hidden}: it does not read the state of one token"
        )


def _with_head(
    model: PreTrainedModel, head: Head | None, source: CheckpointSource, *, has_global: bool = False
) -> Network:
    if head is None:
        return WholeNetwork(model)
    base: Any = model.base_model
    has_global = has_global and isinstance(base, LongformerModel)
    return HeadedNetwork(base, _select_backend(base, source, has_global=has_global), head)


def _select_backend(
    model: PreTrainedModel, source: CheckpointSource, *, has_global: bool = False
) -> Backbone:
    return select_backend(
        model, has_global=has_global, prefix_cache_bytes=source.prefix_cache_bytes
    )


def _load(
    loader: Any,
    source: CheckpointSource,
    facts: CheckpointFacts,
    *,
    is_whole: bool = True,
) -> PreTrainedModel:
    """Load a model with all its tensors; raise `CheckpointError`.

    ``is_whole``: the class must have every tensor in the files, including the head.
    """
    adapter = None if source.adapter is None else read_adapter(source.adapter)
    options: dict[str, Any] = {
        "dtype": source.dtype,
        "trust_remote_code": source.trust_remote_code,
        "output_loading_info": True,
    }
    if loader in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        num_labels = _num_labels(source, adapter)
        options |= {} if num_labels is None else {"num_labels": num_labels}
    is_internlm2 = facts.model_type == internlm2.MODEL_TYPE and not source.trust_remote_code
    try:
        if is_internlm2 and loader is AutoModel:
            model, report = _load_internlm2(source, facts, options)
        elif source.prefix is not None:
            model, report = _load_under_prefix(loader, source, source.prefix, options)
        elif facts.quantization is not None and not facts.quantization.is_unknown:
            model, report = _load_dequantized(loader, source, options)
        else:
            model, report = loader.from_pretrained(str(source.folder), **options)
    except CheckpointError:
        raise
    except Exception as error:  # invalid files, or custom code, may raise anything
        told = loading_refusal(facts, error, is_trusted=source.trust_remote_code)
        raise CheckpointError(told) from error
    # A tensor missing in the files would be random. Poolers are not used.
    given = set() if adapter is None else adapter.merge_into(model)
    missing = sorted(
        key for key in report["missing_keys"] if not key.startswith("pooler.") and key not in given
    )
    if missing:
        raise CheckpointError(missing_refusal(facts, model, missing))
    require_known_tensors(facts, model, sorted(report["unexpected_keys"]), is_whole=is_whole)
    if facts.quantization is not None and facts.quantization.weights:
        model.to(source.device)  # its tensors are in their own memory
    else:
        _onto_device(model, source.device)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _num_labels(source: CheckpointSource, adapter: Adapter | None) -> int | None:
    """Return the number of outputs of a classifier if config.json lacks it (OpenRLHF).

    The adapter's head takes precedence over config.json, which is the base model's.
    """
    from_adapter = None if adapter is None else adapter.num_labels()
    config = json.loads((source.folder / "config.json").read_text("utf-8"))
    if from_adapter is not None or "num_labels" in config or "id2label" in config:
        return from_adapter
    weight = read_tensors(source.folder, "score").get("weight")
    return None if weight is None or weight.ndim != 2 else int(weight.shape[0])


def _load_under_prefix(
    loader: Any, source: CheckpointSource, prefix: str, options: dict[str, Any]
) -> Any:
    """Load a base whose tensor names have a custom prefix, such as Starling's `transformer`.

    Tensors without the prefix belong to a head and keep their names.
    """
    name = prefix.removesuffix(".")
    stored = open_tensors(source.folder, source.dtype)
    tensors = {key[len(name) + 1 :]: one for key, one in stored.items() if is_under(key, name)}
    if not tensors:
        raise CheckpointError(f"{source.folder} has no tensor under {name}.: check `prefix`")
    config = _plain_config(source)
    model_class = _model_class(loader, config)
    if model_class is None:
        raise CheckpointError(
            f"{source.folder}: `prefix` requires a model_type of transformers, not "
            f"{config.model_type!r}"
        )
    if loader is not AutoModel:
        base = f"{model_class.base_model_prefix}."
        tensors = {key if key.startswith(base) else base + key: one for key, one in tensors.items()}
        others = {key: one for key, one in stored.items() if not is_under(key, name)}
        tensors = others | tensors
    return _load_from(model_class, config, tensors, options)


def _load_dequantized(loader: Any, source: CheckpointSource, options: dict[str, Any]) -> Any:
    """Load a quantized checkpoint as the model that it was made from, one weight at a time."""
    config = _plain_config(source)
    class_name = (getattr(config, "auto_map", None) or {}).get(loader.__name__)
    if source.trust_remote_code and class_name is not None:
        model_class = get_class_from_dynamic_module(class_name, str(source.folder))
    else:
        model_class = _model_class(loader, config)
    if model_class is None:
        raise CheckpointError(
            f"{source.folder} is quantized, which requires a model_type that transformers has "
            f"for {loader.__name__}, not {config.model_type!r}"
        )
    return _load_from(model_class, config, open_tensors(source.folder, source.dtype), options)


def _plain_config(source: CheckpointSource) -> Any:
    """Return the configuration without its quantization, which the weights no longer have."""
    config = AutoConfig.from_pretrained(
        str(source.folder), trust_remote_code=source.trust_remote_code
    )
    for one in (config, config.get_text_config()):
        if hasattr(one, "quantization_config"):
            del one.quantization_config
    return config


def _model_class(loader: Any, config: Any) -> Any:
    """Return the class that an auto class of transformers has for a configuration, if any."""
    try:
        found = loader._model_mapping[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found


def _load_from(
    model_class: Any, config: Any, tensors: Mapping[str, LazyTensor], options: dict[str, Any]
) -> Any:
    """Load a class from open tensors."""
    model_options = {key: one for key, one in options.items() if key != "trust_remote_code"}
    if "num_labels" in model_options:
        config.num_labels = model_options.pop("num_labels")
    return model_class.from_pretrained(None, config=config, state_dict=tensors, **model_options)


def _load_internlm2(
    source: CheckpointSource, facts: CheckpointFacts, options: dict[str, Any]
) -> Any:
    """Load an InternLM2 base as the equivalent Llama."""
    config = internlm2.llama_config(facts.config)
    model_options = {key: one for key, one in options.items() if key != "trust_remote_code"}
    tensors = internlm2.llama_tensors(source.folder, config)
    return LlamaModel.from_pretrained(None, config=config, state_dict=tensors, **model_options)


def _onto_device(module: Any, device: torch.device) -> Any:
    """Move a module to its device, into its own memory.

    On a CPU, tensors may be views of the memory-mapped file and would change if the file were
    overwritten in place.
    """
    module.to(device)
    if device.type == "cpu":
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return module
