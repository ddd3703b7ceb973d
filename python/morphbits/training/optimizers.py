"""The optimizers of a training, as torch's: the last layer is a group of parameters by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.training.recipe import TrainConfig


class KerasAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) by the rule of Keras 2 and 3, which SynthMorph
    was trained with.

    ε, 1e-7, is added to √v, not yet corrected for its start at zero; torch adds 1e-8 to the
    corrected one. So a derivative of less than about 3e-6 gives less than half a step at first,
    where torch gives a whole one down to 1e-8.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, **group)

    def _update(
        self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float],
        eps: float, **_: Any,
    ) -> None:  # fmt: skip
        state = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(parameter)
            state.update(step=0, exp_avg=zeros, exp_avg_sq=zeros.clone())
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        # Keras computes the corrections in float32
        one, step = np.float32(1), np.float32(state["step"])
        corrections = [one - np.float32(beta) ** step for beta in betas]
        size = np.float32(lr) * np.sqrt(corrections[1]) / corrections[0]
        mean.add_((gradient - mean) * (1 - betas[0]))
        square.add_((gradient.square() - square) * (1 - betas[1]))
        parameter.sub_(mean * float(size) / (square.sqrt() + eps))


OPTIMIZERS = {"keras-adam": KerasAdam, "torch-adam": torch.optim.Adam}


def build(model: SynthMorph, config: TrainConfig, share: bool = False) -> torch.optim.Optimizer:
    """The optimizer of the model's weights. `set_rate` comes before each step.

    share: each rank keeps the moments of some parameters only, updates these and hands them to
    all (ZeRO stage 1, Rajbhandari et al. 2020, doi:10.1109/SC41405.2020.00024). Adam works on each
    weight by itself, so that this changes no byte.
    """
    *body, flow = model.layers.values()
    groups: list[dict[str, Any]] = [
        {"params": list(nn.ModuleList(body).parameters())},
        {"params": list(flow.parameters())},
    ]
    kind = OPTIMIZERS[config.optimizer]
    if share:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # two seconds

        return ZeroRedundancyOptimizer(groups, kind)
    return kind(groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, flow_rate: float) -> None:
    """The learning rate of the next step; the last layer's is `rate * flow_rate`."""
    for group, share in zip(optimizer.param_groups, (1.0, flow_rate), strict=True):
        group["lr"] = rate * share
