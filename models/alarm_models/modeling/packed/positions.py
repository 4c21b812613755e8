"""Position tables of a model, the first position, and rotary scaling that depends on length.

All of it is determined by running the model or parts of it rather than from a list of model types:
a type missing from a list would be served wrongly.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lengths", "ModuleState", "PositionTables", "first_position", "lengths_of"]

#: Number of positions whose rotations are compared.
_NUM_COMPARED = 8

#: Limits at or above this value mean that there is no limit.
_NO_LIMIT = 1 << 24

#: Configuration keys, at any depth, of the length at which position scaling begins.
_LIMITS = {
    "max_position_embeddings",
    "max_seq_len",
    "n_positions",
    "original_max_position_embeddings",
    "original_max_seq_len",
    "seq_length",
}


class PositionTables(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observes forward passes of single samples to find the size of the position tables.

    A position table is an embedding whose largest index grows by one with each token.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._largest: dict[tuple[int, int], dict[int, int]] = {}
        self._num_tokens = 0
        self._lengths: set[int] = set()

    def watch(self, num_tokens: int) -> PositionTables:
        """Set the number of tokens of the sample that runs in the block, which has no padding."""
        self._num_tokens = num_tokens
        self._lengths.add(num_tokens)
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Record the largest index into each table."""
        if func is torch.ops.aten.embedding.default and args[1].numel():
            table = (args[0].data_ptr(), args[0].shape[0])
            indices = self._largest.setdefault(table, {})
            largest = int(args[1].max())
            indices[self._num_tokens] = max(largest, indices.get(self._num_tokens, largest))
        return func(*args, **(kwargs or {}))

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens that every position table supports; None without a table."""
        if len(self._lengths) < 3:
            return None
        sizes = []
        for (_, num_rows), largest in self._largest.items():
            firsts = {index + 1 - length for length, index in largest.items()}
            if set(largest) == self._lengths and len(firsts) == 1:
                sizes.append(num_rows - firsts.pop())
        return min(sizes, default=None)


def first_position(model: torch.nn.Module) -> int | None:
    """Return the padding id after which position ids start, and which they skip.

    RoBERTa and similar model types store it as the table's ``padding_idx``; None for positions that
    start at 0.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        if padding is not None and getattr(module, "padding_idx", None) == padding:
            return int(padding)
    return None


class ModuleState:
    """State of modules other than weights, to detect and undo changes made by a pass.

    BigBird permanently disables its sparse attention after the first short sample, and RoPE with
    dynamic scaling keeps the frequencies of the longest sample: scores would depend on earlier
    passes.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._saved = [(module, _state_of(module)) for module in modules]

    @property
    def is_changed(self) -> bool:
        """Whether a plain value or a submodule has changed; caches are ignored."""
        return any(_differs(module, saved) for module, saved in self._saved)

    def restore(self) -> None:
        """Restore the saved state."""
        for module, saved in self._saved:
            for name in set(module.__dict__) - set(saved):
                del module.__dict__[name]
            module.__dict__.update({name: _copied(name, value) for name, value in saved.items()})


def _state_of(module: torch.nn.Module) -> dict[str, Any]:
    return {name: _copied(name, value) for name, value in module.__dict__.items()}


def _copied(name: str, value: Any) -> Any:
    """Copy a value if it is the mapping that holds a module's buffers or submodules."""
    return dict(value) if name in ("_buffers", "_modules") else value


def _differs(module: torch.nn.Module, saved: Mapping[str, Any]) -> bool:
    now = module.__dict__
    if any(now["_modules"].get(name) is not one for name, one in saved["_modules"].items()):
        return True
    plain = {
        name: value
        for name, value in saved.items()
        if isinstance(value, bool | int | float | str) and "cache" not in name
    }
    return any(now.get(name) != value for name, value in plain.items())


