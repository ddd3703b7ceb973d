"""Laws of significant bits: a naive reference, known spreads, the edges of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import significantdigits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from morphbits.stats import significance
from morphbits.stats.significance import (
    FLOAT32_BITS,
    METHODS,
    REFERENCES,
    general_probability,
    mean_reference,
    quantiles,
    significant_bits,
)


def naive_bits(samples: list[np.float32], reference: np.float32, method: str) -> float:
    """The formulas of Sohier et al. 2021 for one voxel, written as they stand, in plain Python."""
    if reference == 0:
        return 0.0 if any(sample != 0 for sample in samples) else math.nan
    errors = [sample / reference - np.float32(1) for sample in samples]  # float32 throughout
    if not all(math.isfinite(error) for error in errors):
        return 0.0
    if all(error == 0 for error in errors):
        return float(FLOAT32_BITS)
    if method == "general":
        bits = 0
        while bits < FLOAT32_BITS and all(abs(error) <= 2.0 ** -(bits + 1) for error in errors):
            bits += 1
        return float(bits)
    n = len(errors)
    mean = sum(float(error) for error in errors) / n
    std = math.sqrt(sum((float(error) - mean) ** 2 for error in errors) / n)
    if std == 0:
        std = max(abs(float(error)) for error in errors)
    chi2 = stats.chi2.ppf(0.025, n - 1)
    lost = 0.5 * math.log2((n - 1) / chi2) + math.log2(stats.norm.ppf((0.95 + 1) / 2))
    return min(max(-math.log2(std) - lost, 0.0), float(FLOAT32_BITS))


def noisy_samples(bits: float, n: int, voxels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n samples x·(1 + 2^-bits·N(0,1)) of `voxels` values x in [1, 2), and x; both float32."""
    rng = np.random.default_rng(seed)
    x_N = (1 + rng.random(voxels)).astype(np.float32)
    noise_SN = 2.0**-bits * rng.standard_normal((n, voxels))
    return (x_N * (1 + noise_SN)).astype(np.float32), x_N


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-8, max_value=8)


@settings(deadline=None)
@given(
    center=floats,
    deviations=hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 6), st.just(4)),
        elements=st.floats(-2, 2, width=32),
    ),
    scale=st.integers(-26, 0),
    method=st.sampled_from(METHODS),
    reference=st.sampled_from(REFERENCES),
)
def test_equals_the_naive_formula(
    center: float, deviations: np.ndarray, scale: int, method: str, reference: str
) -> None:
    samples_SN = (np.float32(center) * (1 + deviations * 2.0**scale)).astype(np.float32)
    ieee_N = np.full(4, center, np.float32)
    reference_N = mean_reference(samples_SN) if reference == "mean" else ieee_N
    found = significant_bits(samples_SN, ieee_N, reference, method)  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        expected = [naive_bits(list(samples_SN[:, i]), reference_N[i], method) for i in range(4)]
    # Method general counts, so it is exact. CNH takes log2 of a float64 standard deviation that
    # numpy sums in another order: within 1e-13 of it, plus the float32 that holds the result
    # (2^-25 of at most 24). Equal errors have a standard deviation of exactly 0 in both: n times a
    # float32 is exact in float64.
    np.testing.assert_allclose(found, expected, atol=0 if method == "general" else 2e-6)


@pytest.mark.parametrize("bits", [6, 12, 16])
@pytest.mark.parametrize("n", [3, 10])
def test_known_spread_gives_the_expected_bits(bits: int, n: int) -> None:
    voxels = 20_000
    samples_SN, x_N = noisy_samples(bits, n, voxels, seed=bits)
    # general: P(s ≥ k) = P(max|N| ≤ 2^(bits−k)) = erf(2^(bits−k)/√2)^n, so E[s] is its sum over k
    # and its variance follows the same way. The samples' own rounding (2^-24) blurs a threshold
    # 2^-k by less than 2^(bits-24) of the spread: 0.4 % at bits = 16, below 0.01 bit.
    at_least = special.erf(2.0 ** (bits - np.arange(1, FLOAT32_BITS + 1)) / math.sqrt(2)) ** n
    expected = at_least.sum()
    second = ((2 * np.arange(1, FLOAT32_BITS + 1) - 1) * at_least).sum()
    spread = math.sqrt(second - expected**2)
    found = significant_bits(samples_SN, x_N, "ieee", "general")
    assert found.mean() == pytest.approx(expected, abs=5 * spread / math.sqrt(voxels) + 0.01)

    # cnh: n·std² / σ² follows χ² with n−1 degrees, E[ln χ²_k] = ψ(k/2) + ln 2, Var = ψ'(k/2)
    k = n - 1
    log2_std = (special.digamma(k / 2) + math.log(2) - math.log(n)) / (2 * math.log(2))
    spread = math.sqrt(special.polygamma(1, k / 2)) / (2 * math.log(2))
    lost = 0.5 * math.log2(k / stats.chi2.ppf(0.025, k)) + math.log2(stats.norm.ppf(0.975))
    found = significant_bits(samples_SN, x_N, "ieee", "cnh")
    assert found.mean() == pytest.approx(
        bits - log2_std - lost, abs=5 * spread / math.sqrt(voxels) + 0.01
    )


