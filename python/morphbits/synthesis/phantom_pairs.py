"""Training pairs from phantoms: a new subject at every step, and the template it should meet.

A subject is what `morphbits.datasets.phantom` makes, by the same method and from the same ranges,
but in torch, on the network's own grid and in a tenth of a second: the template under a random
diffeomorphism, with its own contrast, bias field and noise. Three things differ: the range of
displacements is wider (DISPLACEMENT), so is that of BRIGHTNESS, and the velocity is integrated at
half resolution.

A pair is a pure function of (seed, index, size) on one machine and number of threads, drawn from a
stream of its own, named "training pairs": no phantom of a dataset comes from it, whatever the two
seeds are.

Arrays: B batch, C channels, V component, X Y Z space; float32.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from morphbits.datasets import phantom
from morphbits.images import NetworkGrid
from morphbits.synthesis import deformation
from morphbits.synthesis.pair import Pair

DISPLACEMENT = (2.0, 6.0)  # mm, range of the root mean square of the velocity in the brain
BRIGHTNESS = (0.5, 1.0)  # range of the maximum: in a real scan, vessels are brighter than tissue
SQUARINGS = 6


@dataclass(frozen=True)
class _Grid:
    """The template on the network's grid: tissues and image (B, C, X, Y, Z); mm per voxel."""

    image: Tensor
    tissues: Tensor
    voxel: float


def draw(seed: int, index: int, size: str) -> Pair:
    """One pair; its labels are CSF, grey and white matter, as shares. `size` is one of the
    phantom's; its grid is padded to what the network takes."""
    grid = _template(size)
    random = _generator(seed, index, size)
    backward_BVXYZ = _backward_warp(grid, random)
    maps = torch.cat([grid.tissues, _recoloured(grid, random)], 1)
    *tissues, image = deformation.transform(maps, backward_BVXYZ).split(1, dim=1)
    tissues_BCXYZ = torch.cat(tissues, 1)

    image = image * (1 + _bias(grid, random))
    noise = _uniform(random, *phantom.NOISE)
    image = image + noise * torch.randn(image.shape, generator=random)
    brain = tissues_BCXYZ.sum(1, keepdim=True) > 0.5
    image = torch.where(brain, image.clamp(min=0), 0)
    image = image / image.max() * _uniform(random, *BRIGHTNESS)
    return Pair(image, grid.image / grid.image.max(), tissues_BCXYZ, grid.tissues)


@cache
def _template(size: str) -> _Grid:
    base = phantom.template(size)
    grid = NetworkGrid.around(base.image.shape)
    tissues = np.stack([grid.pad(tissue) for tissue in base.tissues])
    image = grid.pad(base.image)[None]
    voxel = float(np.linalg.norm(base.affine[:3, 0]))
    return _Grid(torch.from_numpy(image)[None], torch.from_numpy(tissues)[None], voxel)


def _generator(seed: int, index: int, size: str) -> torch.Generator:
    key = f"training pairs {seed} {index} {size}"
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _uniform(random: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def _backward_warp(grid: _Grid, random: torch.Generator) -> Tensor:
    """Subject to template, voxels: where in the template each voxel of the subject comes from."""
    half = tuple(n // 2 for n in grid.image.shape[2:])
    velocity = torch.zeros(1, 3, *half)
    for spacing in phantom.SPACINGS:
        velocity = velocity + _smooth_noise(random, 3, spacing / (2 * grid.voxel), half)
    velocity = velocity * _taper(half, 2 * grid.voxel)
    brain = F.avg_pool3d(grid.tissues.sum(1, keepdim=True), 2)
    mean_square = (velocity.square().sum(1, keepdim=True) * brain).sum() / brain.sum()
    velocity = velocity * (_uniform(random, *DISPLACEMENT) / (2 * grid.voxel) / mean_square.sqrt())
    return deformation.rescale(deformation.integrate(velocity, SQUARINGS), 2)


def _taper(shape: tuple[int, ...], voxel: float) -> Tensor:
    """1 inside, falling to 0 at the faces of the grid, so that no brain leaves it."""
    factors = []
    for n in shape:
        position = torch.arange(n)
        t = (torch.minimum(position, n - 1 - position) * voxel / phantom.TAPER).clamp(0, 1)
        factors.append(t * t * (3 - 2 * t))
    x, y, z = factors
    return x[:, None, None] * y[:, None] * z


def _recoloured(grid: _Grid, random: torch.Generator) -> Tensor:
    """The template with each tissue's mean moved to a random one, its texture kept with a gain."""
    image = torch.zeros_like(grid.image)
    for label, tissue in enumerate(grid.tissues.split(1, dim=1), start=1):
        mean, gain = _uniform(random, *phantom.CONTRAST[label]), _uniform(random, *phantom.TEXTURE)
        centre = (tissue * grid.image).sum() / tissue.sum()
        image = image + tissue * (mean + gain * (grid.image - centre))
    return image


def _bias(grid: _Grid, random: torch.Generator) -> Tensor:
    """A smooth field between -a and a; the image is multiplied by 1 + field."""
    field = _smooth_noise(random, 1, phantom.BIAS_SPACING / grid.voxel, grid.image.shape[2:])
    return field * (_uniform(random, *phantom.BIAS_AMPLITUDE) / field.abs().max())


def _smooth_noise(
    random: torch.Generator, channels: int, spacing: float, shape: tuple[int, ...]
) -> Tensor:
    """Cubic B-splines with standard normal coefficients on nodes `spacing` voxels apart.

    Returns (1, C, X, Y, Z).
    """
    bases = [_spline_basis(n, spacing) for n in shape]
    nodes = [basis.shape[1] for basis in bases]
    coefficients = torch.randn(1, channels, *nodes, generator=random)
    return torch.einsum("xi,yj,zk,bcijk->bcxyz", *bases, coefficients)


def _spline_basis(size: int, spacing: float) -> Tensor:
    """Weight of each node at each voxel, (size, nodes): the cubic B-spline, 0 from 2 nodes on."""
    nodes = int(size / spacing) + 4
    distance = (torch.arange(size)[:, None] / spacing - (torch.arange(nodes)[None] - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)
