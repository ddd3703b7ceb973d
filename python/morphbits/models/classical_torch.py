"""A classical registration in torch: affine, then deformable, by gradient descent on two images.

Nothing is learned: for each pair the transform that makes the images most alike is searched for,
from coarse to fine. Similarity: squared local normalized cross-correlation (Avants et al., Med
Image Anal 2008, doi:10.1016/j.media.2007.06.004). Deformation: a stationary velocity field,
integrated by scaling and squaring, its warp kept smooth; the same instance optimization by which
VoxelMorph's networks are refined (Balakrishnan et al., IEEE TMI 2019,
doi:10.1109/TMI.2019.2897538). Optimizer: Adam, for a fixed number of iterations.

Its operations are those of the networks of this suite (`models.spatial`), so that every engine can
perturb them: those of each iteration, forward and backward, and of the optimizer.

Arrays: B batch (of one pair), C channel, V warp component, X Y Z space; float32. A level s has
blocks of s × s × s voxels; its voxel i lies at s·i + (s − 1)/2 of the full grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphbits import losses, stages
from morphbits.models import spatial


@dataclass(frozen=True)
class Schedule:
    """How long, and how."""

    affine: tuple[tuple[int, int], ...] = ((4, 40),)  # level, iterations
    deformable: tuple[tuple[int, int], ...] = ((4, 20), (2, 20), (1, 10))  # to level 2 or 1
    affine_rate: float = 0.3  # voxels that Adam moves a corner of the image in an iteration
    deformable_rate: float = 0.2  # voxels of the level
    smoothness: float = 1.0  # weight of the warp's roughness against the similarity
    window: int = 5  # voxels along each axis over which the correlation is local
    squarings: int = 5


class Classical(nn.Module):
    """Moving and fixed image → moved image and warp, as the networks of this suite.

    Its stages: `affine`, which holds `affine-4`; `deformable`, which holds `deformable-4`,
    `deformable-2` and `deformable-1`; `integration`; `sampling`.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            corner_VK = stages.run("affine", self._affine, moving_BCXYZ, fixed_BCXYZ)
            svf_BVXYZ = stages.run(
                "deformable", self._deformable, moving_BCXYZ, fixed_BCXYZ, corner_VK
            )
        with torch.no_grad():
            warp_BVXYZ = stages.run(
                "integration", self._warp, svf_BVXYZ, corner_VK, 1, fixed_BCXYZ.shape[2:]
            )
            return stages.run("sampling", spatial.transform, moving_BCXYZ, warp_BVXYZ), warp_BVXYZ

    def _affine(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
        """Displacement of the image's corners against its centre, and of the centre: (V, 4)."""
        corner_VK = torch.zeros(3, 4, requires_grad=True)
        for level, iterations in self.schedule.affine:
            moving, fixed = (_blocks(image, level) for image in (moving_BCXYZ, fixed_BCXYZ))

            def loss(moving: Tensor = moving, fixed: Tensor = fixed, level: int = level) -> Tensor:
                warp_BVXYZ = _displacement(None, corner_VK, level, fixed.shape[2:])
                return self._unlikeness(spatial.transform(moving, warp_BVXYZ), fixed)

            rate = self.schedule.affine_rate * level / 2
            stages.run(f"affine-{level}", _descend, corner_VK, loss, iterations, rate)
        return corner_VK.detach()

    def _deformable(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor, corner_VK: Tensor) -> Tensor:
        """The velocity field at half resolution, (B, V, X/2, Y/2, Z/2), in its own voxels."""
        first = self.schedule.deformable[0][0]
        svf_BVXYZ = torch.zeros(1, 3, *(n // first for n in fixed_BCXYZ.shape[2:]))
        spacing = first
        for level, iterations in self.schedule.deformable:
            if spacing > max(level, 2):
                svf_BVXYZ, spacing = spatial.rescale(svf_BVXYZ.detach(), 2), spacing // 2
            svf_BVXYZ = svf_BVXYZ.detach().requires_grad_()
            moving, fixed = (_blocks(image, level) for image in (moving_BCXYZ, fixed_BCXYZ))

            def loss(
                svf: Tensor = svf_BVXYZ,
                moving: Tensor = moving,
                fixed: Tensor = fixed,
                level: int = level,
            ) -> Tensor:
                warp_BVXYZ = self._warp(svf, corner_VK, level, fixed.shape[2:])
                unlike = self._unlikeness(spatial.transform(moving, warp_BVXYZ), fixed)
                return unlike + losses.roughness(svf) * self.schedule.smoothness

            rate = self.schedule.deformable_rate
            stages.run(f"deformable-{level}", _descend, svf_BVXYZ, loss, iterations, rate)
        return svf_BVXYZ.detach()

    def _warp(self, svf_BVXYZ: Tensor, corner_VK: Tensor, level: int, shape: torch.Size) -> Tensor:
        """The whole transform at a level, affine after deformation, in voxels of the level."""
        warp_BVXYZ = spatial.integrate(svf_BVXYZ, self.schedule.squarings)
        if warp_BVXYZ.shape[2:] != shape:
            warp_BVXYZ = spatial.rescale(warp_BVXYZ, 2)
        return _displacement(warp_BVXYZ, corner_VK, level, shape)

    def _unlikeness(self, moved_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
        """1 − the mean squared correlation of the images in windows about each voxel."""
        maps_BCXYZ = torch.cat(
            [
                moved_BCXYZ,
                fixed_BCXYZ,
                moved_BCXYZ * moved_BCXYZ,
                fixed_BCXYZ * fixed_BCXYZ,
                moved_BCXYZ * fixed_BCXYZ,
            ],
            1,
        )
        for axis in range(3):  # a mean along each axis is the mean over the cube
            size = [1, 1, 1]
            n = maps_BCXYZ.shape[2 + axis]
            size[axis] = min(self.schedule.window, n - 1 + n % 2)
            maps_BCXYZ = F.avg_pool3d(maps_BCXYZ, size, 1, [k // 2 for k in size])
        moved, fixed, moved_2, fixed_2, product = maps_BCXYZ.unbind(1)
        covariance = product - moved * fixed
        variances = (moved_2 - moved * moved) * (fixed_2 - fixed * fixed)
        return 1 - (covariance * covariance / (variances + 1e-5)).mean()


def _descend(
    parameter: Tensor, loss: Callable[[], Tensor], iterations: int, rate: float
) -> Tensor:
    """`iterations` steps of Adam on one tensor, in place."""
    optimizer = torch.optim.Adam([parameter], lr=rate, foreach=False)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return parameter


def _blocks(image_BCXYZ: Tensor, level: int) -> Tensor:
    """The mean of each block."""
    return F.avg_pool3d(image_BCXYZ, level) if level > 1 else image_BCXYZ


def _displacement(
    warp_BVXYZ: Tensor | None, corner_VK: Tensor, level: int, shape: torch.Size
) -> Tensor:
    """The affine transform after a warp, as a warp: (1, V, X, Y, Z) in voxels of the level.

    corner_VK: in voxels of the full grid, how far the affine moves the centre (K = 3) and, against
    it, a point at the border of the image along each axis (K = 0, 1, 2).
    """
    half = [(n - 1) / 2 for n in shape]
    places = [  # in voxels of the level, from the centre
        torch.arange(n, dtype=corner_VK.dtype) - middle
        for n, middle in zip(shape, half, strict=True)
    ]
    mesh = torch.stack(torch.meshgrid(*places, indexing="ij"))
    if warp_BVXYZ is not None:
        mesh = mesh + warp_BVXYZ[0]
    radius = torch.tensor(half, dtype=corner_VK.dtype) * float(level)
    matrix = corner_VK[:, :3] / radius
    shift = corner_VK[:, 3] / float(level)
    components = []
    for component in range(3):
        moved = shift[component]
        for axis in range(3):
            moved = moved + matrix[component, axis] * mesh[axis]
        components.append(moved)
    displacement_VXYZ = torch.stack(components)
    if warp_BVXYZ is not None:
        displacement_VXYZ = displacement_VXYZ + warp_BVXYZ[0]
    return displacement_VXYZ[None]