def test_one_more_bit_of_noise_costs_one_bit() -> None:
    means = []
    for bits in (10, 11, 12):
        samples_SN, x_N = noisy_samples(bits, 10, 20_000, seed=0)
        means.append(significant_bits(samples_SN, x_N, "mean", "general").mean())
    # the same noise halved: thresholds move by exactly one, up to the rounding of the samples
    np.testing.assert_allclose(np.diff(means), 1, atol=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("n", [2, 10])
def test_identical_samples_have_all_24_bits(method: str, reference: str, n: int) -> None:
    x_N = np.float32([1, -1.5, 3e-39, 7e37, 0.1])  # with a subnormal and a huge value
    samples_SN = np.repeat(x_N[None], n, axis=0)
    bits = significant_bits(samples_SN, x_N, reference, method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(bits, np.full(5, FLOAT32_BITS))


def test_the_package_alone_would_stop_at_23_or_reach_50() -> None:
    """Why this module lifts the stop itself; fails if the package changes."""
    x_N = np.float32([1.5, 0.1])
    identical = np.repeat(x_N[None], 10, axis=0)
    general = significantdigits.Method.General
    narrow = significantdigits.significant_digits(identical, x_N, method=general)
    wide = significantdigits.significant_digits(identical, x_N.astype(np.float64), method=general)
    assert narrow.tolist() == [23, 23]
    assert (wide > FLOAT32_BITS).all()


@pytest.mark.parametrize("method", METHODS)
def test_background_is_excluded_and_a_zero_reference_of_other_samples_is_lost(method: str) -> None:
    samples_SN = np.zeros((4, 5), np.float32)
    samples_SN[:, 1] = 1.0
    samples_SN[:, 2] = [-1, 1, -1, 1]  # mean zero, ieee not
    samples_SN[2, 3:] = 1e-38, -1e-38  # one sample is not zero: its mean is not, ieee is
    ieee_N = np.float32([0, 1, 1, 0, 0])
    by_mean = significant_bits(samples_SN, ieee_N, "mean", method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(by_mean, [np.nan, FLOAT32_BITS, 0, 0, 0])
    by_ieee = significant_bits(samples_SN, ieee_N, "ieee", method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(by_ieee, [np.nan, FLOAT32_BITS, 0, 0, 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_sample_that_is_not_finite_has_no_bit(method: str, bad: float, reference: str) -> None:
    samples_SN = np.ones((3, 2), np.float32)
    samples_SN[1, 0] = bad
    bits = significant_bits(
        samples_SN,
        np.ones(2, np.float32),
        reference,
        method,  # type: ignore[arg-type]
    )
    assert bits.tolist() == [0, FLOAT32_BITS]


@pytest.mark.parametrize("method", METHODS)
def test_slabs_equal_the_whole(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    samples_SXYZ = rng.random((5, 6, 7, 8), dtype=np.float32)
    samples_SXYZ[:, ::2] = 0
    ieee_XYZ = samples_SXYZ[0]
    whole = significant_bits(samples_SXYZ, ieee_XYZ, "mean", method)  # type: ignore[arg-type]
    monkeypatch.setattr(significance, "SLAB_VOXELS", 17)
    slabs = significant_bits(samples_SXYZ, ieee_XYZ, "mean", method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole, slabs)


def test_float64_has_53_bits() -> None:
    samples = np.array([[1, 1 + 2**-52, 1 + 2**-40, 0], [1, 1 - 2**-53, 1 - 2**-40, 0]])
    np.testing.assert_array_equal(significant_bits(samples, None), [53, 52, 40, np.nan])


def test_wrong_inputs_are_refused() -> None:
    one = np.ones((1, 3), np.float32)
    two = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="2 or more"):
        significant_bits(one, one[0])
    with pytest.raises(ValueError, match="of float32 or float64"):
        significant_bits(two.astype(np.float16), one[0])
    with pytest.raises(ValueError, match="another type"):
        significant_bits(two, one[0].astype(np.float64), "ieee")
    with pytest.raises(ValueError, match="differ"):
        significant_bits(two, one[0][:2], "ieee")


def test_probability_that_n_samples_support() -> None:
    assert general_probability(10) == pytest.approx(0.741, abs=5e-4)
    assert general_probability(59) >= 0.95 > general_probability(58)
    # the package's own formula, the other way round
    assert significantdigits.minimum_number_of_trials(0.95, 0.95) == 59


def test_quantiles_are_those_that_their_names_say() -> None:
    found = quantiles(np.arange(101, dtype=np.float32) ** 2)
    assert found == {"mean": 3350, "q05": 25, "q25": 625, "median": 2500, "q75": 5625, "q95": 9025}


def test_quantiles_ignore_what_is_excluded() -> None:
    found = quantiles(np.float32([np.nan, 1, 2, 3, np.nan]))
    assert found["mean"] == found["median"] == 2
    assert found["q05"] == pytest.approx(1.1)
    assert all(math.isnan(value) for value in quantiles(np.float32([np.nan])).values())
