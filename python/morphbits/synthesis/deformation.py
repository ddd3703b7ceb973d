"""Warps for training: integration, upsampling and sampling by fused, differentiable operators.

These are `morphbits.models.spatial` in fewer and faster operators (`grid_sample`, trilinear
`interpolate`), equal to it within rounding: what is trained with these is registered with those.
Integration is scaling and squaring (Arsigny et al. 2006, doi:10.1007/11866565_113). On a GPU,
torch's derivatives of sampling and upsampling add in any order: those here add in one.

Arrays: B batch, C channels, V warp component (axes X, Y, Z in this order), X Y Z space; float32.
Warps are displacements in voxels of their own grid: output voxel p takes the value at p + warp(p).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLING: Any = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}


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
    return (_sample if image_BCXYZ.is_cpu else _Sampling.apply)(image_BCXYZ, points_BXYZV)


def _sample(image_BCXYZ: Tensor, points_BXYZV: Tensor) -> Tensor:
    return F.grid_sample(image_BCXYZ, points_BXYZV, **SAMPLING)


class _Sampling(torch.autograd.Function):
    """`_sample`, with a derivative that torch can make deterministic on a GPU."""

    @staticmethod
    def forward(ctx: Any, image_BCXYZ: Tensor, points_BXYZV: Tensor) -> Tensor:
        ctx.save_for_backward(image_BCXYZ, points_BXYZV)
        return _sample(image_BCXYZ, points_BXYZV)

    @staticmethod
    def backward(ctx: Any, gradient_BCXYZ: Tensor) -> Any:  # type: ignore[override]
        image_BCXYZ, points_BXYZV = ctx.saved_tensors
        batch, channels, *size = image_BCXYZ.shape
        last = torch.tensor(size, device=image_BCXYZ.device) - 1
        at_VM = (points_BXYZV.flip(-1).reshape(-1, 3) + 1).mul(last / 2).T
        inside_VM = (at_VM > 0) & (at_VM < last[:, None])  # the border goes on outside: slope 0
        at_VM = at_VM.clamp(torch.zeros_like(last)[:, None], last[:, None])
        lower_VM = at_VM.floor()
        share_VM = at_VM - lower_VM
        # rows of voxels and of points, of all images one after the other
        image_NC = image_BCXYZ.movedim(1, -1).reshape(-1, channels)
        gradient_MC = gradient_BCXYZ.movedim(1, -1).reshape(-1, channels)
        starts = torch.arange(batch, device=last.device) * size[0] * size[1] * size[2]
        starts_M = starts.repeat_interleave(len(gradient_MC) // batch)
        by_image_NC, by_points_VM = torch.zeros_like(image_NC), torch.zeros_like(at_VM)
        for corner in product((0, 1), repeat=3):
            x, y, z = (lower_VM.long() + last.new_tensor(corner)[:, None]).clamp(max=last[:, None])
            row_M = starts_M + (x * size[1] + y) * size[2] + z
            up_V1 = last.new_tensor(corner, dtype=torch.bool)[:, None]
            weight_VM = torch.where(up_V1, share_VM, 1 - share_VM)
            by_image_NC.index_add_(0, row_M, gradient_MC * weight_VM.prod(0)[:, None])
            slope_M = (gradient_MC * image_NC[row_M]).sum(1)
            for axis, up in enumerate(corner):
                others = weight_VM[(axis + 1) % 3] * weight_VM[(axis + 2) % 3]
                by_points_VM[axis] += slope_M * others * (1 if up else -1)
        by_points_VM = by_points_VM * inside_VM * (last[:, None] / 2)
        return (
            by_image_NC.view(batch, *size, channels).movedim(-1, 1),
            by_points_VM.T.flip(-1).view(points_BXYZV.shape),
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
    return (_resize if warp_BVXYZ.is_cpu else _Resizing.apply)(warp_BVXYZ * factor, size)


def _resize(image_BCXYZ: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(image_BCXYZ, size=size, mode="trilinear", align_corners=True)


class _Resizing(torch.autograd.Function):
    """`_resize`, whose derivative here is a product with a matrix along each axis."""

    @staticmethod
    def forward(ctx: Any, image_BCXYZ: Tensor, size: list[int]) -> Tensor:
        ctx.sizes = [*zip(image_BCXYZ.shape[2:], size, strict=True)]
        return _resize(image_BCXYZ, size)

    @staticmethod
    def backward(ctx: Any, gradient_BCXYZ: Tensor) -> Any:  # type: ignore[override]
        result = gradient_BCXYZ
        for axis, (n, finer) in enumerate(ctx.sizes, 2):
            voxels = torch.arange(n, dtype=result.dtype, device=result.device)
            points = torch.arange(finer, dtype=result.dtype, device=result.device)
            at_P = points * ((n - 1) / (finer - 1))
            weights_PN = (1 - (at_P[:, None] - voxels).abs()).clamp(min=0)
            result = (result.movedim(axis, -1) @ weights_PN).movedim(-1, axis)
        return result, None
