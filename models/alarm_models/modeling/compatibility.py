"""Compatibility checks of checkpoints: errors say what is in the files and what to write.

Nothing that would change a score is ignored silently: custom classes, tensors that the loaded class
does not have, quantized weights, normalization that only the checkpoint's own code applies.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from typing import Any

import transformers

from alarm_models.errors import CheckpointError, shortened
from alarm_models.modeling.checkpoint import pickle_refusal
from alarm_models.modeling.families import (
    families_by_name,
    is_stock_class,
    match_family,
    recipe_lines,
)
from alarm_models.modeling.inspection import CheckpointFacts, joined
from alarm_models.modeling.quantization import ADVICE, Quantization

__all__ = [
    "class_note",
    "dequantization_note",
    "loading_refusal",
    "missing_refusal",
    "require_known_tensors",
    "require_raw_scores",
    "require_readable_weights",
    "require_stock_class",
    "unknown_family_refusal",
]

#: Buffers in files of older versions, which classes now create themselves, and pretraining heads
#: that no reward reads.
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$"
    r"|(^|\.)pooler\.|^(lm_head|cls|mlm|lm_predictions|mask_predictions|discriminator_predictions)\."
)

#: Where lists of classes and general advice begin in messages of transformers.
_LISTS = re.compile(
    "This could be because|Model type should be one of|, one of|It must be one of|, or contain"
)

#: The maximum length of a quoted message of another library.
_MAX_QUOTED = 300


def require_readable_weights(facts: CheckpointFacts) -> None:
    """Raise `CheckpointError` for weights that are not read, and families that are not served."""
    family = match_family(facts)
    if family is not None and family.refusal is not None:
        raise CheckpointError(f"{facts.folder}: {family.refusal} ({facts.describe()})")
    quantization = facts.quantization
    if quantization is None or quantization.unsupported is None:
        return
    # transformers reads some methods with packages that are not installed with this server.
    if not (quantization.is_unknown and "quantization_config" in facts.config):
        raise CheckpointError(_quantized_refusal(facts, quantization))


def _quantized_refusal(facts: CheckpointFacts, quantization: Quantization) -> str:
    return (
        f"{facts.folder} is quantized ({shortened(quantization.method)}: "
        f"{quantization.evidence}), but {quantization.unsupported}. {ADVICE}"
    )


def dequantization_note(facts: CheckpointFacts, dtype: str) -> str | None:
    """Return a note on how quantized weights are served; None if they are not quantized."""
    quantization = facts.quantization
    if quantization is None or quantization.unsupported is not None:
        return None
    if not quantization.weights:
        return (
            f"{quantization.evidence} names {shortened(quantization.method)}, but no weight is "
            "quantized: they are served as they are"
        )
    note = f"weights dequantized from {shortened(quantization.method)} to {dtype}"
    if quantization.unused:
        first = quantization.unused[0]
        note += (
            f"; {len(quantization.unused)} scales of activations, keys or values ({first}) are not "
            "applied, since only weights are quantized here"
        )
    return note


def require_raw_scores(facts: CheckpointFacts) -> None:
    """Raise `CheckpointError` if the checkpoint's own code would normalize its scores."""
    keys = facts.normalization
    if keys:
        settings = ", ".join(f"{key} {value}" for key, value in keys.items())
        raise CheckpointError(
            f"{facts.folder}: config.json requires normalized scores ({settings}), which only kind "
            "`sequence` supports. Write that kind, or set the key to false in a copy of "
            "config.json for raw scores"
        )


def require_stock_class(facts: CheckpointFacts, auto_classes: Sequence[str], reads: str) -> None:
    """Raise `CheckpointError` if the checkpoint has its own code for one of the auto classes.

    The stock class would be loaded instead and may compute something else. ``reads`` names the
    stock class in the message.
    """
    custom = next((facts.auto_map[name] for name in auto_classes if name in facts.auto_map), None)
    first = facts.architectures[0] if facts.architectures else ""
    if custom is None or is_stock_class(first):
        return
    raise CheckpointError(
        f"{facts.folder} has its own class {custom} ({facts.describe()}); {reads} would not run "
        f"the forward of that class. {_what_to_write(facts)}or write "
        "`trust_remote_code = true` if you have read and trust its code"
    )


def class_note(facts: CheckpointFacts, loaded: str) -> str | None:
    """Return a warning if config.json names an unknown class, and another one is loaded."""
    first = facts.architectures[0] if facts.architectures else ""
    if not first or is_stock_class(first):
        return None
    return (
        f"config.json names the class {first}, which transformers does not have: it is loaded "
        f"as {loaded}. Check its model card that this is what that class computes"
    )


def missing_refusal(facts: CheckpointFacts, model: Any, missing: Sequence[str]) -> str:
    """Return which tensors are missing, what the files contain instead, and what to write."""
    name = type(model).__name__
    text = (
        f"{facts.folder} lacks {_counted(missing)} of {name} ({joined(missing)}), which would "
        f"be random; {facts.describe()}. "
    )
    base, wanted = facts.base_prefix, f"{getattr(model, 'base_model_prefix', '')}."
    family = match_family(facts)
    # The loader of a pair ranker sets the prefix itself; the family's `kind` is what to write.
    is_pair_ranker = family is not None and family.recipe.get("kind") == "compare"
    if base and base != wanted and len(missing) > 4 and not is_pair_ranker:
        return text + (
            f"The base's tensors are under {base}, not under {wanted}: write "
            f'`prefix = "{base}"`' + (f" and {_head_line(facts)}" if facts.head_names else "")
        )
    return text + (_what_to_write(facts).removesuffix(", ") or "Check `kind` and `head`")


