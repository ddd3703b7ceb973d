"""How the number of samples moves the mean bits, and how uncertain it leaves them.

`general` bits fall when samples are added: more of them find larger errors. So a mean stands for
its n, and is compared at equal n only. The curve is over the first k samples, k of SIZES and n
itself: what the same experiment gives with RUNS=k. The uncertainty is the jackknife's standard
error, leaving out one sample at a time (Efron, "The Jackknife, the Bootstrap and Other Resampling
Plans", SIAM 1982); voxels of one sample are not independent, so it cannot come from their number.

Shape legend: V components of a quantity (image 1, warp 3), S samples, N voxels in a row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from morphbits.stats.significance import FLOAT32_BITS, SLAB_VOXELS, general_bits

SIZES = (2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100)


@dataclass(frozen=True)
class SampleSize:
    """Mean bits (`general`, the mean as reference) by number of samples, over all voxels that are
    not background. Of the last one: its standard error, NaN where n is below 3 or a sample holds
    a value that is not finite, and what it is with Z in float64."""

    mean: dict[int, float]
    standard_error: float
    with_float64_z: float


def by_sample_size(samples_VSN: np.ndarray, most: int = FLOAT32_BITS) -> SampleSize:
    """From float32 samples, n ≥ 2. Three components count as their mean, voxel by voxel."""
    n, points = samples_VSN.shape[1], sizes(samples_VSN.shape[1])
    means: dict[str | int, _Mean] = defaultdict(_Mean)
    finite = True
    for start in range(0, samples_VSN.shape[2], SLAB_VOXELS):
        slab_VSN = samples_VSN[:, :, start : start + SLAB_VOXELS]
        finite = finite and bool(np.isfinite(slab_VSN).all())
        components = [_maps(samples_SN, points, most) for samples_SN in slab_VSN]
        for name in components[0]:
            means[name].add([maps[name] for maps in components])
    left = (
        np.array([means[f"without {s}"].value for s in range(n)])
        if n > 2 and finite
        else np.full(n, np.nan)
    )
    error = math.sqrt((n - 1) / n * np.square(left - left.mean()).sum())
    curve = {k: means[k].value for k in points}
    return SampleSize(curve, error, means["float64"].value)


def sizes(n: int) -> list[int]:
    """Numbers of samples that the curve has points at."""
    return [*(k for k in SIZES if k < n), n]


class _Mean:
    """Over the voxels that are not NaN, of a map that comes in slabs."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, bits_VN: list[np.ndarray]) -> None:
        bits_N = bits_VN[0] if len(bits_VN) == 1 else np.mean(bits_VN, axis=0)
        valid_N = bits_N[~np.isnan(bits_N)]
        self._sum += float(valid_N.sum(dtype=np.float64))
        self._count += valid_N.size

    @property
    def value(self) -> float:
        """NaN where there was no voxel."""
        return self._sum / self._count if self._count else math.nan


def _maps(samples_SN: np.ndarray, points: list[int], most: int) -> dict[str | int, np.ndarray]:
    """Bits of some voxels by what they are computed of: the first k samples, all but one, or all
    with Z in float64."""
    n, maps = len(samples_SN), dict[str | int, np.ndarray]()
    low_N, high_N = samples_SN[0], samples_SN[0]
    second_low_N = np.full_like(low_N, np.inf)
    second_high_N = -second_low_N
    total_N = samples_SN[0].astype(np.float64)
    mean_N = samples_SN[0]
    for k, sample_N in enumerate(samples_SN[1:], start=2):
        total_N += sample_N
        second_low_N = np.minimum(second_low_N, np.maximum(low_N, sample_N))
        second_high_N = np.maximum(second_high_N, np.minimum(high_N, sample_N))
        low_N, high_N = np.minimum(low_N, sample_N), np.maximum(high_N, sample_N)
        if k in points:
            mean_N = (total_N / k).astype(np.float32)
            maps[k] = general_bits(low_N, high_N, mean_N, most)
    wide = [x_N.astype(np.float64) for x_N in (low_N, high_N, mean_N)]
    maps["float64"] = general_bits(wide[0], wide[1], wide[2], most)
    for s, sample_N in enumerate(samples_SN if n > 2 else ()):
        rest_low_N = np.where(sample_N == low_N, second_low_N, low_N)
        rest_high_N = np.where(sample_N == high_N, second_high_N, high_N)
        rest_mean_N = ((total_N - sample_N) / (n - 1)).astype(np.float32)
        maps[f"without {s}"] = general_bits(rest_low_N, rest_high_N, rest_mean_N, most)
    return maps
