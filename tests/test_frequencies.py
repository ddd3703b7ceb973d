"""The suite's own test of frequencies: its false alarms, and what it finds."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from support.frequencies import FALSE_ALARM, assert_frequency


def test_false_alarms_are_as_rare_as_stated() -> None:
    """By the binomial distribution itself: the counts that are refused, weighted."""
    n, refused = 60, Fraction(0)
    for count in range(n + 1):
        try:
            assert_frequency(np.arange(n) < count, 0.5)
        except AssertionError:
            refused += Fraction(comb(n, count), 2**n)
    assert FALSE_ALARM / 8 < refused < FALSE_ALARM


@pytest.mark.parametrize("p", [0.25, 0.5, 0.8125])
def test_a_wrong_frequency_is_found(p: float) -> None:
    n = 200_000
    wrong = 9.8 * (p * (1 - p) / n) ** 0.5
    random = np.random.default_rng(1).random(n)
    assert_frequency(random < p, p)
    for other in (p - wrong, p + wrong):
        with pytest.raises(AssertionError, match="of 200000 at a probability of"):
            assert_frequency(random < other, p)
