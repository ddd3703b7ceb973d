"""Where a registration's bits go, in one subject: by stage, by precision, by order of sums.

Samples are made in this process and not kept; their seeds are those of an experiment's.

Shape legend: X Y Z space (voxels of the fixed grid), S samples, V warp component, N numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from morphbits import bids, datasets, images, stages
from morphbits.bids import Dataset, Subject
from morphbits.config import ExecutionConfig, ExperimentConfig, RegisterConfig, from_mapping
from morphbits.errors import UserError
from morphbits.images import Image, Prepared
from morphbits.models.model import open_model
from morphbits.registration import prepare, register
from morphbits.samples import estimate
from morphbits.samples.matrix import sample_seed
from morphbits.stats import analysis
from morphbits.stats.analysis import Row
from morphbits.stats.significance import FLOAT32_BITS, bits_held, quantiles, significant_bits

Say = Callable[[str], None]
PRECISIONS = (24, 22, 20, 18, 16, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4)
# (precision, stages it acts on): all of the registration, or the network alone
FORMATS = tuple(
    (name, perturb)
    for name in ("tf32", "float16", "bfloat16")
    for perturb in ("all", "only:network")
)


@dataclass(frozen=True)
class Case:
    """One subject of a dataset, ready to be registered."""

    settings: ExperimentConfig
    dataset: Dataset
    subject: Subject
    fixed: Image
    prepared: Prepared
    masks: Mapping[str, np.ndarray]
    threads: int

    def config(self, run: int = 1, **arithmetic: Any) -> RegisterConfig:
        """One registration's configuration: the settings', with what is given otherwise."""
        seed = sample_seed(self.settings.seed, self.subject, run)
        own = {"engine": "native", "seed": seed, "threads": self.threads}
        return self.settings.registration(**own | arithmetic)


def settings_of(results: Path, experiment: str) -> ExperimentConfig | None:
    """The settings an experiment was made with, where its folder is there."""
    if not experiment:
        return None
    path = bids.experiment_file(results, experiment, "experiment.json")
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); run the experiment again") from None
    return from_mapping(ExperimentConfig, settings, str(path))


def open_case(settings: ExperimentConfig, execution: ExecutionConfig, number: int) -> Case:
    """The dataset's subject ``number`` (from 1); makes phantoms that are not there yet."""
    dataset, _ = datasets.resolve(
        settings.dataset, execution.data, settings.size, settings.fixed, settings.bids_filter
    )
    if dataset == bids.phantom_dataset(execution.data, settings.size):
        from morphbits.datasets import phantom

        phantom.make_dataset(execution.data, number, size=settings.size)
    subjects = dataset.subjects()
    if not 1 <= number <= len(subjects):
        raise UserError(f"{dataset.root}: has {len(subjects)} subjects, no number {number}")
    subject = subjects[number - 1]
    moving, fixed = (
        images.load(path, settings.orientation, settings.nan)
        for path in (dataset.moving(subject), dataset.fixed())
    )
    return Case(
        settings,
        dataset,
        subject,
        fixed,
        prepare(moving, fixed, settings.model, settings),
        analysis.tissue_masks(dataset, fixed),
        execution.threads or estimate.cores(),
    )


@dataclass(frozen=True)
class Samples:
    """Results of one way of computing, and what one of them cost."""

    image_SXYZ: np.ndarray  # float32
    warp_SXYZV: np.ndarray  # float32, voxels of the fixed grid
    operations: int
    seconds: float
    orders: Mapping[str, str]  # of sums, by layer, where they were measured


def make(
    case: Case, runs: int, each: Callable[[], None] = lambda: None, /, **arithmetic: Any
) -> Samples:
    """``runs`` samples of the case; in mode nearest one is enough. ``each`` is called after each
    sample."""
    results, seconds = [], []
    for run in range(1, runs + 1):
        start = time.perf_counter()
        config = case.config(run, **arithmetic)
        results.append(register(case.prepared, case.settings.model, config))
        seconds.append(time.perf_counter() - start)
        each()
    return Samples(
        np.stack([result.moved_XYZ for result in results]),
        np.stack([result.warp_XYZV for result in results]),
        results[0].record["operations"],
        float(np.median(seconds)),
        results[0].record.get("orders", {}),
    )


def bits(samples: Samples, most: int = FLOAT32_BITS) -> dict[str, float]:
    """Mean significant bits of image and warp over all voxels: general method, reference mean;
    `most` is what identical samples have."""
    parts = {
        "image": [samples.image_SXYZ],
        "warp": list(np.moveaxis(samples.warp_SXYZV, -1, 0)),
    }
    return {
        name: float(
            np.mean([quantiles(significant_bits(part, None, most=most))["mean"] for part in of])
        )
        for name, of in parts.items()
    }


def variance(case: Case, samples: Samples) -> dict[str, float]:
    """Mean variance over the samples in the brain: of the image, and of the warp in mm²."""
    inside = case.masks["brain"]
    image_SN = samples.image_SXYZ[:, inside].astype(np.float64)
    warp_SNV = samples.warp_SXYZV[:, inside].astype(np.float64)
    warp_SNV = (warp_SNV - warp_SNV.mean(axis=0)) @ case.prepared.fixed_affine[:3, :3].T
    runs = len(samples.image_SXYZ)
    return {
        "image": float(image_SN.var(axis=0, ddof=1).mean()),
        "warp": float((warp_SNV**2).sum() / (runs - 1) / warp_SNV.shape[1]),
    }


