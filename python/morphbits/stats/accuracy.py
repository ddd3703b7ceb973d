"""How good a registration is: overlap, distance of surfaces, distance to the truth, folding.

Label maps are (X, Y, Z) integer arrays on one grid. A warp is (X, Y, Z, 3) float, a displacement
in voxels of the fixed grid: moved(x) = moving(x + warp(x)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits import images
from morphbits.images import Image

Labels = NDArray[np.integer[Any]]


def dice(a: Labels, b: Labels, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice coefficient of each label, 2 |A ∩ B| / (|A| + |B|) (Dice 1945, doi:10.2307/1932409).

    labels: default, all but 0 that occur in either map. NaN for a label that neither map holds.
    """
    result = {}
    for label in _labels(a, b, labels):
        in_a, in_b = a == label, b == label
        total = np.count_nonzero(in_a) + np.count_nonzero(in_b)
        both = np.count_nonzero(in_a & in_b)
        result[label] = 2 * both / total if total else float("nan")
    return result


@dataclass(frozen=True)
class SurfaceDistance:
    """Between the surfaces of two structures, in mm; NaN where one of them is empty."""

    mean: float
    p95: float


def surface_distance(
    a: Labels,
    b: Labels,
    voxel_sizes: Iterable[float],
    labels: Iterable[int] | None = None,
) -> dict[int, SurfaceDistance]:
    """Average symmetric surface distance and 95 % Hausdorff distance of each label, in mm.

    mean: over the surface voxels of both structures, of the distance to the nearest surface voxel
    of the other (Heimann et al. 2009, doi:10.1109/TMI.2009.2013851, section IV-B2). p95: the 95th
    percentile of these distances from one surface to the other, the larger of both directions
    (after Huttenlocher et al. 1993, doi:10.1109/34.232073). A surface voxel has at least one of
    its six neighbours outside the structure.
    """
    sampling = [float(size) for size in voxel_sizes]
    result = {}
    for label in _labels(a, b, labels):
        # nothing outside the box around both structures matters
        found = ndimage.find_objects(((a == label) | (b == label)).astype(np.uint8))
        box = found[0] if found else (slice(0, 0),) * 3
        surfaces = [_surface(labels_in_box == label) for labels_in_box in (a[box], b[box])]
        if not all(surface.any() for surface in surfaces):
            result[label] = SurfaceDistance(math.nan, math.nan)
            continue
        to_a, to_b = (ndimage.distance_transform_edt(~s, sampling=sampling) for s in surfaces)
        both = to_b[surfaces[0]], to_a[surfaces[1]]
        p95 = max(np.quantile(distances, 0.95) for distances in both)
        result[label] = SurfaceDistance(float(np.concatenate(both).mean()), float(p95))
    return result


@dataclass(frozen=True)
class WarpError:
    """Distance between two warps over a region, in mm."""

    mean: float
    p95: float


def warp_error(
    warp: NDArray[np.floating[Any]],
    true_warp: NDArray[np.floating[Any]],
    affine: NDArray[np.float64],
    mask: NDArray[np.bool_],
    shift: NDArray[np.float64] | float = 0.0,
) -> WarpError:
    """Euclidean distance |A (warp − true_warp) + shift| inside the mask, mean and 95th percentile,
    in mm.

    A is the upper left 3 × 3 of the fixed image's affine; mask (X, Y, Z), e.g. the fixed brain;
    shift (3,) RAS mm is what the warp's own shift (see `images.save_warp`) is above that of the
    true one. With a warp of zeros: the distance before registration.
    """
    difference = warp[mask].astype(np.float64) - true_warp[mask]
    distance = np.sqrt(((difference @ affine[:3, :3].T + shift) ** 2).sum(axis=-1))
    return WarpError(float(distance.mean()), float(np.quantile(distance, 0.95)))


@dataclass(frozen=True)
class Folding:
    """Voxels where a warp is not one to one."""

    voxels: int
    fraction: float


def folding(warp: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None = None) -> Folding:
    """Voxels whose Jacobian determinant is 0 or less, of those in the mask (default: all)."""
    determinant = images.jacobian_determinant(warp)
    return folds(determinant if mask is None else determinant[mask])


def folds(determinant: NDArray[np.floating[Any]]) -> Folding:
    """`folding` from the Jacobian determinants of the voxels that count."""
    voxels = int(np.count_nonzero(determinant <= 0))
    return Folding(voxels, voxels / determinant.size)


def moved_labels(moving: Image, warp: Image) -> Labels:
    """The moving image's labels on the fixed grid, each voxel's the nearest to where it leads."""
    return images.move(moving, warp, order=0).data


def _labels(a: Labels, b: Labels, labels: Iterable[int] | None) -> list[int]:
    if labels is not None:
        return list(labels)
    return [int(label) for label in np.union1d(np.unique(a), np.unique(b)) if label != 0]


def _surface(structure: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return structure & ~ndimage.binary_erosion(structure)
