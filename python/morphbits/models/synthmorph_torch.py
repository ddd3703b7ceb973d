"""SynthMorph in torch: the exact port of voxelmorph's TensorFlow network.

Given TensorFlow's velocity field, warp and moved image have TensorFlow's bits; convolutions differ
from TensorFlow's by the order in which torch adds (an engine may give them TensorFlow's order).
Method: SynthMorph, Hoffmann et al., IEEE TMI 2022, doi:10.1109/TMI.2021.3116879; reference:
`voxelmorph.tf.networks.VxmDense` 0.2.

Arrays: B batch, C channels, V warp component (axes X, Y, Z), X Y Z space; float32. Images lie in
[0, 1] on one common grid; warps are displacements in voxels of their own grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphbits import stages
from morphbits.errors import UserError
from morphbits.models import spatial
from morphbits.models.weights import (
    Architecture,
    init_weights,
    read_architecture,
    read_weights,
    save_h5,
)


class Convolution(nn.Module):
    """A 3×3×3 convolution with bias, and LeakyReLU(0.2) unless it is the last layer."""

    def __init__(self, in_channels: int, out_channels: int, activate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.activate = activate

    def forward(self, input: Tensor) -> Tensor:
        output = F.conv3d(input, self.weight, self.bias, padding=1)
        if not self.activate:
            return output
        return F.leaky_relu(output, 0.2, inplace=not torch.is_grad_enabled())


class SynthMorph(nn.Module):
    """The registration network: moving and fixed image → moved image and warp.

    Its weights are zero until `set_weights`; `load` and `init_model` give networks with weights.

    Its stages (`morphbits.stages`): `network`, which holds `encoder-1`, …, `decoder-1`, … and
    `flow`; `integration`, which holds `squaring-1`, …; `rescaling`; `sampling`.

    `layers` holds the convolutions in order of execution, under voxelmorph's layer names; a
    forward hook on one sees what follows its activation.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.ModuleDict(
            {
                layer.name: Convolution(
                    layer.in_channels,
                    layer.out_channels,
                    activate=not layer.name.endswith("_flow"),
                )
                for layer in architecture.convolutions()
            }
        )

    @classmethod
    def load(cls, path: Path | str) -> SynthMorph:
        """The network in a voxelmorph `.h5` file."""
        model = cls(read_architecture(path))
        model.set_weights(read_weights(path))
        return model.eval()

    def save(self, path: Path | str) -> None:
        """Write a `.h5` file that voxelmorph's `VxmDense.load` and `SynthMorph.load` take."""
        save_h5(path, self.architecture, self.get_weights())

    def _convolutions(self) -> Iterable[tuple[str, Convolution]]:
        return cast("Iterable[tuple[str, Convolution]]", self.layers.items())

    def get_weights(self) -> dict[str, np.ndarray]:
        """Kernels (3, 3, 3, C_in, C_out) and biases, as `weights.read_weights` returns them."""
        weights = {}
        for name, layer in self._convolutions():
            weights[f"{name}/kernel"] = layer.weight.detach().permute(2, 3, 4, 1, 0).cpu().numpy()
            weights[f"{name}/bias"] = layer.bias.detach().cpu().numpy()
        return weights

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take kernels and biases as `weights.read_weights` returns them."""
        for name, layer in self._convolutions():
            layer.weight.copy_(torch.from_numpy(weights[f"{name}/kernel"]).permute(4, 3, 0, 1, 2))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}/bias"]))

    def forward(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Moved image (B, 1, X, Y, Z) and warp (B, V, X, Y, Z), in voxels of the fixed grid.

        The warp leads from a voxel of the fixed grid to the place in the moving image it shows.
        """
        svf_BVXYZ = stages.run("network", self.svf, moving_BCXYZ, fixed_BCXYZ)
        warp_BVXYZ = self.warp(svf_BVXYZ)
        return stages.run("sampling", spatial.transform, moving_BCXYZ, warp_BVXYZ), warp_BVXYZ

    def warp(self, svf_BVXYZ: Tensor) -> Tensor:
        """Full-resolution warp (voxels) that a half-resolution velocity field generates."""
        architecture = self.architecture
        integrated_BVXYZ = stages.run(
            "integration", spatial.integrate, svf_BVXYZ, architecture.int_steps
        )
        return stages.run(
            "rescaling", spatial.rescale, integrated_BVXYZ, architecture.int_resolution
        )

    def svf(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
        """Stationary velocity field (B, V, X/2, Y/2, Z/2), in voxels of its own grid."""
        multiple = self.architecture.multiple
        if moving_BCXYZ.shape != fixed_BCXYZ.shape or any(
            n % multiple for n in fixed_BCXYZ.shape[2:]
        ):
            raise UserError(
                f"moving {tuple(moving_BCXYZ.shape[2:])} and fixed {tuple(fixed_BCXYZ.shape[2:])} "
                f"must have one size, a multiple of {multiple} along each axis; pad or crop them"
            )
        layers = list(self.layers.values())
        levels = len(self.architecture.enc)
        features = torch.cat([moving_BCXYZ, fixed_BCXYZ], 1)
        skips: list[Tensor] = []
        for level, layer in enumerate(layers[:levels]):
            features = stages.run(f"encoder-{level + 1}", layer, features)
            if (
                level > 0
            ):  # no half-resolution decoder reads the full-resolution features: free them
                skips.append(features)
            features = F.max_pool3d(features, 2)
        for step, layer in enumerate(layers[levels:]):
            last = levels + step + 1 == len(layers)
            features = stages.run("flow" if last else f"decoder-{step + 1}", layer, features)
            if skips:
                features = F.interpolate(features, scale_factor=2, mode="nearest")
                features = torch.cat([features, skips.pop()], 1)
        return features


def init_model(architecture: Architecture, seed: int, flow_std: float | None = None) -> SynthMorph:
    """An untrained network; see `weights.init_weights`."""
    model = SynthMorph(architecture)
    model.set_weights(init_weights(architecture, seed, flow_std))
    return model
