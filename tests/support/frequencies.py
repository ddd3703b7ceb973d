"""The test of a frequency: did something happen as often as its probability says?

One exact binomial test for the whole suite. `FALSE_ALARM` is the probability that a correct
implementation fails one test, over the seeds that it could have been given: 2^-20, that of 4.9
standard errors. The suite asks some 200 times, so a correct change of the random bits fails
somewhere with a probability of at most 200 · 2^-20 = 2·10^-4. Between such changes nothing is left
to chance, because all seeds are fixed.

What it finds: a frequency that is wrong by 9.8 standard errors, √(p(1−p)/n) each, or more (0.011
at one half and n = 200,000) passes with a probability below FALSE_ALARM as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

FALSE_ALARM = 2.0**-20


def assert_frequency(happened: ArrayLike, probability: float, what: object = "") -> None:
    """`happened`: independent events, true or false; two-sided."""
    events = np.asarray(happened)
    assert events.dtype == bool and events.size
    count, n = int(events.sum()), events.size
    p = binomtest(count, n, probability).pvalue
    assert p >= FALSE_ALARM, f"{what}: {count} of {n} at a probability of {probability}: p = {p}"
