"""What training minimizes: two label maps that should coincide, and a warp that should be smooth.

Arrays: B batch, C channels (one per tissue), V warp component, X Y Z space; float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SCALES = (1, 2, 4, 8)


def tissue_mismatch(moved_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
    """Mean squared difference of two tissue maps, summed over block means of 1, 2, 4 and 8 voxels.

    The voxels see the folds of the cortex, which match only where they already overlap; the blocks
    see further. A block mean of s voxels has weight s / 2, so that the scales stay comparable
    although averaging shrinks the difference. No unit; 0 where the maps coincide.
    """
    difference = moved_BCXYZ - fixed_BCXYZ
    loss = difference.square().mean()
    for scale in SCALES[1:]:
        loss = loss + F.avg_pool3d(difference, scale).square().mean() * (scale / 2)
    return loss


def roughness(warp_BVXYZ: Tensor) -> Tensor:
    """Mean squared forward difference of the warp, ‖∇warp‖² per component and axis (voxels²).

    The regularization of VoxelMorph and SynthMorph (`Grad('l2')`).
    """
    x, y, z = (warp_BVXYZ.diff(dim=axis).square().mean() for axis in (2, 3, 4))
    return (x + y + z) / 3
