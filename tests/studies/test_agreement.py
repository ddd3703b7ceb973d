"""Two ways of perturbing, compared: equal noise agrees, twice the noise does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from morphbits.studies.agreement.comparison import Comparison, compare, mean_bits

SHAPE = (10, 12, 12, 12)


def samples(seed: int, spread: float) -> np.ndarray:
    """Float32 results near 1, normal, with this standard deviation."""
    random = np.random.default_rng(seed)
    return (1 + spread * random.standard_normal(SHAPE)).astype(np.float32)


def test_the_same_distribution_agrees() -> None:
    one = compare(samples(1, 1e-4), samples(2, 1e-4))
    assert one.agrees
    # the standard error of a mean of 1,728 independent voxels, whose bits spread by about 0.5 as
    # log2 of a standard deviation from 10 samples does: 0.5 * sqrt(2 / 1728) = 0.017
    assert abs(one.difference) < 5 * one.error
    assert 0.005 < one.error < 0.05
    # two F-distributed variances with 9 degrees of freedom: symmetric, median 1
    assert one.ratio[2] == pytest.approx(0, abs=0.05)
    assert one.ratio[0] == pytest.approx(-one.ratio[4], abs=0.1)


def test_twice_the_noise_is_one_bit_less_and_disagrees() -> None:
    one = compare(samples(1, 2e-4), samples(2, 1e-4))
    assert one.difference == pytest.approx(-1, abs=0.05)
    assert one.ratio[2] == pytest.approx(1, abs=0.05)
    assert not one.agrees


def test_they_agree_within_a_tenth_of_a_bit_in_mean_and_in_spread() -> None:
    for difference, ratio, agrees in ((0.09, -0.09, True), (-0.11, 0, False), (0, 0.11, False)):
        one = Comparison((10 + difference, 10), 0, (0, 0, ratio, 0, 0), np.zeros(1))
        assert one.agrees == agrees, (difference, ratio)


def test_a_voxel_that_does_not_vary_has_no_ratio() -> None:
    first, second = samples(1, 1e-4), samples(2, 1e-4)
    first[:, 0, 0, 0] = 1
    one = compare(first, second)
    assert np.isnan(one.ratio_map[0, 0, 0])
    assert np.isfinite(one.ratio_map).sum() == 12**3 - 1


def test_mean_bits_is_that_of_the_spread() -> None:
    """Of normal noise of 2^-10 around 1, general method: P(bits ≥ k) is that of ten errors, whose
    spread around their own mean is √0.9 of the noise's, all within 2^-k. To five standard errors
    of a mean over 1,728 voxels, and 0.01 for taking the ten as independent."""
    k = np.arange(1, 25)
    at_least = special.erf(2.0 ** (10 - k) / np.sqrt(2 * 0.9)) ** 10
    expected = at_least.sum()
    error = np.sqrt((((2 * k - 1) * at_least).sum() - expected**2) / 1728)
    assert mean_bits(samples(3, 2.0**-10)) == pytest.approx(expected, abs=5 * error + 0.01)