def require_known_tensors(
    facts: CheckpointFacts, model: Any, unexpected: Sequence[str], *, is_whole: bool
) -> None:
    """Raise `CheckpointError` if a class ignores tensors that its scores depend on.

    For a class that is run with its own head these are all tensors except pretraining heads; else
    those of a loaded module, such as a head's bias or the scales of quantized weights.
    """
    relevant = [name for name in unexpected if not _HARMLESS.search(name)]
    modules = dict(model.named_modules())
    ignored = [one for one in relevant if is_whole or _is_within(one, modules, model)]
    if ignored:
        raise CheckpointError(
            f"{facts.folder} holds {_counted(ignored)} that {type(model).__name__} does not have "
            f"({joined(_shaped(facts, ignored))}): without them its scores would be wrong; "
            f"{facts.describe()}. {_what_to_write(facts)}or convert the checkpoint to the layout "
            "of the class that its config.json names"
        )


def _is_within(name: str, modules: dict[str, Any], model: Any) -> bool:
    """Return whether a tensor belongs to a loaded module, with or without the base's prefix."""
    owner = name.rpartition(".")[0]
    prefix = f"{model.base_model_prefix}."
    known = {owner, owner.removeprefix(prefix), prefix + owner}
    return bool(owner) and any(one in modules for one in known)


def _counted(tensors: Sequence[str]) -> str:
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)}"


def _shaped(facts: CheckpointFacts, names: Sequence[str]) -> list[str]:
    return [f"{name}{facts.tensors.get(name) or ''}" for name in names]


def loading_refusal(facts: CheckpointFacts, error: Exception, *, is_trusted: bool) -> str:
    """Return why transformers or the checkpoint's own code could not load it."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return pickle_refusal(str(facts.folder), error)
    if facts.quantization is not None and facts.quantization.unsupported is not None:
        message = _first_sentence(error)
        return f"{_quantized_refusal(facts, facts.quantization)} (transformers says: {message})"
    text = f"{facts.folder} cannot be loaded: {_reason(facts, error)}; {facts.describe()}. "
    if is_trusted and facts.auto_map:
        text += (
            f"Its own code does not run with transformers {transformers.__version__}: remove "
            "`trust_remote_code` and write the keys that read its score, or serve it with its "
            "version of transformers and request its scores with kind `remote`. "
        )
    elif facts.auto_map and not is_trusted:
        text += "Write `trust_remote_code = true` if you have read and trust its own code. "
    return (text + _what_to_write(facts)).strip().removesuffix(",")


def unknown_family_refusal(facts: CheckpointFacts) -> str:
    """Return the error for a checkpoint of no known family: what is in it, and what to write."""
    if facts.auto_map and not (facts.architectures and is_stock_class(facts.architectures[0])):
        options = (
            "Its own class computes its score: if you have read and trust its code, write "
            "`trust_remote_code = true` (`--set models.rm.trust_remote_code=true` beside "
            "`--model`); "
        )
    else:
        options = _by_name(facts) + _what_to_write(facts)
    fallback = (
        "write a recipe that follows its card: `kind`, `template` and `head`, see docs/kinds.md"
    )
    return (
        f"{facts.folder}: its files do not determine how its score is read; {facts.describe()}. "
        f"{options}{'or ' if options else ''}{fallback if options else fallback.capitalize()}"
    )


def _by_name(facts: CheckpointFacts) -> str:
    """Return the recipe lines of families that are identified by name only."""
    # A judge's question is too long for an error, and is another for each family.
    named = [one for one in families_by_name(facts) if one.recipe["kind"] != "judge"]
    if not named:
        return ""
    lines = "; ".join(f"{one.name}: `{recipe_lines(one.recipe)}`" for one in named)
    return (
        "Some models are recognized by their names only: name the folder as on the hub, or write "
        f"the keys ({lines}), with `--set models.rm.KEY=VALUE` beside `--model`. "
    )


def _reason(facts: CheckpointFacts, error: Exception) -> str:
    message = str(error)
    if "ignore_mismatched_sizes" in message:
        return (
            f"its tensors have other shapes than its class (config.json says num_labels "
            f"{facts.num_labels or 'nothing, which means 2'})"
        )
    if "custom code which must be executed" in message:
        return "it has its own class, which is not trusted"
    return _first_sentence(error)


def _first_sentence(error: Exception) -> str:
    """Return the message of an error without the lists of classes that transformers adds."""
    message = _LISTS.split(str(error))
    text = " ".join(message[0].split()) or type(error).__name__
    if not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _what_to_write(facts: CheckpointFacts) -> str:
    """Return the recipe lines of the family, or of the heads found, as a clause."""
    family = match_family(facts)
    if family is not None and family.recipe:
        return f"For {family.name} write `{recipe_lines(family.recipe)}`, "
    if facts.head_names:
        return f"If its score is linear in the last token's state, write {_head_line(facts)}, "
    if any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in facts.architectures):
        return (
            "It is a causal language model without a reward head: kind `generative` (`positive`, "
            "`negative`) reads the next token, kind `steps` (`positive`, `negative`, `step_token`) "
            "the one after each step, kind `judge` (`rubric`) the rating that it writes, kind "
            "`rubric` (`criteria`) its verdicts on criteria, kind `compare` which answer of a "
            "group it prefers (a DPO model's reward also requires its reference model and is not "
            "supported), "
        )
    return ""


def _head_line(facts: CheckpointFacts) -> str:
    return " or ".join(f'`head = "{name}"`' for name in facts.head_names[:3])
