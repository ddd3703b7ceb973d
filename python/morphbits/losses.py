"""What training minimizes: two label maps that should coincide, and a warp that should be smooth.

`dice` and `roughness` are the loss of SynthMorph's training (Hoffmann et al., IEEE TMI 2022,
doi:10.1109/TMI.2021.3116879), with the conventions of voxelmorph 0.2; `tissue_mismatch` sees
further and is what small models learn from in minutes.

Arrays: B batch, C channels (one per tissue or label), V warp component, X Y Z space; float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1, 2, 4, 8)


def dice(moved_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
    """1 − the mean soft Dice overlap of two label maps, 2·Σab / Σ(a + b), over batch and labels.

    No unit; 0 where the maps coincide, and 1 where no label overlaps. A label that is in neither
    map counts as not overlapping, as in voxelmorph (`Dice().loss` + 1).
    """
    common = 2 * (moved_BCXYZ * fixed_BCXYZ).sum((2, 3, 4))
    both = (moved_BCXYZ + fixed_BCXYZ).sum((2, 3, 4))
    return 1 - (common / torch.where(both == 0, torch.ones_like(both), both)).mean()


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
