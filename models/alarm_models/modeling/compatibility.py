"""What a checkpoint is refused for, in sentences that say what is in its files and what to write.

Nothing that would change a score is dropped in silence: classes of a checkpoint's own, tensors that
the loaded class does not know, quantised weights, normalisations that only its own code applies.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from typing import Any

import transformers

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import pickle_refusal
from alarm_models.modeling.families import is_stock_class, match_family, recipe_lines
from alarm_models.modeling.inspection import CheckpointFacts, Quantization, joined

__all__ = [
    "class_note",
    "loading_refusal",
    "missing_refusal",
    "require_known_tensors",
    "require_plain_weights",
    "require_raw_scores",
    "require_stock_class",
    "unknown_family_refusal",
]

#: What files of older versions hold beside the weights, which classes now make themselves, and
#: heads of pretraining that no reward reads.
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$"
    r"|(^|\.)pooler\.|^(lm_head|cls|mlm|lm_predictions|mask_predictions|discriminator_predictions)\."
)

#: What a quantisation's files are read with, where anything here could.
_QUANTISED_WAYS = {
    "gptq": "GPTQ weights need kernels that are not installed with this server",
    "awq": "AWQ weights need kernels that are not installed with this server",
    "bitsandbytes": "bitsandbytes weights need kernels that are not installed with this server",
}

#: Where transformers' messages go over into lists of classes and general advice.
_LISTS = re.compile(
    "This could be because|Model type should be one of|, one of|It must be one of|, or contain"
)

#: The most of another library's message that is told.
_MAX_TOLD = 300


def require_plain_weights(facts: CheckpointFacts) -> None:
    """Raise `CheckpointError` for quantised weights, and for families that cannot be served."""
    family = match_family(facts)
    if family is not None and family.refusal is not None:
        raise CheckpointError(f"{facts.folder}: {family.refusal} ({facts.describe()})")
    # What config.json says of it, transformers follows where its libraries are there.
    if facts.quantization is not None and "quantization_config" not in facts.config:
        raise CheckpointError(_quantised_refusal(facts, facts.quantization))


def _quantised_refusal(facts: CheckpointFacts, found: Quantization) -> str:
    method = found.method
    way = _QUANTISED_WAYS.get(method.lower(), f"{method} weights are not read by this server")
    return (
        f"{facts.folder} is quantised ({method}: {found.evidence}). {way}. Give the unquantised "
        'checkpoint that it was made from, with `dtype = "bfloat16"`; or serve it by vLLM or '
        "SGLang, and ask it by kind `remote`"
    )


def require_raw_scores(facts: CheckpointFacts) -> None:
    """Raise `CheckpointError` where the checkpoint's own code would normalise its scores."""
    keys = facts.normalization
    if keys:
        told = ", ".join(f"{key} {value}" for key, value in keys.items())
        raise CheckpointError(
            f"{facts.folder}: config.json asks that scores are normalised ({told}), which kind "
            "`sequence` does, and this kind does not. Write that kind, or set the key to false in "
            "a copy of config.json for raw scores"
        )


def require_stock_class(facts: CheckpointFacts, auto_classes: Sequence[str], reads: str) -> None:
    """Raise `CheckpointError` where the checkpoint has code of its own for what is to be loaded.

    The stock class would be loaded in its place, and may compute something else. ``reads`` says
    what the stock class would be.
    """
    own = next((facts.auto_map[name] for name in auto_classes if name in facts.auto_map), None)
    first = facts.architectures[0] if facts.architectures else ""
    if own is None or is_stock_class(first):
        return
    raise CheckpointError(
        f"{facts.folder} is to be run by its own class {own} ({facts.describe()}); {reads} in its "
        f"place would pass its forward over. {_what_to_write(facts)}or write "
        "`trust_remote_code = true` where you have read and trust its code"
    )


def class_note(facts: CheckpointFacts, loaded: str) -> str | None:
    """Return a warning where a class without code here is named, and another one is loaded."""
    first = facts.architectures[0] if facts.architectures else ""
    if not first or is_stock_class(first):
        return None
    return (
        f"config.json names the class {first}, which transformers does not have: it is read as "
        f"{loaded}. See on its card that this is what its class computes"
    )


def missing_refusal(facts: CheckpointFacts, model: Any, missing: Sequence[str]) -> str:
    """Say which tensors a class lacks, what the files hold instead, and what to write."""
    name = type(model).__name__
    text = (
        f"{facts.folder} lacks {_counted(missing)} of {name} ({joined(missing)}), which would "
        f"be random; {facts.describe()}. "
    )
    base, wanted = facts.base_prefix, f"{getattr(model, 'base_model_prefix', '')}."
    if base and base != wanted and len(missing) > 4:
        return text + (
            f"The base's tensors stand under {base}, not under {wanted}: write "
            f'`prefix = "{base}"`' + (f" and {_head_line(facts)}" if facts.head_names else "")
        )
    return text + (_what_to_write(facts).removesuffix(", ") or "Is the kind or `head` right?")


