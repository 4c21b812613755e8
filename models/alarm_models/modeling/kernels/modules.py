"""Replaces parts of a transformer on a CPU by ones that call the compiled kernels.

A part is replaced only if the kernel gives its outputs: root-mean-square norms, gated MLPs with
SiLU, BERT's exact GELUs and layer norms of a sum, and attention layers that rotate the halves of
their heads together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.kernel_timing import is_exact
from alarm_models.modeling.kernels.library import CompiledKernels, compiled_kernels

__all__ = [
    "FusedGatedMlp",
    "FusedIntermediate",
    "FusedRMSNorm",
    "FusedResidualNorm",
    "count_fused",
    "fuse_modules",
    "rotate_heads",
    "unfuse_modules",
]

#: Tokens, and the width of heads, with which a part is tried.
_TOKENS, _ROTATED = 5, 32

#: Sizes of the states with which a part is tried: small ones show the epsilon of a norm, and large
#: ones a limit of an activation.
_SCALES = (0, 1e-3, 1, 1e3)

#: The names of a norm's epsilon.
_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")

#: The parts of a gated MLP.
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}

#: The parts of a layer of BERT that activates.
_INTERMEDIATE = {"dense", "intermediate_act_fn"}

#: The parts of a layer of BERT that adds the residual.
_RESIDUAL_NORM = {"dense", "LayerNorm", "dropout"}

#: The attribute with the original class of an attention layer whose class is replaced.
_ORIGINAL = "_alarm_unfused_class"

#: The function that transformers' attention layers call to rotate queries and keys.
_ROTATE = "apply_rotary_pos_emb"


class FusedRMSNorm(torch.nn.Module):
    """Replaces a root-mean-square norm."""

    def __init__(self, module: torch.nn.Module, kernels: CompiledKernels) -> None:
        """Raise `ValueError` if the module's epsilon is unknown."""
        super().__init__()
        self.module: Any = module
        self._kernels = kernels
        (self._epsilon,) = {
            float(getattr(module, one)) for one in _EPSILONS if hasattr(module, one)
        }

    @property
    def weight(self) -> torch.Tensor:
        """The weight, ``[width]``."""
        weight: torch.Tensor = self.module.weight
        return weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return normed states, ``[..., width]``."""
        weight = self.module.weight
        if states.dtype is not weight.dtype:
            plain: torch.Tensor = self.module(states)
            return plain
        return self._kernels.rms_norm(states.contiguous(), weight, self._epsilon)


class FusedGatedMlp(torch.nn.Module):
    """Replaces a gated MLP whose activation is SiLU."""

    def __init__(self, module: torch.nn.Module, kernels: CompiledKernels) -> None:
        super().__init__()
        self.module: Any = module
        self._kernels = kernels

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the MLP's output, ``[..., width]``."""
        mlp = self.module
        gate, up = mlp.gate_proj(states), mlp.up_proj(states)
        activated: torch.Tensor = mlp.down_proj(self._kernels.gated_silu_(gate, up))
        return activated