# ---------------------------------------------------------------------- stages


def names_of_stages(case: Case) -> list[tuple[str, str]]:
    """Every stage in order of execution, and the one it is part of (empty: none)."""
    found: list[tuple[str, str]] = []

    def observe(name: str, result: Any) -> None:
        found.append((name, "".join(stages.current()[-1:])))

    with stages.observed(observe):
        make(case, 1, mode="nearest")
    return found


def stage_costs(case: Case, runs: int, say: Say) -> list[Row]:
    """A row for each stage, and first one for ``all``: bits where only this stage is perturbed,
    bits where all but this stage is, and its share in the variance of all.

    Roundings are independent, so the variances of the stages alone add up to that of all, as far
    as errors are small enough to add linearly.
    """
    every = make(case, runs)
    whole = variance(case, every)
    rows = [_stage_row("all", "", every, None, whole, whole)]
    for name, within in names_of_stages(case):
        only = make(case, runs, perturb=f"only:{name}")
        rest = make(case, runs, perturb=f"except:{name}")
        rows.append(_stage_row(name, within, only, rest, variance(case, only), whole))
        say(f"  {name:<14} {rows[-1]['image_only']:6.2f} {rows[-1]['warp_only']:6.2f}")
    return rows


def _stage_row(
    name: str,
    within: str,
    only: Samples,
    rest: Samples | None,
    variances: Mapping[str, float],
    whole: Mapping[str, float],
) -> Row:
    without = bits(rest) if rest else {}
    found = bits(only)
    return {
        "stage": name,
        "within": within,
        **{f"{quantity}_only": found[quantity] for quantity in found},
        **{f"{quantity}_except": without.get(quantity, math.nan) for quantity in found},
        **{f"{q}_share": variances[q] / whole[q] if whole[q] else math.nan for q in found},
        "operations": only.operations,
        "runs": len(only.image_SXYZ),
    }


def is_one_array(result: Any) -> bool:
    """Whether a stage's result is one tensor of numbers that are rounded."""
    return isinstance(result, Tensor) and result.dtype.is_floating_point


def shape_of(result: np.ndarray) -> str:
    """The shape as text, such as 16×48×48×48, without the axis of a batch of one."""
    shape = result.shape
    return "×".join(map(str, shape[1:] if shape[0] == 1 else shape))


@dataclass
class _Activation:
    """Running sum, least and greatest of one activation over samples; float64 and float32."""

    total: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    samples: int = 1


def activations(case: Case, runs: int) -> tuple[list[Row], Samples]:
    """Significant bits of every stage's result, everything before it perturbed too, and the
    samples that they are of.

    Mean and quantiles over its numbers, general method, the samples' mean as reference. If a stage
    runs several times in a registration, its last result counts.
    """
    kept: dict[str, _Activation] = {}
    last: dict[str, np.ndarray] = {}

    def observe(name: str, result: Any) -> None:
        if is_one_array(result):
            last[name] = result.detach().numpy().copy()

    def add() -> None:
        for name, values in last.items():
            one = kept.get(name)
            if one is None:
                kept[name] = _Activation(values.astype(np.float64), values, values.copy())
                continue
            one.total += values
            one.samples += 1
            np.minimum(one.least, values, out=one.least)
            np.maximum(one.greatest, values, out=one.greatest)
        last.clear()

    with stages.observed(observe):
        samples = make(case, runs, add)
    rows: list[Row] = []
    for name, one in kept.items():
        mean_N = (one.total / one.samples).astype(np.float32).ravel()
        ends_SN = np.stack([one.least.ravel(), one.greatest.ravel()])
        found = significant_bits(ends_SN, mean_N, "ieee")
        shape = shape_of(one.total)
        rows.append({"stage": name, "shape": shape, **quantiles(found), "runs": one.samples})
    # network's are the same numbers as flow's
    return [row for row in rows if row["stage"] != "network"], samples


# ---------------------------------------------------------------------- precision


def precisions(case: Case, runs: int, say: Say, asked: Sequence[int] = PRECISIONS) -> list[Row]:
    """A row for each precision and format: what rounding to nearest in it gives, against float32
    and against the truth, and how many bits random rounding in it leaves."""
    ways = [*((str(p), "all") for p in asked), *FORMATS]
    for precision, perturb in ways:  # refused before anything is computed
        open_model(case.settings.model, case.config(precision=precision, perturb=perturb))
    nearest = make(case, 1, mode="nearest")
    rows = []
    for precision, perturb in ways:
        chosen = {"precision": precision, "perturb": perturb}
        try:
            one = make(case, 1, mode="nearest", **chosen)
            spread = bits(make(case, runs, **chosen), bits_held(chosen))
        except UserError as error:
            if "not finite" not in str(error):
                raise
            say(f"  {precision} {perturb}: not finite")
            rows.append(_precision_row(case, precision, perturb, None, nearest, {}))
            continue
        rows.append(_precision_row(case, precision, perturb, one, nearest, spread))
        say(
            f"  {precision:<9} {perturb:<13} image {spread['image']:6.2f} "
            f"warp {spread['warp']:6.2f} Dice {rows[-1]['dice']:.3f} "
            f"mm {rows[-1]['error_mm']:.3f} from 24 bits {rows[-1]['moved_mm']:.2g}"
        )
    return rows


