"""A batch of training pairs: what every source of pairs gives and the training loop takes.

Arrays: B batch, L labels, X Y Z space; float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Key = tuple[int, int, int]  # epoch, step, rank


@dataclass(frozen=True)
class Pair:
    """Moving and fixed image (B, 1, X, Y, Z) in [0, 1], and their label maps (B, L, X, Y, Z): the
    share of each of L labels in each voxel, or 1 for the voxel's label and 0 for all others."""

    moving: Tensor
    fixed: Tensor
    moving_tissues: Tensor
    fixed_tissues: Tensor


def collate(pairs: Sequence[Pair]) -> Pair:
    """Several pairs of one size and set of labels as one batch."""
    return Pair(
        *(torch.cat([getattr(pair, field.name) for pair in pairs]) for field in fields(Pair))
    )