class FusedResidualNorm(torch.nn.Module):
    """Replaces BERT's linear layer with the layer norm of its sum with the residual."""

    def __init__(self, module: torch.nn.Module, kernels: CompiledKernels) -> None:
        super().__init__()
        self.module: Any = module
        self._kernels = kernels

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return normed states, ``[..., width]``."""
        norm = self.module.LayerNorm
        states = self.module.dense(states)
        return self._kernels.residual_norm_(
            states.contiguous(), residual.contiguous(), norm.weight, norm.bias, norm.eps
        )


class FusedIntermediate(torch.nn.Module):
    """Replaces BERT's linear layer with an exact GELU."""

    def __init__(self, module: torch.nn.Module, kernels: CompiledKernels) -> None:
        super().__init__()
        self.module: Any = module
        self._kernels = kernels

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return activated states, ``[..., intermediate width]``."""
        return self._kernels.gelu_(self.module.dense(states).contiguous())


_Fused = FusedRMSNorm | FusedGatedMlp | FusedResidualNorm | FusedIntermediate


@torch.inference_mode()
def fuse_modules(model: PreTrainedModel) -> None:
    """Replace the parts of a model that the kernels can compute, in place."""
    kernels = compiled_kernels(model.dtype)
    if kernels is None:
        return
    for parent, name, child in list(_children(model)):
        fused = _fused(child, kernels)
        if fused is not None:
            setattr(parent, name, fused)
    classes: dict[type, type | None] = {}
    for module in model.modules():
        _fuse_rotation(module, kernels, classes)


def unfuse_modules(model: torch.nn.Module) -> None:
    """Undo `fuse_modules`."""
    for parent, name, child in list(_children(model)):
        if isinstance(child, _Fused):
            setattr(parent, name, child.module)
    for module in model.modules():
        original = vars(type(module)).get(_ORIGINAL)
        if original is not None:
            module.__class__ = original


def count_fused(model: torch.nn.Module) -> int:
    """Return how many parts of a model are replaced."""
    return sum(isinstance(one, _Fused) or _ORIGINAL in vars(type(one)) for one in model.modules())


def _children(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _fused(module: Any, kernels: CompiledKernels) -> torch.nn.Module | None:
    """Return what replaces a module; None if nothing does, or if the outputs would differ."""
    if "forward" in vars(module):
        return None  # wrapped by custom code
    try:
        parts = {name for name, _ in module.named_children()}
        fused: _Fused
        if type(module).__name__.endswith("RMSNorm"):
            fused, widths = FusedRMSNorm(module, kernels), [len(module.weight)]
        elif parts == _MLP:
            fused, widths = FusedGatedMlp(module, kernels), [module.gate_proj.in_features]
        elif parts == _INTERMEDIATE and kernels.has_gelu:
            fused, widths = FusedIntermediate(module, kernels), [module.dense.in_features]
        elif parts == _RESIDUAL_NORM:
            widths = [module.dense.in_features, module.dense.out_features]
            fused = FusedResidualNorm(module, kernels)
        else:
            return None
        # What is between the parts uses no other names: no limit, scale or router.
        is_known = not parts or parts >= {*type(module).forward.__code__.co_names}
        states = [_random(1, _TOKENS, width).to(kernels.dtype) for width in widths]
        return fused if is_known and _is_alike(fused, module, states) else None
    except Exception:  # a module of custom code may raise anything
        return None


def _is_alike(fused: _Fused, module: Any, states: Sequence[torch.Tensor]) -> bool:
    scaled = [[one * scale for one in states] for scale in _SCALES]
    return all(is_exact(fused(*some), module(*some)) for some in scaled)


class _Rotation:
    """Replaces the function with which attention layers rotate queries and keys."""

    def __init__(self, original: Callable[..., Any], kernels: CompiledKernels) -> None:
        self._original, self._kernels = original, kernels

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if len(arguments) == 4 and not named:
            query, key, cosine, sine = arguments
            if _can_rotate((query, key), cosine, sine, self._kernels):
                return tuple(_rotated(one, cosine, sine, self._kernels) for one in (query, key))
        return self._original(*arguments, **named)


def rotate_heads(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate heads ``[batch, heads, tokens, dim]`` to their positions (Su et al. 2021).

    ``cosine`` and ``sine`` are ``[batch, tokens, dim]``.
    """
    kernels = compiled_kernels(states.dtype) if states.device.type == "cpu" else None
    if kernels is not None and _can_rotate((states,), cosine, sine, kernels):
        return _rotated(states, cosine, sine, kernels)
    one, other = states.chunk(2, -1)
    return states * cosine[:, None] + torch.cat([-other, one], -1) * sine[:, None]


def _can_rotate(heads: Sequence[Any], cosine: Any, sine: Any, kernels: CompiledKernels) -> bool:
    return (
        all(
            isinstance(one, torch.Tensor) and one.dtype is kernels.dtype
            for one in (*heads, cosine, sine)
        )
        and cosine.shape == sine.shape
        and all(
            one.ndim == 4
            and (one.shape[0], *one.shape[2:]) == cosine.shape
            and one.shape[-1] % 2 == 0
            for one in heads
        )
    )


def _rotated(
    states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, kernels: CompiledKernels
) -> torch.Tensor:
    # Queries and keys are views of [batch, tokens, heads, dim].
    tokens = states.transpose(1, 2).contiguous()
    out = kernels.rotate(
        tokens.flatten(0, 1), cosine.contiguous().flatten(0, 1), sine.contiguous().flatten(0, 1)
    )
    return out.view(tokens.shape).transpose(1, 2)


def _fuse_rotation(
    module: torch.nn.Module, kernels: CompiledKernels, classes: dict[type, type | None]
) -> None:
    """Let an attention layer call the kernel instead of its module's function, if that is the same.

    Only this layer is changed: it gets a class whose ``forward`` is a copy that looks up the
    function elsewhere.
    """
    kind = type(module)
    if "forward" in vars(module) or _ORIGINAL in vars(kind):
        return
    if kind not in classes:
        classes[kind] = _with_rotation(kind, kernels)
    replaced = classes[kind]
    if replaced is not None:
        module.__class__ = replaced


def _with_rotation(kind: type[torch.nn.Module], kernels: CompiledKernels) -> type | None:
    forward = kind.forward
    if not isinstance(forward, FunctionType) or _ROTATE not in forward.__code__.co_names:
        return None
    original = forward.__globals__.get(_ROTATE)
    if original is None:
        return None
    rotation = _Rotation(original, kernels)
    query, key = _random(2, 1, 2, _TOKENS, _ROTATED).to(kernels.dtype)
    cosine, sine = _random(2, 1, _TOKENS, _ROTATED).to(kernels.dtype)
    try:
        pairs = zip(
            rotation(query, key, cosine, sine), original(query, key, cosine, sine), strict=True
        )
        if not all(is_exact(one, other) for one, other in pairs):
            return None
    except Exception:  # a function of custom code may raise anything
        return None
    copied = FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTATE: rotation},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    members = {"forward": copied, _ORIGINAL: kind, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
