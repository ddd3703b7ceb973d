"""Numerical variability compared with the differences between people: NPVR, NAVR, Cohen's d.

- σ_num: standard deviation over the samples of a subject, root mean square over subjects.
- σ_pop: standard deviation over subjects in one sample, root mean square over samples. It is what
  a study sees, and holds σ_num too.
- σ_anat: the part of σ_pop that is not numerical, σ_anat² = σ_pop² − σ_num².
- NPVR = σ_num / σ_pop, NAVR = σ_num / σ_anat (Chatelain et al. 2026,
  doi:10.64898/2026.01.09.698203; their scripts, yohanchatelain/livingpark-numerical-variability,
  divide by σ_pop under both names).

Of two groups of N / 2 subjects each, rounding alone moves Cohen's d with a standard deviation of
2 NPVR / √N: each group's mean varies by σ_num / √(N/2), their difference by 2 σ_num / √N, and d is
that in units of σ_pop. A group difference below this is lost in rounding (their threshold).

Shape legend: P subjects (persons), S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratios:
    """Of one measure in one region; NaN where there are too few subjects, or none of it varies.

    d_deviation: standard deviation of Cohen's d from rounding, in two groups that share these
    subjects; d_kept: the part of the anatomical d that is left, σ_anat / σ_pop; drowned: the
    difference of these groups' means, in the measure's unit, below which it is lost in rounding.
    """

    subjects: int
    n: int
    mean: float
    sigma_num: float
    sigma_pop: float = math.nan
    sigma_anat: float = math.nan
    npvr: float = math.nan
    npvr_low: float = math.nan
    npvr_high: float = math.nan
    navr: float = math.nan
    navr_low: float = math.nan
    navr_high: float = math.nan
    d_deviation: float = math.nan
    d_kept: float = math.nan
    drowned: float = math.nan


def ratios(values_PS: np.ndarray, population: bool = True) -> Ratios:
    """From (subjects, samples ≥ 2) values of one measure. population: whether its spread over
    subjects means anything; without it, or with one subject, there are no ratios."""
    subjects, n = values_PS.shape
    within = float(_variances(values_PS).mean())
    simple = Ratios(subjects, n, float(values_PS.mean()), math.sqrt(within))
    if not population or subjects < 2:
        return simple
    between = float(_variances(values_PS.T).mean())
    if not between > 0:
        return simple
    anatomical = max(between - within, 0.0)
    npvr = math.sqrt(within / between)
    low, high = variance_ratio_interval(values_PS)
    return Ratios(
        subjects,
        n,
        simple.mean,
        simple.sigma_num,
        math.sqrt(between),
        math.sqrt(anatomical),
        npvr,
        1 / math.sqrt(1 + high),
        1 / math.sqrt(1 + low),
        _inverse_root(anatomical / within if within else math.inf),
        _inverse_root(high),
        _inverse_root(low),
        cohens_d_deviation(npvr, subjects),
        math.sqrt(anatomical / between),
        drowned_difference(simple.sigma_num, subjects),
    )


def variance_ratio_interval(
    values_PS: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Confidence interval of σ_anat² / σ_num².

    Of normal values it is exact: the mean square between subjects over that within them, divided
    by 1 + n σ_anat² / σ_num², has the F distribution with P − 1 and P (n − 1) degrees of freedom
    (one-way random effects; Searle, Casella, McCulloch, "Variance Components", 1992, section 3.6).
    The published scripts count P n − n degrees of freedom for σ_pop, as if each sample were
    another person; their intervals are narrower.
    """
    subjects, n = values_PS.shape
    within = _variances(values_PS).mean()
    if within == 0:
        return math.inf, math.inf
    observed = n * values_PS.mean(axis=1).var(ddof=1) / within
    tail, freedom = (1 - confidence) / 2, (subjects - 1, subjects * (n - 1))
    ends = (observed / stats.f.ppf(p, *freedom) for p in (1 - tail, tail))
    low, high = (max((float(end) - 1) / n, 0.0) for end in ends)
    return low, high


def cohens_d_deviation(npvr: float, subjects: int) -> float:
    """Standard deviation of Cohen's d from rounding alone, of two equal groups that have this
    many subjects together; also the |d| below which a difference is lost."""
    return 2 * npvr / math.sqrt(subjects)


def drowned_difference(sigma_num: float, subjects: int) -> float:
    """`cohens_d_deviation` in the measure's own unit: 2 σ_num / √N."""
    return 2 * sigma_num / math.sqrt(subjects)


def _variances(values: np.ndarray) -> np.ndarray:
    """Of each row. Less its first value, a row of equal values has a variance of exactly 0."""
    return (values - values[:, :1]).var(axis=1, ddof=1)


def _inverse_root(ratio: float) -> float:
    return 1 / math.sqrt(ratio) if ratio else math.inf
