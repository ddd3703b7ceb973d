"""Warps for training: integration, upsampling and sampling by fused, differentiable operators.

These are `morphbits.models.spatial` in fewer and faster operators (`grid_sample`, trilinear
`interpolate`), equal to it within rounding: what is trained with these is registered with those.
Integration is scaling and squaring (Arsigny et al. 2006, doi:10.1007/11866565_113).

Arrays: B batch, C channels, V warp component (axes X, Y, Z in this order), X Y Z space; float32.
Warps are displacements in voxels of their own grid: output voxel p takes the value at p + warp(p).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def transform(image_BCXYZ: Tensor, warp_BVXYZ: Tensor) -> Tensor:
    """`image` sampled at p + warp(p), linearly; outside the image its border goes on."""
    size = warp_BVXYZ.shape[2:]
    dtype, device = warp_BVXYZ.dtype, warp_BVXYZ.device
    axes = [torch.arange(n, dtype=dtype, device=device) for n in size]
    mesh = torch.meshgrid(*axes, indexing="ij")
    to_unit = torch.tensor([2 / (n - 1) for n in size], dtype=dtype, device=device)
    to_unit = to_unit.view(1, 3, 1, 1, 1)
    points_BVXYZ = (torch.stack(mesh) + warp_BVXYZ) * to_unit - 1  # corner voxels at -1 and 1
    points_BXYZV = points_BVXYZ.permute(0, 2, 3, 4, 1).flip(-1)  # grid_sample's axes: last first
    return F.grid_sample(
        image_BCXYZ, points_BXYZV, mode="bilinear", padding_mode="border", align_corners=True
    )


def integrate(svf_BVXYZ: Tensor, steps: int) -> Tensor:
    """The warp that the stationary velocity field generates in unit time, by `steps` squarings."""
    warp_BVXYZ = svf_BVXYZ / 2.0**steps
    for _ in range(steps):
        warp_BVXYZ = warp_BVXYZ + transform(warp_BVXYZ, warp_BVXYZ)
    return warp_BVXYZ


def rescale(warp_BVXYZ: Tensor, factor: int) -> Tensor:
    """The warp on a grid `factor` times finer (corner voxels aligned), in voxels of that grid."""
    size = [n * factor for n in warp_BVXYZ.shape[2:]]
    return F.interpolate(warp_BVXYZ * factor, size=size, mode="trilinear", align_corners=True)
