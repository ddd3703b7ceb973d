"""All weights in one vector: what ranks exchange, Adam updates and a checkpoint holds.

Arrays: N weights in order of execution, padded with zeros to a multiple of the number of ranks.
"""

from __future__ import annotations

import hashlib
from typing import cast

import torch
from torch import Tensor, nn

from morphbits.models.synthmorph_torch import SynthMorph

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Weights:
    """The weights of `model`, which from now on are views of `values` (N,), and their Adam, whose
    two running means are `moments` (2, own N).

    With `shards` > 1 each rank keeps the moments of its `shard` only and updates that part of the
    weights (ZeRO stage 1, Rajbhandari et al. 2020, doi:10.1109/SC41405.2020.00024). Adam works on
    each weight by itself, so that sharding changes no byte.
    """

    def __init__(self, model: SynthMorph, ranks: int, shard: int = 0, shards: int = 1) -> None:
        layers = list(cast("dict[str, nn.Module]", model.layers).values())
        self.parameters = [p for layer in layers for p in layer.parameters()]
        sizes = [p.numel() for p in self.parameters]
        flow = sum(sizes) - sum(p.numel() for p in layers[-1].parameters())
        length = -(-sum(sizes) // ranks) * ranks
        self.values = self.parameters[0].new_zeros(length)
        self.gradient = torch.zeros_like(self.values)
        self._gradients = []
        for parameter, value, gradient in zip(
            self.parameters,
            self.values[: sum(sizes)].split(sizes),
            self.gradient[: sum(sizes)].split(sizes),
            strict=True,
        ):
            view = _channels_last(value, parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            self._gradients.append(_channels_last(gradient, parameter.shape))
        self.flow = flow  # where the last layer's begin
        part = length // shards
        self.own = slice(shard * part, (shard + 1) * part)
        self.moments = self.values.new_zeros(2, part)
        self.updates = 0

    def collect_gradient(self) -> None:
        """Copy what the backward pass has left into `gradient`, and clear it there."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            assert parameter.grad is not None
            gradient.copy_(parameter.grad)
            parameter.grad = None

    def update(self, rate: float, flow_rate: float) -> None:
        """One step of Adam on this rank's part, by `gradient`; the last layer's learning rate is
        `rate * flow_rate`.

        Kingma and Ba 2015 (arXiv:1412.6980), in the operations of `torch.optim.Adam` and with its
        constants, so to the same bytes; that class imports torch's compiler, which takes seconds
        and 100 MB in every process.
        """
        self.updates += 1
        gradient = self.gradient[self.own]
        mean, square = self.moments
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrections = [1 - beta**self.updates for beta in BETAS]
        scale = (square.sqrt() / corrections[1] ** 0.5).add_(EPSILON)
        border = min(max(self.flow - self.own.start, 0), len(mean))
        for part, own_rate in (
            (slice(None, border), rate),
            (slice(border, None), rate * flow_rate),
        ):
            values = self.values[self.own][part]
            values.addcdiv_(mean[part], scale[part], value=-own_rate / corrections[0])

    def restore(self, values: Tensor, moments: Tensor, updates: int) -> None:
        """Take the weights (N,) and moments (2, N) of all, after so many updates."""
        self.values.copy_(values)
        self.moments.copy_(moments[:, self.own])
        self.updates = updates

    def digest(self) -> str:
        """A hash of the weights' bytes."""
        return hashlib.sha256(self.values.cpu().numpy().tobytes()).hexdigest()


def _channels_last(vector: Tensor, shape: torch.Size) -> Tensor:
    """A view of `vector` in `shape`; a kernel (O, I, X, Y, Z) lies there channels last."""
    if len(shape) < 5:
        return vector.view(shape)
    out_channels, in_channels, *taps = shape
    return vector.view(out_channels, *taps, in_channels).permute(0, 4, 1, 2, 3)
