"""Significant bits from one run and its float64 shadow, and tables of what was counted on the way.

Method and its limits: notes/decisions/0019-bits-from-one-run.md.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from morphbits.engines.shadow import ALL, Counts
from morphbits.errors import UserError
from morphbits.stats.significance import FLOAT32_BITS

# What random rounding spreads a result by, as a multiple of the error of rounding to nearest: an
# operation's error has variance 1/12 ulp² to nearest, 1/4 up or down with equal chances, and 1/6,
# the mean of t(1 − t), by distance.
SPREAD = {"random": math.sqrt(3), "nearness": math.sqrt(2)}
# E log2|x| of a standard normal x: −(γ + ln 2) / (2 ln 2)
LOG_NORMAL = -(np.euler_gamma + math.log(2)) / (2 * math.log(2))
DRAWN = 1 << 22  # random numbers in memory at a time
MANY = 8  # bits lost in one addition or sum that are worth a column


def check(mode: str, runs: int) -> None:
    """Raise UserError where samples would have no bits to estimate."""
    if mode not in SPREAD:
        raise UserError(f"mode {mode} gives equal samples: give --mode {' or '.join(SPREAD)}")
    if runs < 2:
        raise UserError("one sample has no significant bits: estimate those of two or more")


def estimated_bits(
    values: np.ndarray,
    shadow: np.ndarray,
    runs: int,
    mode: str = "random",
    most: int = FLOAT32_BITS,
) -> np.ndarray:
    """The bits that `significant_bits` (general, the samples' mean as reference) would find in
    `runs` samples, estimated from one result rounded to nearest and its shadow; NaN where both
    are 0, one number each.

    The error of each number is one draw: its logarithm is that of the standard deviation plus
    noise of known mean (the error taken for normal, the sum of many), so that averages over many
    numbers estimate, and a single one says little. The samples' spread is `SPREAD` times the
    error's. The general method counts the largest deviation of `runs`, in whole bits. An error
    of 0 counts as `most` bits; others are not cut there, or the average would be too low.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.abs(values.astype(np.float64) - shadow)
        found = -np.log2(error / np.abs(values)) + LOG_NORMAL - math.log2(SPREAD[mode])
        found = np.maximum(np.floor(found - _largest(runs)), 0)
    found[error == 0] = most
    found[(error == 0) & (values == 0)] = np.nan
    found[~np.isfinite(error)] = 0
    return found


@functools.cache
def _largest(runs: int) -> float:
    """E log2 of the largest |deviation from the mean| of so many standard normal numbers, to
    0.002 (100,000 draws whose standard deviation is below half a bit)."""
    generator, largest = np.random.default_rng(1), np.empty(100_000)
    for block in np.array_split(largest, -(-largest.size * runs // DRAWN)):
        draws = generator.standard_normal((len(block), runs))
        block[:] = np.abs(draws - draws.mean(axis=1, keepdims=True)).max(axis=1)
    return float(np.log2(largest).mean())


def counter_row(name: str, counts: Counts) -> dict[str, Any]:
    """The counts of a stage in one row: totals, means and shares (NaN of none)."""

    def share(part: float, whole: int) -> float:
        return float(part / whole) if whole else math.nan

    row: dict[str, Any] = {"stage": name}
    for kind, total, lost in (
        ("additions", counts.additions, counts.lost),
        ("sums", counts.sums, counts.sums_lost),
    ):
        row |= {
            kind: total,
            f"{kind}_lost_mean": share(float(lost[:ALL] @ np.arange(ALL)), total),
            f"{kind}_lost_{MANY}": share(lost[MANY:ALL].sum(), total),
            f"{kind}_lost_all": share(lost[ALL], total),
        }
    return row | {
        "results": counts.results,
        "subnormal": counts.subnormal,
        "operations": counts.operations,
        "exact": share(counts.exact, counts.operations),
    }
