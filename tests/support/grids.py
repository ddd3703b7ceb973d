"""Grids of odd images: oblique, flipped, anisotropic, sheared; and what lies on them."""

from __future__ import annotations

import numpy as np

SHAPE = (9, 11, 8)
SHIFT = np.array([31.25, -7.5, 12.0])  # RAS mm, from the fixed image's world to the moving one's


def rotation(*degrees: float) -> np.ndarray:
    """About the first, second and third axis, (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        one, two = (k for k in range(3) if k != axis)
        turned = np.eye(3)
        turned[[one, two], [one, two]] = np.cos(angle)
        turned[one, two], turned[two, one] = np.sin(angle), -np.sin(angle)
        matrix = matrix @ turned
    return matrix


def grid(matrix: np.ndarray, sizes: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """An affine whose grid is centred near the origin of the world."""
    affine = np.eye(4)
    affine[:3, :3] = matrix * np.array(sizes)
    affine[:3, 3] = (3.0, -2.0, 1.5) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


SHEAR = np.array([[1.0, 0.3, 0.1], [0, 1, -0.2], [0, 0, 1]])
GRIDS = {
    "upright": grid(np.eye(3), (2, 2, 2), SHAPE),
    "flipped": grid(np.diag([-1.0, 1, 1]), (2, 2, 2), SHAPE),
    "anisotropic": grid(np.eye(3), (1.1, 1.7, 3.2), SHAPE),
    "oblique": grid(rotation(20, -35, 50), (1.5, 1.5, 1.5), SHAPE),
    "oblique, anisotropic, left-handed": grid(
        rotation(-15, 10, 40) @ np.diag([1.0, -1, 1]), (1.2, 2.1, 2.8), SHAPE
    ),
}
SHEARED = {
    "sheared": grid(SHEAR, (2, 2, 2), SHAPE),
    "sheared, oblique": grid(rotation(25, 5, -30) @ SHEAR, (1.3, 2.2, 1.8), SHAPE),
}


def smooth(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A wave of the world in [0, 1], of at most 0.15 per mm in any direction."""
    x, y, z = np.moveaxis(places(affine, shape), -1, 0)
    return np.float32(0.5 + 0.5 * np.sin(0.11 * x + 0.23 * y) * np.cos(0.15 * z))


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where the voxels lie, (X, Y, Z, 3) RAS mm."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