def require_known_tensors(
    facts: CheckpointFacts, model: Any, unexpected: Sequence[str], *, is_whole: bool
) -> None:
    """Raise `CheckpointError` where a class drops tensors that its scores would need.

    Those are all but heads of pretraining where the class is run whole, with its own head; else
    those within a module that is loaded: a head's bias, the scales of quantised weights.
    """
    left = [name for name in unexpected if not _HARMLESS.search(name)]
    modules = dict(model.named_modules())
    lost = [one for one in left if is_whole or _is_within(one, modules, model)]
    if lost:
        raise CheckpointError(
            f"{facts.folder} holds {_counted(lost)} that {type(model).__name__} does not know "
            f"({joined(_shaped(facts, lost))}): without them its scores would be other ones; "
            f"{facts.describe()}. {_what_to_write(facts)}or give the checkpoint in the layout of "
            "the class that its config.json names"
        )


def _is_within(name: str, modules: dict[str, Any], model: Any) -> bool:
    """Say whether a tensor belongs to a module that is loaded, with or without the base's name."""
    owner = name.rpartition(".")[0]
    prefix = f"{model.base_model_prefix}."
    known = {owner, owner.removeprefix(prefix), prefix + owner}
    return bool(owner) and any(one in modules for one in known)


def _counted(tensors: Sequence[str]) -> str:
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)}"


def _shaped(facts: CheckpointFacts, names: Sequence[str]) -> list[str]:
    return [f"{name}{facts.tensors.get(name) or ''}" for name in names]


def loading_refusal(facts: CheckpointFacts, error: Exception, *, is_trusted: bool) -> str:
    """Say why transformers, or code of the checkpoint's own, could not load it."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return pickle_refusal(str(facts.folder), error)
    if facts.quantization is not None:
        told = _first_sentence(error)
        return f"{_quantised_refusal(facts, facts.quantization)} (transformers says: {told})"
    text = f"{facts.folder} cannot be loaded: {_told(facts, error)}; {facts.describe()}. "
    if is_trusted and facts.auto_map:
        text += (
            f"Its own code does not run with transformers {transformers.__version__}: leave "
            "`trust_remote_code` out and name what its score is read by, or run it where its "
            "version of transformers is, and ask it by kind `remote`. "
        )
    elif facts.auto_map and not is_trusted:
        text += "Write `trust_remote_code = true` where you have read and trust its own code. "
    return (text + _what_to_write(facts)).strip().removesuffix(",")


def unknown_family_refusal(facts: CheckpointFacts) -> str:
    """Say that nothing tells how a checkpoint is read, what is in it, and what to write."""
    if facts.auto_map and not (facts.architectures and is_stock_class(facts.architectures[0])):
        ways = (
            "Its own class computes its score: where you have read and trust its code, write a "
            f'recipe with `kind = "sequence"`, `checkpoint = "{facts.folder}"` and '
            "`trust_remote_code = true`; "
        )
    else:
        ways = _what_to_write(facts)
    rest = "write a recipe as its card reads it: `kind`, `template` and `head`, see docs/kinds.md"
    return (
        f"{facts.folder}: its files do not tell how its score is read; {facts.describe()}. "
        f"{ways}{'or ' if ways else ''}{rest if ways else rest.capitalize()}"
    )


def _told(facts: CheckpointFacts, error: Exception) -> str:
    said = str(error)
    if "ignore_mismatched_sizes" in said:
        return (
            f"its tensors have other sizes than its class makes (config.json says num_labels "
            f"{facts.num_labels or 'nothing, which stands for 2'})"
        )
    if "custom code which must be executed" in said:
        return "it has a class of its own, and is not trusted"
    return _first_sentence(error)


def _first_sentence(error: Exception) -> str:
    """Return what an error says, without the lists of class names that transformers adds."""
    said = _LISTS.split(str(error))
    text = " ".join(said[0].split()) or type(error).__name__
    if not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_TOLD else f"{text[:_MAX_TOLD]}…"


def _what_to_write(facts: CheckpointFacts) -> str:
    """Return the lines of the family's recipe, or of the heads that are there, as a clause."""
    family = match_family(facts)
    if family is not None and family.recipe:
        return f"As {family.name}: write `{recipe_lines(family.recipe)}`, "
    if facts.head_names:
        return f"If its score is linear in the last token's state, write {_head_line(facts)}, "
    if any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in facts.architectures):
        return (
            "It is a causal language model without a reward head: kind `generative` (`positive`, "
            "`negative`) reads the next token, kind `steps` (`positive`, `negative`, `step_token`) "
            "the one after each step, kind `remote` asks a judge that writes its verdict (a DPO "
            "model's reward takes its reference model too, and is not served), "
        )
    return ""


def _head_line(facts: CheckpointFacts) -> str:
    return " or ".join(f'`head = "{name}"`' for name in facts.head_names[:3])
