"""NPVR, NAVR and their effect on Cohen's d: a table worked out by hand, and simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from morphbits.stats.ratios import cohens_d_deviation, ratios, variance_ratio_interval


def test_a_table_worked_out_by_hand() -> None:
    """Variances over samples 2, 2 and 12.5, mean 5.5; over subjects 16 and 31, mean 23.5."""
    found = ratios(np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 14.0]]))
    assert (found.subjects, found.n, found.mean) == (3, 2, 6.5)
    assert found.sigma_num == pytest.approx(math.sqrt(5.5))
    assert found.sigma_pop == pytest.approx(math.sqrt(23.5))
    assert found.sigma_anat == pytest.approx(math.sqrt(18))
    assert found.npvr == pytest.approx(math.sqrt(5.5 / 23.5))
    assert found.navr == pytest.approx(math.sqrt(5.5 / 18))
    assert found.d_deviation == pytest.approx(2 * math.sqrt(5.5 / 23.5) / math.sqrt(3))
    assert found.d_kept == pytest.approx(math.sqrt(18 / 23.5))
    assert found.drowned == pytest.approx(2 * math.sqrt(5.5) / math.sqrt(3))
    # mean squares 2 · 22.75 between and 5.5 within, quotient 8.27. In tables, the F distribution
    # of 2 and 3 degrees of freedom has 16.04 and 1 / 39.17 at its ends, to four digits.
    most = (45.5 / 5.5 * 39.17 - 1) / 2
    assert found.npvr_low == pytest.approx(1 / math.sqrt(1 + most), rel=1e-3)
    assert found.navr_low == pytest.approx(1 / math.sqrt(most), rel=1e-3)
    # below 16.04, it does not show that people differ at all
    assert found.npvr_high == 1 and math.isinf(found.navr_high)


def test_a_published_row() -> None:
    """Of the scripts' npv_hc-pd_baseline_subcortical_volume.csv: 3rd ventricle, 198 people."""
    numerical, population = 27.810826380155696, 651.3289771869246
    npvr = numerical / population
    assert npvr == pytest.approx(0.04269858605135309)
    assert cohens_d_deviation(npvr, 198) == pytest.approx(2 * npvr / math.sqrt(198))


def population(
    rng: np.random.Generator, subjects: int, n: int, sigma_anat: float, sigma_num: float
) -> np.ndarray:
    people_P1 = 100 + sigma_anat * rng.standard_normal((subjects, 1))
    return people_P1 + sigma_num * rng.standard_normal((subjects, n))


def test_a_large_population_gives_back_what_it_was_made_of() -> None:
    found = ratios(population(np.random.default_rng(1), 4000, 10, 3.0, 1.0))
    # a standard deviation of 4000 people has a standard error of 1 / √8000 = 1.1 %: 4 of them
    assert found.sigma_num == pytest.approx(1, rel=0.045)
    assert found.sigma_anat == pytest.approx(3, rel=0.045)
    assert found.npvr == pytest.approx(1 / math.sqrt(10), rel=0.045)
    assert found.navr == pytest.approx(1 / 3, rel=0.045)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 1000 studies of 6 people and 4 samples, σ_anat² / σ_num² = 4; 95 %, ± 4 standard errors
    of √(0.95 · 0.05 / 1000) = 0.7 %."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        low, high = variance_ratio_interval(population(rng, 6, 4, 2.0, 1.0))
        held += low <= 4 <= high
    assert 0.922 < held / 1000 < 0.978


def test_rounding_moves_cohens_d_as_much_as_the_formula_says() -> None:
    """The same 100 people in two groups, measured again and again with other roundings."""
    rng = np.random.default_rng(3)
    subjects, again = 100, 2000
    values_PS = population(rng, subjects, again, 2.0, 1.0)
    a_AS, b_AS = values_PS[:50], values_PS[50:]
    pooled_S = np.sqrt((a_AS.var(axis=0, ddof=1) + b_AS.var(axis=0, ddof=1)) / 2)
    d_S = (a_AS.mean(axis=0) - b_AS.mean(axis=0)) / pooled_S
    # standard error of a standard deviation of 2000 is 1.6 %; σ_pop within groups and over all
    # people differ by their means' difference, a few per cent at 100 people
    assert d_S.std(ddof=1) == pytest.approx(ratios(values_PS).d_deviation, rel=0.1)


def test_nothing_that_varies_and_too_few_people_have_no_ratio() -> None:
    same = ratios(np.ones((3, 4)))
    assert same.sigma_num == 0 and math.isnan(same.npvr)
    stable = ratios(np.array([[1.0, 1.0], [2.0, 2.0]]))
    assert stable.npvr == stable.npvr_high == stable.navr == stable.drowned == 0
    assert stable.d_kept == 1
    # the mean of three equal numbers need not be that number in float64
    assert ratios(np.outer([0.1, 0.7], np.ones(3))).sigma_num == 0
    alone = ratios(np.array([[1.0, 3.0]]))
    assert alone.sigma_num == pytest.approx(math.sqrt(2)) and math.isnan(alone.npvr)
    noise = ratios(np.array([[1.0, 3.0], [3.0, 1.0]]))  # all of the spread is numerical
    assert noise.sigma_anat == 0 and noise.npvr == 1 and math.isinf(noise.navr)
