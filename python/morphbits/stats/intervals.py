"""Confidence intervals of a mean number of significant bits.

Over samples: the jackknife's standard error with Student's t. Not a bootstrap: a resample of n
samples holds about 63 % of them, and fewer samples show more `general` bits, so that all resamples
lie above the estimate (`tests/stats/test_intervals.py` has both).

Over subjects: a bootstrap (BCa; Efron, "Better Bootstrap Confidence Intervals", Journal of the
American Statistical Association 82, 1987). Each subject has its own samples, so that this interval
holds their part too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# five subjects have 126 different resamples, four 35, of which no 2.5 % can be told
MINIMUM_SUBJECTS = 5
RESAMPLES = 9999

Interval = tuple[float, float]


def over_samples(mean: float, standard_error: float | None, n: int) -> Interval | None:
    """From the standard error of `sample_size.by_sample_size`; None where it is not known."""
    if standard_error is None or standard_error != standard_error:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * standard_error
    return mean - half, mean + half


def over_subjects(means: Sequence[float]) -> Interval | None:
    """Of the mean of the subjects' means; None where there are fewer than MINIMUM_SUBJECTS. The
    same means give the same interval."""
    values = np.array(means)
    if len(values) < MINIMUM_SUBJECTS:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=0
    ).confidence_interval
    return float(found.low), float(found.high)
