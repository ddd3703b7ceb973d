"""voxelmorph 0.3's network as a model of the suite, untrained.

pip install './python[suite]' voxelmorph==0.3.4      # in an environment of its own
morphbits inference --model tests/models/vxm_pairwise:network --engine native
"""

from __future__ import annotations

import torch
import voxelmorph


class Pairwise(torch.nn.Module):
    """Gives what the suite asks for, the moved image first; see `morphbits.models.plugin`."""

    multiple = 32  # five levels

    def __init__(self) -> None:
        super().__init__()
        self.pairwise = voxelmorph.nn.models.VxmPairwise(
            ndim=3, source_channels=1, target_channels=1, flow_initializer=1.0
        )

    def forward(
        self, moving: torch.Tensor, fixed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        warp, moved = self.pairwise(moving, fixed, return_warped_source=True)
        return moved, warp


def network() -> torch.nn.Module:
    """A trained network would load its weights here: `load_state_dict(torch.load(...))`."""
    return Pairwise()
