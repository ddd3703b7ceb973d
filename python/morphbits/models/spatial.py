"""Integration, rescaling and sampling of warps: voxelmorph's TensorFlow operations in torch.

Every floating-point operation is an elementary torch operator, in the order in which TensorFlow
executes it layer by layer, so that equal inputs give equal bits, and so that an engine which
perturbs roundings finds the operations TensorFlow users run. Nothing here uses `grid_sample` or
trilinear `interpolate`: their order is another. The order is written down in
notes/decisions/0002-port-order.md.

Methods: `neurite.tf.utils.interpn` and `resize`, `voxelmorph.tf.utils.transform`, `integrate_vec`
(scaling and squaring, Arsigny et al., MICCAI 2006) and `rescale_dense_transform`, all of version
0.2; `affine_to_dense_shift`, `compose` and `fill_value` of voxelmorph's branch dev of 2024.

Arrays: B batch, C channels, V warp component (axes X, Y, Z in this order), X Y Z space; float32.
Warps are displacements in voxels of their own grid: output voxel p takes the value at p + warp(p).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from morphbits import stages


def integrate(svf_BVXYZ: Tensor, steps: int) -> Tensor:
    """The warp that the stationary velocity field generates in unit time, by `steps` squarings."""
    warp_BVXYZ = svf_BVXYZ / 2.0**steps
    for step in range(steps):
        warp_BVXYZ = stages.run(f"squaring-{step + 1}", _square, warp_BVXYZ)
    return warp_BVXYZ


def _square(warp_BVXYZ: Tensor) -> Tensor:
    return compose(warp_BVXYZ, warp_BVXYZ)


def transform(image_BCXYZ: Tensor, warp_BVXYZ: Tensor, fill: float | None = None) -> Tensor:
    """`image` sampled at p + warp(p), linearly, on the grid of the warp; outside the image it is
    `fill`, or its border goes on."""
    mesh = _grid(warp_BVXYZ.shape[2:], warp_BVXYZ)
    moved = []
    for image_CXYZ, warp_VXYZ in zip(image_BCXYZ, warp_BVXYZ, strict=True):
        location = [p + shift_XYZ for p, shift_XYZ in zip(mesh, warp_VXYZ, strict=True)]
        moved_CXYZ = _interpolate(image_CXYZ, location)
        if fill is not None:
            ends = zip(location, image_CXYZ.shape[1:], strict=True)
            outside = [(x < 0) | (x > n - 1) for x, n in ends]
            moved_CXYZ.masked_fill_(outside[0] | outside[1] | outside[2], fill)
        moved.append(moved_CXYZ)
    return torch.stack(moved)


def dense(matrix_B44: Tensor, shape: Sequence[int], after: Tensor | None = None) -> Tensor:
    """The warp (B, V, X, Y, Z) of an affine matrix on a grid of `shape`, in its voxels: from p to
    matrix·p, or to matrix·(p + after(p)) for another warp on that grid."""
    mesh_V = _grid(shape, matrix_B44)
    mesh_VN = torch.stack([p.expand(*shape).reshape(-1) for p in mesh_V])
    points = mesh_VN if after is None else mesh_VN + after.flatten(2)
    moved_BVN = matrix_B44[:, :3, :3] @ points + matrix_B44[:, :3, 3:]
    return (moved_BVN - mesh_VN).unflatten(2, tuple(shape))


def compose(first_BVXYZ: Tensor, then_BVXYZ: Tensor) -> Tensor:
    """The warp that leads by `first` and on by `then`, which is sampled where `first` arrives."""
    return first_BVXYZ + transform(then_BVXYZ, first_BVXYZ)


def rescale(warp_BVXYZ: Tensor, factor: int) -> Tensor:
    """The warp on a grid `factor` times finer (corner voxels aligned), in voxels of that grid."""
    scaled_BVXYZ = warp_BVXYZ * float(factor)
    mesh = _mesh([_linspace(n, n * factor, warp_BVXYZ) for n in warp_BVXYZ.shape[2:]])
    return torch.stack([_interpolate(warp_VXYZ, mesh) for warp_VXYZ in scaled_BVXYZ])


def _range(start: int, stop: int, like: Tensor) -> Tensor:
    return torch.arange(start, stop, dtype=like.dtype, device=like.device)


def _linspace(size: int, points: int, like: Tensor) -> Tensor:
    """`points` positions from 0 to `size` − 1 as `tf.linspace` makes them: index·delta."""
    last = _range(size - 1, size, like)
    delta = last / float(points - 1)
    return torch.cat([torch.zeros_like(last), delta * _range(1, points - 1, like), last])


def _grid(shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """The voxels of a grid along X, Y and Z: they broadcast."""
    return _mesh([_range(0, n, like) for n in shape])


def _mesh(positions: list[Tensor]) -> list[Tensor]:
    """Positions along X, Y and Z, the other axes of length 1: they broadcast to a grid."""
    x, y, z = positions
    return [x.view(-1, 1, 1), y.view(1, -1, 1), z.view(1, 1, -1)]


def _interpolate(volume_CXYZ: Tensor, location: list[Tensor]) -> Tensor:
    """`volume` at locations in voxels, clamped to the volume: a weighted sum of eight corners.

    `location` holds X, Y and Z coordinates, each of the shape of the output or broadcasting to it.
    """
    channels, *size = volume_CXYZ.shape
    strides = (size[1] * size[2], size[2], 1)
    weights, indices = [], []
    for coordinate, n, stride in zip(location, size, strides, strict=True):
        lower = coordinate.detach().floor().clamp_(0, n - 1)
        upper = (lower + 1).clamp_(0, n - 1)
        lower_weight = upper - coordinate.clamp(0, n - 1)
        weights.append((lower_weight, 1 - lower_weight))
        indices.append((lower.long() * stride, upper.long() * stride))

    # NumPy's: torch's loads a computer algebra system to say the same
    shape = np.broadcast_shapes(*(coordinate.shape for coordinate in location))
    volume_CN = volume_CXYZ.reshape(channels, -1)
    whole_CXYZ = stages.offered("corners", volume_CN, indices, weights, shape)
    if whole_CXYZ is not NotImplemented:
        return whole_CXYZ
    result_CXYZ: Tensor | None = None
    for x, y, z in product((0, 1), repeat=3):
        if z == 0:
            index_XY = indices[0][x] + indices[1][y]
        index_N = (index_XY + indices[2][z]).flatten()
        # expanded before it is multiplied: each voxel's product is rounded by itself
        weight_XYZ = (weights[0][x].expand(shape) * weights[1][y]).mul_(weights[2][z])
        term_CXYZ = volume_CN.index_select(1, index_N).view(channels, *shape).mul_(weight_XYZ)
        # TensorFlow adds the first term to 0, which turns −0 into +0
        result_CXYZ = term_CXYZ.add_(0) if result_CXYZ is None else result_CXYZ.add_(term_CXYZ)
    assert result_CXYZ is not None
    return result_CXYZ
