"""Laws of spread and distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphbits.stats.variability import distance, standard_deviation, ulps

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(finite)
def test_the_next_float_is_one_ulp_away(value: float) -> None:
    x = np.float32([value])
    with np.errstate(over="ignore"):  # infinity is the next one of the largest
        above = np.nextafter(x, np.float32(np.inf))
        below = np.nextafter(x, np.float32(-np.inf))
    assert ulps(x, above) == ulps(x, below) == 1


@given(finite, finite, finite)
def test_ulps_are_a_distance(a: float, b: float, c: float) -> None:
    x, y, z = np.float32([a]), np.float32([b]), np.float32([c])
    assert ulps(x, y) == ulps(y, x)
    assert (ulps(x, y) == 0) == (x == y)
    assert ulps(x, z) <= ulps(x, y) + ulps(y, z)


def test_a_binade_holds_two_to_the_23_floats() -> None:
    assert ulps(np.float32([1]), np.float32([2])) == 2**23
    assert ulps(np.float32([-1]), np.float32([1])) == 2 * 127 * 2**23


def test_distance_counts_bytes_and_steps() -> None:
    one = np.float32([0.0, 1.0, -2.0, 5.0])
    other = np.float32([-0.0, np.nextafter(np.float32(1), np.float32(2)), -2.0, 5.5])
    found = distance(one, other)
    assert (found.elements, found.differing, found.identical) == (4, 3, False)
    assert found.max_absolute == 0.5
    assert found.median_ulps == 0.5  # of 0, 0, 1 and 2^20
    assert found.max_ulps == 2**20  # half a unit of 2^-21 in [4, 8)
    assert distance(one, one).identical
    with pytest.raises(ValueError, match="one shape"):
        distance(one, other[:2])
    with pytest.raises(ValueError, match="float32"):
        distance(one, other.astype(np.float64))


def test_standard_deviation_keeps_one_ulp() -> None:
    x = np.float32(1000)
    above = np.nextafter(x, np.float32(2000))
    samples_SXYZ = np.float32([x, above, x, above]).reshape(4, 1, 1, 1)
    expected = float(above - x) * np.sqrt(4 * 0.25 / 3)
    assert standard_deviation(samples_SXYZ)[0, 0, 0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="two samples"):
        standard_deviation(samples_SXYZ[:1])


def test_standard_deviation_equals_numpy() -> None:
    samples_SXYZ = np.random.default_rng(0).random((5, 3, 4, 2), dtype=np.float32)
    expected = samples_SXYZ.astype(np.float64).std(axis=0, ddof=1)
    np.testing.assert_allclose(standard_deviation(samples_SXYZ), expected, rtol=1e-12)