class Lengths:
    """Which samples may run in one batch, if rotary frequencies depend on the longest sample.

    LongRoPE uses other frequencies for all positions if the longest sample exceeds
    ``original_max_position_embeddings``; dynamic scaling uses separate ones for each length above
    the limit. Samples of one class of lengths have the same frequencies, alone or together.
    """

    def __init__(
        self, limits: Sequence[int] = (), *, is_open: bool = False, state: ModuleState | None = None
    ) -> None:
        self._limits = sorted(limits)
        self._is_open = is_open
        self._state = state

    @property
    def num_classes(self) -> int:
        """Number of classes that contain samples of different lengths."""
        return len(self._limits) + (not self._is_open)

    @property
    def is_open(self) -> bool:
        """Whether each length above the last limit is a separate class."""
        return self._is_open

    @property
    def is_stateful(self) -> bool:
        """Whether a pass changes rotary embeddings, so that no two may run at once."""
        return self._state is not None or self.num_classes > 1 or self._is_open

    def of(self, num_tokens: int) -> int:
        """Return the class of a sample's length, numbered from 0."""
        index = bisect_left(self._limits, num_tokens)
        return num_tokens if self._is_open and index == len(self._limits) else index

    def parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return groups of sample indices that may run together; each group is in order."""
        parts: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            parts.setdefault(self.of(length), []).append(index)
        return list(parts.values())

    def begin(self) -> None:
        """Restore the rotary state of a freshly loaded model before the next pass."""
        if self._state is not None:
            self._state.restore()


def lengths_of(model: torch.nn.Module) -> Lengths:
    """Find the lengths at which a model's rotary embeddings switch to other frequencies.

    The embeddings are run for a few positions on both sides of every limit in the configuration.
    """
    config: Any = getattr(model, "config", None)
    named = config.to_dict() if hasattr(config, "to_dict") else {}
    named_limits = {one for one in _values(named, _LIMITS) if isinstance(one, int)}
    candidates = sorted(one for one in named_limits if 2 < one < _NO_LIMIT)
    rotary = [module for module in model.modules() if _is_rotary(module)]
    # If every layer has a rotary embedding, they are equal.
    different = {(type(one), id(getattr(one, "config", None))): one for one in rotary}
    limits: set[int] = set()
    opens: set[int] = set()
    try:
        for module in different.values():
            fixed, opening = _turns(module, candidates)
            limits |= fixed
            opens |= opening
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        # The module takes other inputs than positions: rely on the configuration.
        is_open = _is_named_dynamic(named)
        return Lengths(is_open=is_open, state=ModuleState(rotary) if is_open else None)
    if _is_scaled_by_length(named):
        return Lengths(is_open=True, state=ModuleState(rotary))
    if not opens:
        return Lengths(sorted(limits))
    first = min(opens)
    below = sorted(limit for limit in limits if limit <= first)
    return Lengths(below, is_open=True, state=ModuleState(rotary))


def _turns(module: torch.nn.Module, candidates: Sequence[int]) -> tuple[set[int], set[int]]:
    """Return the limits above which all rotations differ, and those above which they vary."""
    limits: set[int] = set()
    for layer_type in _layer_types(module):
        for limit, after in zip(candidates, [*candidates[1:], None], strict=True):
            within, beyond = (_rotation(module, limit + more, layer_type) for more in (0, 1))
            if torch.equal(within, beyond):
                continue
            limits.add(limit)
            far = 2 * limit if after is None else min(2 * limit, after)
            further = _rotation(module, far, layer_type)
            if far > limit + 1 and not torch.equal(beyond, further):
                return limits, {limit}
    return limits, set()


def _rotation(module: torch.nn.Module, num_tokens: int, layer_type: str | None) -> torch.Tensor:
    """Return the rotations of the first positions in a sample of ``num_tokens`` tokens."""
    # A copy, since some modules keep the frequencies of the longest sample.
    fresh: Any = copy.deepcopy(module)
    device = next((one.device for one in module.buffers()), torch.device("cpu"))
    first = torch.arange(min(_NUM_COMPARED, num_tokens - 1), device=device)
    positions = torch.cat([first, first.new_tensor([num_tokens - 1])]).unsqueeze(0)
    states = torch.zeros(1, 1, 1, device=device)
    output = fresh(states, positions, **({} if layer_type is None else {"layer_type": layer_type}))
    rotation = output[0] if isinstance(output, tuple) else output
    if rotation.shape[:2] != positions.shape:
        raise ValueError(f"{type(module).__name__} does not return one rotation per position")
    rotation = rotation[:, :-1]
    return torch.view_as_real(rotation) if rotation.is_complex() else rotation


def _layer_types(module: torch.nn.Module) -> list[str | None]:
    types = getattr(module, "rope_type", None)
    return [*types] if isinstance(types, dict) else [None]


def _is_rotary(module: torch.nn.Module) -> bool:
    return any("inv_freq" in name for name in {**module._buffers, **module.__dict__})


def _is_named_dynamic(named: Mapping[str, Any]) -> bool:
    types = [str(one) for one in _values(named, {"rope_type", "type"})]
    return any("dynamic" in one or one in ("longrope", "su") for one in types)


def _is_scaled_by_length(named: Mapping[str, Any]) -> bool:
    """Return whether a model with custom code scales by length (two keys of the first Qwen)."""
    return True in list(_values(named, {"use_dynamic_ntk", "use_logn_attn"}))


def _values(named: object, keys: set[str]) -> Iterator[object]:
    """Yield the values of these keys in a configuration, at any depth."""
    if isinstance(named, dict):
        for key, value in named.items():
            if key in keys:
                yield value
            yield from _values(value, keys)
