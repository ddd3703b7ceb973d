"""Do two ways of perturbing the same computation give the same distribution?

Voxel by voxel, over n samples of each: significant bits (significantdigits' general method, mean
as the reference) and standard deviations. Voxels of one sample are not independent, so the
uncertainty of a mean over voxels comes from leaving out one sample at a time (jackknife: Efron,
"The Jackknife, the Bootstrap and Other Resampling Plans", SIAM 1982).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from morphbits.stats.significance import significant_bits

BITS = 0.1  # mean significant bits may differ by this much
RATIO = 0.1  # and log2 of the median ratio of standard deviations by this
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Comparison:
    """One quantity (image or warp) under two engines."""

    bits: tuple[float, float]  # mean over voxels, of one and the other
    error: float  # standard error of the difference of these means
    ratio: tuple[float, ...]  # QUANTILES over voxels of log2(std of one / std of the other)
    ratio_map: np.ndarray  # that logarithm per voxel, float32; NaN where one does not vary

    @property
    def difference(self) -> float:
        """Mean bits of one less those of the other."""
        return self.bits[0] - self.bits[1]

    @property
    def agrees(self) -> bool:
        """Within BITS in the mean and within RATIO in the median standard deviation."""
        return abs(self.difference) <= BITS and abs(self.ratio[2]) <= RATIO


def compare(one_SX: np.ndarray, other_SX: np.ndarray) -> Comparison:
    """Compare n ≥ 3 float32 samples (first axis) of one engine with m ≥ 3 of another."""
    bits = (mean_bits(one_SX), mean_bits(other_SX))
    error = float(np.hypot(_jackknife_error(one_SX), _jackknife_error(other_SX)))
    std_one_X, std_other_X = (s.astype(np.float64).std(0, ddof=1) for s in (one_SX, other_SX))
    varies = (std_one_X > 0) & (std_other_X > 0)
    ratio_X = np.full(varies.shape, np.nan, np.float32)
    ratio_X[varies] = np.log2(std_one_X[varies] / std_other_X[varies])
    quantiles = np.quantile(ratio_X[varies], QUANTILES) if varies.any() else np.zeros(5)
    return Comparison(bits, error, tuple(float(q) for q in quantiles), ratio_X)


def mean_bits(samples_SX: np.ndarray) -> float:
    """Mean significant bits over the voxels whose mean is not zero."""
    return float(np.nanmean(significant_bits(samples_SX, None)))


def _jackknife_error(samples_SX: np.ndarray) -> float:
    """Standard error of `mean_bits`."""
    n = len(samples_SX)
    left = np.array([mean_bits(np.delete(samples_SX, i, axis=0)) for i in range(n)])
    return float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
