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
        moments = state["exp_avg"], state["exp_avg_sq"]
        self._move(parameter, gradient, state["step"], *moments, lr, betas, eps)

    def _move(
        self, parameter: Tensor, gradient: Tensor, count: int, mean: Tensor, square: Tensor,
        lr: float, betas: tuple[float, float], eps: float,
    ) -> None:  # fmt: skip
        # Keras computes the corrections in float32
        one, step = np.float32(1), np.float32(count)
        corrections = [one - np.float32(beta) ** step for beta in betas]
        size = torch.tensor(np.float32(lr) * np.sqrt(corrections[1]) / corrections[0])
        torch.ops.morphbits.keras_adam_(parameter, gradient, mean, square, size, *betas, eps)


class NativeAdam(KerasAdam):
    """torch's Adam with one operator for each parameter, which the native engine computes in one
    pass: the operations, random bits and bytes of `torch.optim.Adam` under the engine. (Without
    the engine, torch's fused operator rounds differently from `torch.optim.Adam`.)"""

    def __init__(self, params: Any) -> None:
        super().__init__(params, eps=1e-8)

    def _move(
        self, parameter: Tensor, gradient: Tensor, count: int, mean: Tensor, square: Tensor,
        lr: float, betas: tuple[float, float], eps: float,
    ) -> None:  # fmt: skip
        step = torch.tensor(count - 1.0)
        step += 1  # perturbed, as in torch.optim.Adam
        torch._fused_adam_(
            [parameter], [gradient], [mean], [square], [], [step], lr=lr, beta1=betas[0],
            beta2=betas[1], weight_decay=0, eps=eps, amsgrad=False, maximize=False,
        )  # fmt: skip


# One operator, so that the native engine computes the step of a parameter in one pass.
_LIBRARY = torch.library.Library("morphbits", "DEF")
_LIBRARY.define(
    "keras_adam_(Tensor(a!) parameter, Tensor gradient, Tensor(b!) mean, Tensor(c!) square, "
    "Tensor size, float beta1, float beta2, float eps) -> ()"
)


@torch.library.impl(_LIBRARY, "keras_adam_", "CompositeExplicitAutograd")
def _keras_adam(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, size: Tensor,
    beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """One step of Keras' Adam, in place: parameter, gradient and both moments have one shape;
    `size` is the corrected learning rate, a tensor without axes."""
    mean.add_((gradient - mean) * (1 - beta1))
    square.add_((gradient.square() - square) * (1 - beta2))
    parameter.sub_(mean * size / (square.sqrt() + eps))


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
    native = config.engine == "native" and config.optimizer == "torch-adam"
    kind = NativeAdam if native else OPTIMIZERS[config.optimizer]
    if share:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # two seconds

        return ZeroRedundancyOptimizer(groups, kind)
    return kind(groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, flow_rate: float) -> None:
    """The learning rate of the next step; the last layer's is `rate * flow_rate`."""
    for group, share in zip(optimizer.param_groups, (1.0, flow_rate), strict=True):
        group["lr"] = rate * share
