"""Significant bits from one run: its float64 shadow, and what was counted on the way, by stage.

Shape legend: X Y Z space (voxels of the fixed grid), V warp component.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

from morphbits import provenance, stages
from morphbits.engines.shadow import ALL, Counts, Shadow
from morphbits.errors import UserError
from morphbits.models.model import open_model
from morphbits.registration import register
from morphbits.stats.analysis import Row
from morphbits.stats.significance import FLOAT32_BITS, quantiles, significant_bits
from morphbits.studies.layers.computation import Case, Samples

# What random rounding spreads a result by, as a multiple of the error of rounding to nearest: an
# operation's error has variance 1/12 ulp² to nearest, 1/4 up or down with equal chances, and 1/6,
# the mean of t(1 − t), by distance.
SPREAD = {"random": math.sqrt(3), "nearness": math.sqrt(2)}
# E log2|x| of a standard normal x: −(γ + ln 2) / (2 ln 2)
LOG_NORMAL = -(np.euler_gamma + math.log(2)) / (2 * math.log(2))
MANY = 8  # bits lost in one addition or sum that are worth a column
WINDOW = 5  # voxels along each axis over which a map is averaged


def estimated_bits(
    values: np.ndarray, shadow: np.ndarray, runs: int, mode: str = "random"
) -> np.ndarray:
    """The bits that `significant_bits` (general, the samples' mean as reference) would find in
    `runs` samples, estimated from one result rounded to nearest and its shadow; NaN where both
    are 0, one number each.

    The error of each number is one draw: its logarithm is that of the standard deviation plus
    noise of known mean (the error taken for normal, the sum of many), so that averages over many
    numbers estimate, and a single one says little. The samples' spread is `SPREAD` times the
    error's. The general method counts the largest deviation of `runs`, in whole bits. An error
    of 0 counts as 24 bits; other numbers are not cut there, or the average would be too low.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.abs(values.astype(np.float64) - shadow)
        found = -np.log2(error / np.abs(values)) + LOG_NORMAL - math.log2(SPREAD[mode])
        found = np.maximum(np.floor(found - _largest(runs)), 0)
    found[error == 0] = FLOAT32_BITS
    found[(error == 0) & (values == 0)] = np.nan
    found[~np.isfinite(error)] = 0
    return found


@functools.cache
def _largest(runs: int) -> float:
    """E log2 of the largest |deviation from the mean| of so many standard normal numbers, to
    0.002 (100,000 draws whose standard deviation is below half a bit)."""
    draws = np.random.default_rng(1).standard_normal((100_000, runs))
    return float(np.log2(np.abs(draws - draws.mean(axis=1, keepdims=True)).max(axis=1)).mean())


def averaged(bits_XYZ: np.ndarray) -> np.ndarray:
    """Mean over a cube of WINDOW voxels about each, of those that are not NaN."""
    there_XYZ = np.isfinite(bits_XYZ)
    sums, counts = (
        ndimage.uniform_filter(array, WINDOW, mode="constant")
        for array in (np.where(there_XYZ, bits_XYZ, 0.0), there_XYZ.astype(float))
    )
    return np.where(there_XYZ, sums / np.maximum(counts, 1e-9), np.nan)


@dataclass
class OneRun:
    """What one run tells."""

    tables: dict[str, list[Row]]
    """one_run: bits of each stage's result, and of image and warp. counters: what was counted.
    decisions: how many, and how many of them float64 takes otherwise."""
    maps: dict[str, np.ndarray]  # bits (X, Y, Z) of image and warp, averaged
    record: dict[str, Any]
    """configuration and provenance of the run; unshadowed: calls of operators that float64 could
    not follow; lost: by stage, how many additions and sums lost 0, 1, …, 24 and all bits"""


def one_run(case: Case, runs: int) -> OneRun:
    """Register the case once, rounded to nearest, with a shadow; `runs`: of the samples whose
    bits are estimated."""
    mode = case.settings.mode
    if mode not in SPREAD:
        raise UserError(f"mode {mode} gives equal samples: give --mode {' or '.join(SPREAD)}")
    shadow, started = Shadow(), provenance.Start()
    rows: dict[str, Row] = {}
    outputs: list[np.ndarray] = []

    def observe(name: str, result: Any) -> None:
        if isinstance(result, Tensor):
            values, exact = result.detach().numpy(), shadow.of(result).numpy()
            bits = estimated_bits(values, exact, runs, mode)
            rows[name] = _row(name, values[0], exact[0], bits)

    def hook(module: Any, inputs: Any, results: Any) -> None:
        outputs[:] = [shadow.of(result)[0].numpy() for result in results]

    config = case.config(mode="nearest")
    network = open_model(case.settings.model, config).network()
    handle = network.register_forward_hook(hook)
    try:
        with stages.observed(observe):
            result = register(case.prepared, case.settings.model, config, watch=shadow)
    finally:
        handle.remove()
    rows.pop("network", None)  # the same numbers as flow
    exact_image_XYZ = case.prepared.moved_back(outputs[0][0])
    exact_warp_XYZV = case.prepared.warp_back(np.moveaxis(outputs[1], 0, -1))
    image_XYZ = estimated_bits(result.moved_XYZ, exact_image_XYZ, runs, mode)
    warp_XYZV = estimated_bits(result.warp_XYZV, exact_warp_XYZV, runs, mode)
    for name, *row in (
        ("result: image", result.moved_XYZ, exact_image_XYZ, image_XYZ),
        ("result: warp", result.warp_XYZV, exact_warp_XYZV, warp_XYZV),
    ):
        rows[name] = _row(name, *row)
    counted = {name: counts for name, counts in shadow.counts.items() if counts.results}
    decisions = [
        {"stage": name, "kind": kind, "decisions": number, "float64": counts.flipped[kind]}
        for name, counts in shadow.counts.items()
        for kind, number in counts.decisions.items()
    ]
    files = {"moving": case.dataset.moving(case.subject), "fixed": case.dataset.fixed()}
    inputs = provenance.inputs(files, case.settings.model, config)
    return OneRun(
        {
            "one_run": list(rows.values()),
            "counters": [_counter_row(name, counts) for name, counts in counted.items()],
            "decisions": decisions,
        },
        {
            "image, one run": averaged(image_XYZ),
            "warp, one run": averaged(_mean_component(warp_XYZV)),
        },
        {
            "configuration": provenance.configuration(config, inputs),
            "provenance": provenance.provenance(config, started, result.record),
            "estimated_for": {"mode": mode, "runs": runs},
            "unshadowed": dict(shadow.unshadowed),
            "lost": {
                name: {"additions": counts.lost.tolist(), "sums": counts.sums_lost.tolist()}
                for name, counts in counted.items()
            },
        },
    )


def _mean_component(bits_XYZV: np.ndarray) -> np.ndarray:
    """NaN where no component has bits."""
    there_XYZV = np.isfinite(bits_XYZV)
    sums, counts = np.where(there_XYZV, bits_XYZV, 0).sum(axis=-1), there_XYZV.sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _row(name: str, values: np.ndarray, exact: np.ndarray, bits: np.ndarray) -> Row:
    error = values.astype(np.float64) - exact
    return {
        "stage": name,
        "shape": "×".join(map(str, values.shape)),
        "one_run": min(float(FLOAT32_BITS), quantiles(bits)["mean"]),
        "error_rms": float(np.sqrt(np.mean(error**2))),
        "error_max": float(np.abs(error).max()),
        "without_error": float(np.mean(error == 0)),
    }


def _counter_row(name: str, counts: Counts) -> Row:
    def share(part: float, whole: int) -> float:
        return float(part / whole) if whole else math.nan

    row: Row = {"stage": name}
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


def with_samples(found: OneRun, activations: list[Row], samples: Samples) -> None:
    """Add to a run's table and maps what perturbed samples give."""
    warp_bits = [significant_bits(of, None) for of in np.moveaxis(samples.warp_SXYZV, -1, 0)]
    warp_XYZV = np.stack(warp_bits, axis=-1)
    image_XYZ = significant_bits(samples.image_SXYZ, None)
    known = {row["stage"]: row["mean"] for row in activations}
    known |= {
        "result: image": quantiles(image_XYZ)["mean"],
        "result: warp": quantiles(warp_XYZV)["mean"],
    }
    for row in found.tables["one_run"]:
        row["samples"] = known[row["stage"]]
        row["difference"] = row["one_run"] - row["samples"]
        row["runs"] = len(samples.image_SXYZ)
    found.maps["image, samples"] = image_XYZ
    found.maps["warp, samples"] = _mean_component(warp_XYZV)
