"""Bits by the number of samples: the same bits as the package's, at every n, and their error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import significantdigits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from morphbits.stats import sample_size
from morphbits.stats.sample_size import by_sample_size, sizes
from morphbits.stats.significance import (
    TYPE_BITS,
    bits_held,
    general_bits,
    mean_reference,
    significant_bits,
)
from morphbits.studies.agreement import comparison

EDGES = [0.0, -0.0, 1.0, -1.0, 1.5, 3e-39, 7e37, np.inf, np.nan]


@settings(deadline=None)
@given(
    centre=st.sampled_from(EDGES) | st.floats(-8, 8, width=32),
    deviations=hnp.arrays(np.float32, (4, 5), elements=st.floats(-2, 2, width=32)),
    scale=st.integers(-54, 0),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_bits_of_the_extremes_are_those_of_the_package(
    centre: float, deviations: np.ndarray, scale: int, kind: type
) -> None:
    """Between 0 and what the type holds, which are ours, as is what the background gets."""
    most = TYPE_BITS[np.dtype(kind)]
    with np.errstate(all="ignore"):
        samples_SN = (kind(centre) * (1 + deviations * kind(2) ** scale)).astype(kind)
        reference_N = mean_reference(samples_SN)
        found = general_bits(samples_SN.min(axis=0), samples_SN.max(axis=0), reference_N, most)
        equal = (samples_SN == reference_N).all(axis=0)
        known = ~equal & (reference_N != 0)
        package = significantdigits.significant_digits(
            samples_SN[:, known],
            reference=reference_N[known],
            error=significantdigits.Error.Relative,
            method=significantdigits.Method.General,
            dtype=np.float64,
        )
    finite = np.isfinite(samples_SN[:, known]).all(axis=0)
    np.testing.assert_array_equal(found[known], np.where(finite, np.clip(package, 0, most), 0))
    held = np.where(np.isfinite(reference_N), most, 0)
    usual = np.where(reference_N == 0, np.where(equal, np.nan, 0), held)
    np.testing.assert_array_equal(found[~known], usual[~known])


def noisy(n: int, voxels: int = 3000, seed: int = 0) -> np.ndarray:
    """Three components of n samples with 18 bits, a sixth of the voxels background."""
    rng = np.random.default_rng(seed)
    x_VN = (1 + rng.random((3, voxels))).astype(np.float32)
    noise_VSN = 2.0**-18 * rng.standard_normal((3, n, voxels))
    samples_VSN = (x_VN[:, None] * (1 + noise_VSN)).astype(np.float32)
    samples_VSN[..., : voxels // 6] = 0
    return samples_VSN


@pytest.mark.parametrize("n", [2, 3, 11])
def test_each_point_is_the_mean_of_the_first_samples(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_size, "SLAB_VOXELS", 1000)
    samples_VSN = noisy(n)
    found = by_sample_size(samples_VSN)
    assert list(found.mean) == sizes(n)
    for k, mean in found.mean.items():
        bits_VN = [significant_bits(samples_SN[:k], None) for samples_SN in samples_VSN]
        expected = np.nanmean(np.mean(bits_VN, axis=0), dtype=np.float64)
        assert mean == pytest.approx(expected, abs=1e-12)  # sums of few numbers in another order


def test_points_end_at_the_number_of_samples() -> None:
    assert sizes(2) == [2]
    assert sizes(10) == [2, 3, 4, 5, 7, 10]
    assert sizes(12) == [2, 3, 4, 5, 7, 10, 12]


def test_more_samples_have_fewer_bits() -> None:
    means = list(by_sample_size(noisy(10)).mean.values())
    assert means == sorted(means, reverse=True)


def test_the_standard_error_is_the_jackknife_of_a_comparison() -> None:
    samples_SN = noisy(6)[0]
    found = by_sample_size(samples_SN[None]).standard_error
    # the same but for the last bit of a mean without one sample, where its sum is a difference
    assert found == pytest.approx(comparison._jackknife_error(samples_SN), rel=1e-3)
    assert math.isnan(by_sample_size(samples_SN[None, :2]).standard_error)


def test_the_standard_error_covers_what_other_samples_give() -> None:
    """Samples whose size of error is shared by all voxels, so that n alone decides."""
    means, errors = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        size_S = rng.standard_normal((10, 1))
        samples_SN = (1 + 2.0**-12 * size_S * (1 + rng.random((10, 500)))).astype(np.float32)
        found = by_sample_size(samples_SN[None])
        means.append(found.mean[10])
        errors.append(found.standard_error)
    # a jackknife of a maximum is rough; within a factor of two of what 40 repetitions spread by
    # (itself known to 1/√80 = 11 %)
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) / np.std(means, ddof=1) < 2


@pytest.mark.parametrize("bits", [14, 20, 22])
def test_z_in_float32_counts_more_bits_than_z_in_float64(bits: int) -> None:
    """By what the definition says: an error of (2^-k, 2^-k + 2^-25] rounds to 2^-k in float32."""
    rng = np.random.default_rng(bits)
    x_N = (1 + rng.random(20_000)).astype(np.float32)
    noise_SN = 2.0**-bits * rng.standard_normal((10, x_N.size))
    samples_SN = (x_N * (1 + noise_SN)).astype(np.float32)
    found = by_sample_size(samples_SN[None])
    reference_N = mean_reference(samples_SN).astype(np.float64)
    largest_N = np.abs(samples_SN / reference_N - 1).max(axis=0)
    exact_N = np.where(largest_N > 0, np.floor(-np.log2(np.maximum(largest_N, 2.0**-60))), 24)
    assert found.with_float64_z == pytest.approx(np.minimum(exact_N, 24).mean(), abs=1e-12)
    flattery = found.mean[10] - found.with_float64_z
    assert 0 <= flattery < 0.4 and (flattery > 0.02) == (bits >= 20)


def test_results_that_hold_fewer_bits_have_no_more() -> None:
    samples_SN = np.ones((3, 4), np.float32)
    assert significant_bits(samples_SN, None, most=8).tolist() == [8] * 4
    assert by_sample_size(samples_SN[None], most=8).mean[3] == 8
    assert bits_held({}) == bits_held({"precision": "tf32"}) == 24
    assert bits_held({"precision": "8", "perturb": "only:network"}) == 24
    assert [bits_held({"precision": p}) for p in ("8", "float16", "bfloat16")] == [8, 11, 8]


def test_only_background_has_no_mean() -> None:
    found = by_sample_size(np.zeros((1, 3, 10), np.float32))
    assert all(math.isnan(mean) for mean in found.mean.values())


def test_the_error_is_not_known_where_a_sample_is_not_finite() -> None:
    samples_VSN = np.random.default_rng(1).normal(1, 1e-3, (1, 5, 50)).astype(np.float32)
    assert by_sample_size(samples_VSN).standard_error > 0
    samples_VSN[0, 2, 7] = np.nan
    assert np.isnan(by_sample_size(samples_VSN).standard_error)
