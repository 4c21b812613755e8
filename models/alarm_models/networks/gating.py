"""ArmoRM's head: named objectives, and a gate that weighs them by the prompt.

    rewards = R x_last                        R: the regression layer, one row an objective
    gate    = softmax(MLP(x_prompt) / T) * c  x_prompt: the state where the prompt ends
    score   = sum_k gate_k * (rewards M)_k    M: takes verbosity out of the other objectives

(Wang et al. 2024, arXiv 2406.12845; RLHFlow/ArmoRM-Llama3-8B-v0.1.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alarm_models.errors import CheckpointError
from alarm_models.networks.checkpoint import read_tensors
from alarm_models.networks.heads import Head, mlp

__all__ = ["gated_head"]

#: Where the configuration names none (ArmoRM's own default).
_TEMPERATURE = 10.0


class _Gated(torch.nn.Module):
    """Takes ``[rows, hidden]`` to ``[rows, 3 * objectives]``: rewards, rewards M, and the gate.

    Every row has all three: the sample's last row is read for rewards, its prompt's for the gate.
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
        """Apply the three."""
        rewards = self._regression(states)
        gate = torch.softmax(self._gate(states) / self._temperature, -1) * self._scale
        return torch.cat([rewards, rewards @ self._transform, gate], -1)


def gated_head(folder: Path, name: str, config: Any) -> Head:
    """Read a regression layer of that name and the gate beside it from a checkpoint."""
    regression = mlp(read_tensors(folder, name), name)
    num_objectives = regression.num_outputs
    gate = mlp(read_tensors(folder, "gating.layers"), "gating.layers")
    if gate.num_outputs != num_objectives:
        raise CheckpointError(
            f"{folder}: the gate weighs {gate.num_outputs} objectives, {name} has {num_objectives}"
        )
    transform = read_tensors(folder, "reward_transform_matrix").get("")
    scale = read_tensors(folder, "gating.logit_scale").get("")
    head = _Gated(
        regression.module,
        gate.module,
        torch.eye(num_objectives) if transform is None else transform,
        torch.ones(1) if scale is None else scale,
        float(getattr(config, "gating_temperature", _TEMPERATURE)),
    )
    return Head(head, 3 * num_objectives, None)
