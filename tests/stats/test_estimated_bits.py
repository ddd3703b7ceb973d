"""Bits estimated from one run and its shadow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from morphbits.stats.one_run import estimated_bits
from morphbits.stats.significance import significant_bits


@pytest.mark.parametrize("bits", [10, 17])
@pytest.mark.parametrize(("mode", "ratio"), [("random", 3), ("nearness", 2)])
def test_the_estimate_is_what_samples_give(bits: int, mode: str, ratio: int) -> None:
    """Samples whose spread is as many times the error of the one run as the mode says."""
    rng = np.random.default_rng(2)
    exact = rng.uniform(1, 2, 20_000)
    spread = 2.0**-bits * exact
    samples = (exact + spread * rng.standard_normal((10, exact.size))).astype(np.float32)
    run = (exact + spread / math.sqrt(ratio) * rng.standard_normal(exact.size)).astype(np.float32)
    found = estimated_bits(run, exact, 10, mode)
    # 20,000 draws whose logarithms spread by 1.6 bits: 0.011 for one standard error
    assert abs(found.mean() - significant_bits(samples, None).mean()) < 0.05


def test_zeros_and_numbers_without_error() -> None:
    values = np.array([0, 0, 2, 2, np.inf, np.nan], np.float32)
    exact = np.array([0, 1e-3, 2, 2 + 2.0**-10, 1, np.nan])
    found = estimated_bits(values, exact, 10)
    assert np.isnan(found[0]) and found[1] == 0 and found[2] == 24 and 5 < found[3] < 12
    assert found[4] == found[5] == 0
