"""Integration, rescaling and sampling of warps: voxelmorph's TensorFlow operations in torch.

Every floating-point operation is an elementary torch operator, in the order in which TensorFlow
executes it layer by layer, so that equal inputs give equal bits, and so that an engine which
perturbs roundings finds the operations TensorFlow users run. Nothing here uses `grid_sample` or
trilinear `interpolate`: their order is another. The order is written down in
notes/decisions/0002-port-order.md.

Methods: `neurite.tf.utils.interpn` and `resize`, `voxelmorph.tf.utils.transform`, `integrate_vec`
(scaling and squaring, Arsigny et al., MICCAI 2006) and `rescale_dense_transform`, all of version
0.2.

Arrays: B batch, C channels, V warp component (axes X, Y, Z in this order), X Y Z space; float32.
Warps are displacements in voxels of their own grid: output voxel p takes the value at p + warp(p).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def integrate(svf_BVXYZ: Tensor, steps: int) -> Tensor:
    """The warp that the stationary velocity field generates in unit time, by `steps` squarings."""
    warp_BVXYZ = svf_BVXYZ / 2.0**steps
    for _ in range(steps):
        warp_BVXYZ = warp_BVXYZ + transform(warp_BVXYZ, warp_BVXYZ)
    return warp_BVXYZ


def transform(image_BCXYZ: Tensor, warp_BVXYZ: Tensor) -> Tensor:
    """`image` sampled at p + warp(p), linearly; outside the image its border goes on."""
    mesh_VXYZ = _mesh([torch.arange(n, dtype=warp_BVXYZ.dtype) for n in warp_BVXYZ.shape[2:]])
    moved = [
        _interpolate(image_CXYZ, mesh_VXYZ + warp_VXYZ)
        for image_CXYZ, warp_VXYZ in zip(image_BCXYZ, warp_BVXYZ, strict=True)
    ]
    return torch.stack(moved)


def rescale(warp_BVXYZ: Tensor, factor: int) -> Tensor:
    """The warp on a grid `factor` times finer (corner voxels aligned), in voxels of that grid."""
    scaled_BVXYZ = warp_BVXYZ * float(factor)
    mesh_VXYZ = _mesh([_linspace(n, n * factor, warp_BVXYZ.dtype) for n in warp_BVXYZ.shape[2:]])
    return torch.stack([_interpolate(warp_VXYZ, mesh_VXYZ) for warp_VXYZ in scaled_BVXYZ])


def _linspace(size: int, points: int, dtype: torch.dtype) -> Tensor:
    """`points` positions from 0 to `size` − 1 as `tf.linspace` makes them: index·delta."""
    last = torch.tensor([size - 1], dtype=dtype)
    delta = last / float(points - 1)
    inner = delta * torch.arange(1, points - 1, dtype=dtype)
    return torch.cat([torch.zeros(1, dtype=dtype), inner, last])


def _mesh(positions: list[Tensor]) -> Tensor:
    """The grid (V, X, Y, Z) of three lists of positions."""
    return torch.stack(torch.meshgrid(*positions, indexing="ij"))


def _interpolate(volume_CXYZ: Tensor, location_VXYZ: Tensor) -> Tensor:
    """`volume` at `location` (voxels), clamped to the volume: a weighted sum of eight corners."""
    channels, *size = volume_CXYZ.shape
    last_V111 = torch.tensor([n - 1 for n in size], dtype=volume_CXYZ.dtype).view(3, 1, 1, 1)
    first = torch.zeros((), dtype=volume_CXYZ.dtype)
    lower_VXYZ = location_VXYZ.floor().clamp(first, last_V111)
    upper_VXYZ = (lower_VXYZ + 1).clamp(first, last_V111)
    lower_weight_VXYZ = upper_VXYZ - location_VXYZ.clamp(first, last_V111)
    upper_weight_VXYZ = 1 - lower_weight_VXYZ
    weights = (lower_weight_VXYZ, upper_weight_VXYZ)

    # flat index of a corner: int32 holds every volume that fits in memory
    strides_V111 = torch.tensor([size[1] * size[2], size[2], 1], dtype=torch.int32).view(
        3, 1, 1, 1
    )
    indices = tuple(
        (end.to(torch.int32) * strides_V111).flatten(1) for end in (lower_VXYZ, upper_VXYZ)
    )

    volume_CN = volume_CXYZ.reshape(channels, -1)
    shape = (channels, *location_VXYZ.shape[1:])
    result_CXYZ: Tensor | None = None
    for x, y, z in product((0, 1), repeat=3):
        index_N = indices[x][0] + indices[y][1] + indices[z][2]
        corner_CXYZ = volume_CN.index_select(1, index_N).view(shape)
        weight_XYZ = weights[x][0] * weights[y][1] * weights[z][2]
        term_CXYZ = weight_XYZ * corner_CXYZ
        # TensorFlow adds the first term to 0, which turns −0 into +0
        result_CXYZ = term_CXYZ + 0 if result_CXYZ is None else result_CXYZ.add_(term_CXYZ)
    assert result_CXYZ is not None
    return result_CXYZ