def _precision_row(
    case: Case,
    precision: str,
    perturb: str,
    one: Samples | None,
    nearest: Samples,
    spread: Mapping[str, float],
) -> Row:
    row: Row = {"precision": precision, "perturb": perturb, **spread}
    row |= {name: spread.get(name, math.nan) for name in ("image", "warp")}
    names = ("dice", "error_mm", "error_p95_mm", "folded_percent", "moved_mm", "moved_p95_mm")
    if one is None:
        return row | dict.fromkeys(names, math.nan)
    shift_NV = (one.warp_SXYZV[0] - nearest.warp_SXYZV[0])[case.masks["brain"]].astype(np.float64)
    distance_N = np.linalg.norm(shift_NV @ case.prepared.fixed_affine[:3, :3].T, axis=-1)
    moved = (float(distance_N.mean()), float(np.quantile(distance_N, 0.95)))
    return row | dict(zip(names, (*accuracy(case, one), *moved), strict=True))


def accuracy(case: Case, samples: Samples) -> tuple[float, float, float, float]:
    """Of the first sample, NaN where the dataset does not know: mean Dice over labels, mean and
    95 % distance to the true warp in mm (brain), and % of brain voxels that fold."""
    shift = case.prepared.alignment[:3, 3]
    warp = Image(samples.warp_SXYZV[0], case.prepared.fixed_affine, shift=shift)
    reading = case.settings.orientation, case.settings.nan
    rows = analysis.accuracy_rows(
        case.dataset, case.subject, case.fixed, warp, case.masks, reading
    )

    def mean(measure: str) -> float:
        of = [r["after"] for r in rows if r["measure"] == measure and r["tissue"] != "all"]
        return float(np.mean(of)) if of else math.nan

    return mean("dice"), mean("warp_error"), mean("warp_error_p95"), mean("folding")


# ---------------------------------------------------------------------- order of sums


ORDERS = ("sequential", "direct", "blocked:192", "probe")


def orders(case: Case, runs: int, say: Say) -> tuple[list[Row], list[Row], list[Row]]:
    """What the order of the sums in convolutions moves: the same network, input and engine, every
    rounding to nearest, in one order and in another, compared with torch itself (``plain``).

    Three tables. Pairs of nearest results; each order, with what random rounding moves in it, by
    the same measure; and the orders that were measured from torch, by layer.
    """
    plain = make(case, 1, engine="ieee")
    nearest = {name: make(case, 1, mode="nearest", accumulation=name) for name in ORDERS}
    every = {"plain": plain, **nearest}
    pairs = [
        {"order": one, "against": other, **_distance(case, every[one], 0, every[other])}
        for k, other in enumerate(every)
        for one in list(every)[k + 1 :]
    ]
    schemes = []
    for name in ORDERS:
        samples = make(case, runs, accumulation=name)
        apart = [_distance(case, samples, k, nearest[name]) for k in range(runs)]
        row = {"order": name, **{key: float(np.mean([d[key] for d in apart])) for key in apart[0]}}
        row |= {f"{quantity}_bits": value for quantity, value in bits(samples).items()}
        schemes.append({**row, "runs": runs})
        say(f"  {name:<12} image {row['image_bits']:.2f} warp {row['warp_bits']:.2f} bits")
    found = [{"layer": layer, "found": words} for layer, words in nearest["probe"].orders.items()]
    return pairs, schemes, found


def _distance(case: Case, one: Samples, run: int, other: Samples) -> Row:
    """How far sample ``run`` of one way is from the first of another: bits on which they agree
    (−log2 of the relative difference, at most 24, mean over voxels, as the general method counts
    one sample), share of equal values, and distance of the warps in the brain in mm (RMS)."""
    row: Row = {}
    for quantity in ("image", "warp"):
        a_XYZ = getattr(one, "image_SXYZ" if quantity == "image" else "warp_SXYZV")[run]
        b_XYZ = getattr(other, "image_SXYZ" if quantity == "image" else "warp_SXYZV")[0]
        agreeing = significant_bits(np.stack([a_XYZ, a_XYZ]), b_XYZ, "ieee")
        row[f"{quantity}_agreement"] = quantiles(agreeing)["mean"]
        row[f"{quantity}_equal"] = float((a_XYZ == b_XYZ).mean())
    shift_NV = (one.warp_SXYZV[run] - other.warp_SXYZV[0])[case.masks["brain"]].astype(np.float64)
    squares_N = ((shift_NV @ case.prepared.fixed_affine[:3, :3].T) ** 2).sum(axis=-1)
    return row | {"rms_mm": float(np.sqrt(squares_N.mean()))}
