"""How far results lie apart: spread of the samples, and the distance of one result to another.

Shape legend: X Y Z space (voxels of the fixed grid), S samples, V warp component.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def standard_deviation(samples_SXYZ: np.ndarray) -> np.ndarray:
    """Standard deviation over the samples (n − 1 in the denominator), float64, the samples' unit.

    Two passes in float64 and one sample at a time: a difference of one ulp is not lost, and the
    memory is that of three volumes.
    """
    n = len(samples_SXYZ)
    if n < 2:
        raise ValueError(f"a standard deviation needs two samples or more, got {n}")
    mean_XYZ = np.zeros(samples_SXYZ.shape[1:], np.float64)
    for sample_XYZ in samples_SXYZ:
        mean_XYZ += sample_XYZ
    mean_XYZ /= n
    variance_XYZ = np.zeros_like(mean_XYZ)
    for sample_XYZ in samples_SXYZ:
        variance_XYZ += np.square(sample_XYZ - mean_XYZ)
    return np.sqrt(variance_XYZ / (n - 1))


def ulps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Steps from one float32 to the other through the float32 in between; int64, ≥ 0.

    +0 and −0 are 0 apart. Every finite number and infinity has its place; NaN has none: such
    elements give a number without meaning.
    """

    def place(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values, np.float32).view(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # sign and magnitude, to a number

    return np.abs(np.subtract(place(one), place(other), dtype=np.int64))


@dataclass(frozen=True)
class Distance:
    """How two float32 results of the same shape differ; see `distance`."""

    elements: int
    differing: int  # elements whose bytes differ (so −0 differs from +0)
    max_absolute: float  # in the results' unit
    max_ulps: int
    median_ulps: float  # over all elements

    @property
    def identical(self) -> bool:
        """Every byte is the same."""
        return self.differing == 0


def distance(one: np.ndarray, other: np.ndarray) -> Distance:
    """How a float32 result differs from another of the same shape."""
    if one.shape != other.shape or one.dtype != np.float32 or other.dtype != np.float32:
        raise ValueError(
            f"two float32 arrays of one shape, not {one.dtype} {one.shape}"
            f" and {other.dtype} {other.shape}"
        )
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    if not (differing := int(np.count_nonzero(one.view(np.int32) != other.view(np.int32)))):
        return Distance(one.size, 0, 0.0, 0, 0.0)
    steps = ulps(one, other)
    return Distance(
        elements=one.size,
        differing=differing,
        max_absolute=float(np.abs(one.astype(np.float64) - other).max()),
        max_ulps=int(steps.max()),
        median_ulps=float(np.median(steps)),
    )
