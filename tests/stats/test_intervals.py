"""Intervals hold the truth as often as they say; a bootstrap over samples would not."""

from __future__ import annotations

import numpy as np
import pytest

from morphbits.stats.intervals import over_samples, over_subjects
from morphbits.stats.sample_size import by_sample_size


def samples(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, voxels): half of a sample's error is shared by all its voxels."""
    noise_SN = 0.5 * rng.standard_normal((n, 1)) + rng.standard_normal((n, 300))
    return (1 + 2.0**-12 * noise_SN).astype(np.float32)


def test_the_interval_over_samples_holds_the_mean_of_many_experiments() -> None:
    rng, n = np.random.default_rng(0), 10
    found = [by_sample_size(samples(rng, n)[None]) for _ in range(200)]
    truth = np.mean([one.mean[n] for one in found])
    held = 0
    for one in found:
        interval = over_samples(one.mean[n], one.standard_error, n)
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    # 95 %, less what a jackknife of a maximum is rough by (91 to 97 % for n of 5, 10 and 26), less
    # two standard errors of 200 experiments (2 · 2 %)
    assert held / 200 > 0.87


def test_resamples_of_samples_show_more_bits_than_the_samples() -> None:
    """Why the interval over samples is no bootstrap."""
    rng, n = np.random.default_rng(1), 10
    samples_SN = samples(rng, n)
    mean = by_sample_size(samples_SN[None]).mean[n]
    drawn = [samples_SN[rng.integers(0, n, n)] for _ in range(100)]
    above = [by_sample_size(some_SN[None]).mean[n] > mean for some_SN in drawn]
    assert np.mean(above) > 0.95


def test_the_interval_over_subjects_holds_the_mean_of_the_population() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        interval = over_subjects(rng.normal(18, 0.5, 30).tolist())
        assert interval is not None
        held += interval[0] <= 18 <= interval[1]
    # 95 %, with 30 values a percent or two less; three standard errors of 100 are 7 %
    assert held / 100 > 0.86


def test_the_interval_over_subjects_is_that_of_students_t_for_many() -> None:
    """1000 values: both tend to mean ± 1.96 s / √n."""
    values = np.random.default_rng(3).normal(18, 0.5, 1000)
    low, high = over_subjects(values.tolist())  # type: ignore[misc]
    half = 1.96 * values.std(ddof=1) / np.sqrt(1000)
    # a 2.5 % quantile of 9999 resamples: standard error of 2.7 % of a standard deviation
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_of_too_little() -> None:
    assert over_subjects([18.0, 18.5, 19.0, 17.0]) is None
    assert over_subjects([18.0] * 6) == (18, 18)
    assert over_subjects([17.0, 18.0, 18.5, 19.0, 18.1]) == over_subjects(
        [17.0, 18.0, 18.5, 19.0, 18.1]
    )
    assert over_samples(18.0, float("nan"), 2) is None and over_samples(18.0, None, 2) is None
    low, high = over_samples(18.0, 0.1, 2)  # type: ignore[misc]
    assert (low, high) == pytest.approx((18 - 1.2706, 18 + 1.2706), abs=1e-4)  # t of 1: 12.706
