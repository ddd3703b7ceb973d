"""The optimizer of a training, as torch's: the last layer is a group of parameters by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from morphbits.models.synthmorph_torch import SynthMorph


def build(model: SynthMorph, share: bool = False) -> torch.optim.Optimizer:
    """Adam of the model's weights. `set_rate` comes before each step.

    share: each rank keeps the moments of some parameters only, updates these and hands them to
    all (ZeRO stage 1, Rajbhandari et al. 2020, doi:10.1109/SC41405.2020.00024). Adam works on each
    weight by itself, so that this changes no byte.
    """
    *body, flow = model.layers.values()
    groups: list[dict[str, Any]] = [
        {"params": list(nn.ModuleList(body).parameters())},
        {"params": list(flow.parameters())},
    ]
    if share:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # two seconds

        return ZeroRedundancyOptimizer(groups, torch.optim.Adam)
    return torch.optim.Adam(groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, flow_rate: float) -> None:
    """The learning rate of the next step; the last layer's is `rate * flow_rate`."""
    for group, share in zip(optimizer.param_groups, (1.0, flow_rate), strict=True):
        group["lr"] = rate * share
