"""From the samples of an experiment to its tables and maps.

Reads `results/<experiment>/sample-*/sub-*/` and writes beside them

    significance.csv   bits: subject, tissue, quantity, method, reference, n, mean, quantiles, …
    bits_over_n.csv    mean bits of the first k samples, and the standard error of the last
    variability.csv    standard deviation over the samples, image in [0, 1], warp in voxels and mm
    repeatability.csv  what differs with nothing perturbed: run again, other threads, plain
    accuracy.csv       Dice, distance to the true warp and folding, before and after registration
    measures.csv       volumes, displacements, Jacobians, overlap, motion of each sample, by region
    ratios.csv         spread over samples relative to that over subjects: NPVR, NAVR, Cohen's d
    maps/              bits of image and warp as NIfTI; NaN where reference and samples are zero

Every table is recomputed from the samples that are there; each row names its number of samples.

Shape legend: X Y Z space (voxels of the fixed grid), S samples, V warp component.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from morphbits import bids, images
from morphbits.bids import Dataset, Subject
from morphbits.datasets import derivative
from morphbits.errors import UserError
from morphbits.files import csv_of, write_atomically
from morphbits.parent import end_with_parent
from morphbits.stats import accuracy
from morphbits.stats.measures import FROM_REFERENCE, UNITS, Regions, Sample, region_names
from morphbits.stats.ratios import ratios
from morphbits.stats.sample_size import by_sample_size
from morphbits.stats.significance import (
    METHODS,
    MINIMUM_SAMPLES,
    REFERENCES,
    bits_held,
    quantiles,
    significant_bits,
)
from morphbits.stats.variability import distance, standard_deviation

COMPONENTS = ("warp_x", "warp_y", "warp_z")
QUANTITIES = ("image", "warp", *COMPONENTS)
# unperturbed samples that should be the same, or nearly, and which other each is compared with
BASELINES = {"again": "plain", "threads": "plain", "plain": "ieee"}

Row = dict[str, Any]


@dataclass
class Tables:
    """Rows of the experiment's tables, by the name of the file that holds them."""

    significance: list[Row] = field(default_factory=list)
    bits_over_n: list[Row] = field(default_factory=list)
    variability: list[Row] = field(default_factory=list)
    repeatability: list[Row] = field(default_factory=list)
    accuracy: list[Row] = field(default_factory=list)
    measures: list[Row] = field(default_factory=list)
    ratios: list[Row] = field(default_factory=list)


def analyse(results: Path, experiment: str, dataset: Dataset, jobs: int = 1) -> Tables:
    """Compute and write all tables and maps of an experiment; `jobs` processes, one subject each.

    A subject with fewer than two samples gets no significance row; that none has two is an error.
    """
    samples = bids.list_samples(results, experiment)
    perturbed = [name for name in samples if name.isdigit()]
    subjects = sorted(
        {subject for name in samples for subject in bids.list_subjects(results, experiment, name)},
        key=lambda subject: (subject.label, subject.session or ""),
    )
    counts = dict.fromkeys(subjects, 0)
    for name in perturbed:
        for subject in bids.list_subjects(results, experiment, name):
            counts[subject] += 1
    if max(counts.values(), default=0) < MINIMUM_SAMPLES:
        raise UserError(
            f"{bids.experiment_folder(results, experiment)} holds no subject with"
            f" {MINIMUM_SAMPLES} finished samples, so there is no spread to measure; run more"
            f" samples (make inference RUNS=10)"
        )
    grid = images.load(dataset.fixed(), *_reading(results, experiment)).data.size
    jobs = jobs_that_fit(min(jobs, len(subjects)), max(counts.values()) * grid)
    tables = Tables()
    work = partial(_analyse_subject, results, experiment, dataset)
    if jobs == 1:
        parts: Iterable[Tables] = map(work, subjects)
    else:
        with ProcessPoolExecutor(jobs, None, end_with_parent, (os.getpid(), SIGKILL)) as pool:
            parts = list(pool.map(work, subjects))
    for part in parts:
        for name, rows in vars(part).items():
            getattr(tables, name).extend(rows)
    tables.ratios = ratio_rows(tables.measures)
    maps = bids.experiment_folder(results, experiment) / "maps"
    derivative.describe(maps, f"Significant bits of the experiment {experiment}")
    for name, rows in vars(tables).items():
        write_table(bids.experiment_file(results, experiment, f"{name}.csv"), rows)
    return tables


def _reading(results: Path, experiment: str) -> tuple[str, float | None]:
    """Orientation and nan by which the experiment's images are read (`images.load`)."""
    path = bids.experiment_file(results, experiment, "experiment.json")
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else {}
    return settings.get("orientation", ""), settings.get("nan")


def jobs_that_fit(jobs: int, values: int) -> int:
    """As many of these jobs as the machine's memory holds, each of `values` voxels × samples.

    One took 43 bytes for each at 160 × 192 × 224 voxels and ten samples: image and three
    components, and what is computed from them.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(jobs, int(0.7 * memory) // (43 * values)))


@threadpool_limits.wrap(limits=1)  # threads of BLAS that wait would take the other subjects' cores
def _analyse_subject(results: Path, experiment: str, dataset: Dataset, subject: Subject) -> Tables:
    """The rows of one subject; writes its maps."""
    tables = Tables()
    space = dataset.space
    reading = _reading(results, experiment)
    fixed = images.load(dataset.fixed(), *reading)
    masks = tissue_masks(dataset, fixed)

    def unit(sample: str) -> Path | None:
        folder = bids.sample_folder(results, experiment, sample, subject)
        return folder if bids.sample_json(folder).is_file() else None

    def moved_XYZ(folder: Path) -> np.ndarray:
        return images.load(bids.moved_path(folder, subject, space)).data

    def whole_warp(folder: Path) -> images.Image:
        warp = images.load_warp(bids.warp_path(folder, subject, space))
        if warp.shift is None:  # of a sample from before warps held it
            record = json.loads(bids.sample_json(folder).read_text(encoding="utf-8"))
            alignment = record.get("provenance", {}).get("alignment", np.eye(4))
            warp.shift = np.array(alignment)[:3, 3]
        return warp

    # unperturbed results are asked for again and again: two of each are kept
    plain_XYZ, plain_warp = lru_cache(maxsize=2)(moved_XYZ), lru_cache(maxsize=2)(whole_warp)

    def plain_XYZV(folder: Path) -> np.ndarray:
        return plain_warp(folder).data

    names = [name for name in bids.list_samples(results, experiment) if name.isdigit()]
    found = {name: folder for name in names if (folder := unit(name))}
    units = list(found.values())
    ieee = unit("ieee")

    def save_map(quantity: str, bits_XYZ: np.ndarray) -> None:
        path = bids.map_path(results, experiment, subject, space, quantity)
        images.save(path, bits_XYZ, fixed.affine, fixed.codes)

    if len(units) >= MINIMUM_SAMPLES:
        ieee_XYZ = plain_XYZ(ieee) if ieee else None
        ieee_XYZV = plain_XYZV(ieee) if ieee else None
        samples_SXYZ = np.empty((len(units), *fixed.data.shape), np.float32)
        samples_VSXYZ = np.empty((3, *samples_SXYZ.shape), np.float32)
        regions = _regions(dataset, subject, fixed.affine, masks, reading)
        unperturbed = regions.measure(plain_warp(ieee)) if ieee else None
        if unperturbed:
            tables.measures += _measure_rows(subject, "ieee", unperturbed)
        for s, (name, folder) in enumerate(found.items()):
            samples_SXYZ[s] = moved_XYZ(folder)
            warp = whole_warp(folder)
            samples_VSXYZ[:, s] = np.moveaxis(warp.data, -1, 0)
            tables.measures += _measure_rows(subject, name, regions.measure(warp, unperturbed))
        most = bits_held(_configuration(units[0]))
        for reference in REFERENCES:
            if reference == "ieee" and ieee is None:
                continue
            for method in METHODS:
                bits = {"image": significant_bits(samples_SXYZ, ieee_XYZ, reference, method, most)}
                for v, name in enumerate(COMPONENTS):
                    component_XYZ = None if ieee_XYZV is None else ieee_XYZV[..., v]
                    bits[name] = significant_bits(
                        samples_VSXYZ[v], component_XYZ, reference, method, most
                    )
                # as the study did: the mean of the three components, voxel by voxel
                bits["warp"] = np.mean([bits[name] for name in COMPONENTS], axis=0)
                tables.significance += [
                    {
                        "subject": subject.entities,
                        "tissue": tissue,
                        "quantity": quantity,
                        "method": method,
                        "reference": reference,
                        "n": len(units),
                        **_bits_row(bits[quantity][mask]),
                    }
                    for quantity in QUANTITIES
                    for tissue, mask in masks.items()
                ]
                if (reference, method) == (REFERENCES[0], METHODS[0]):
                    save_map("image", bits["image"])
                    save_map("warp", bits["warp"])
        for quantity, samples in (("image", samples_SXYZ[None]), ("warp", samples_VSXYZ)):
            sized = by_sample_size(samples.reshape(*samples.shape[:2], -1), most)
            tables.bits_over_n += [
                {
                    "subject": subject.entities,
                    "quantity": quantity,
                    "n": n,
                    "mean": mean,
                    "standard_error": sized.standard_error if n == len(units) else math.nan,
                    "mean_float64_z": sized.with_float64_z if n == len(units) else math.nan,
                }
                for n, mean in sized.mean.items()
            ]
        sizes_mm = fixed.voxel_sizes
        std_XYZ = standard_deviation(samples_SXYZ)
        std_XYZV = np.stack([standard_deviation(one) for one in samples_VSXYZ], axis=-1)
        spreads = {
            ("image", "intensity"): std_XYZ,
            ("warp", "voxels"): np.sqrt(np.square(std_XYZV).sum(axis=-1)),
            ("warp", "mm"): np.sqrt(np.square(std_XYZV * sizes_mm).sum(axis=-1)),
        }
        tables.variability = [
            {
                "subject": subject.entities,
                "tissue": tissue,
                "quantity": quantity,
                "unit": unit_name,
                "n": len(units),
                "mean": float(part.mean()),
                "median": float(np.median(part)),
                "q95": float(np.quantile(part, 0.95)),
                "max": float(part.max()),
            }
            for (quantity, unit_name), spread in spreads.items()
            for tissue, mask in masks.items()
            for part in [spread[mask]]
        ]
    for comparison, against in BASELINES.items():
        one, other = unit(comparison), unit(against)
        if one is None or other is None:
            continue
        for quantity, read in (("image", plain_XYZ), ("warp", plain_XYZV)):
            tables.repeatability.append(
                {
                    "subject": subject.entities,
                    "comparison": comparison,
                    "against": against,
                    "quantity": quantity,
                    **asdict(distance(read(one), read(other))),
                }
            )
    if ieee:
        tables.accuracy = [
            {"subject": subject.entities, **row}
            for row in accuracy_rows(dataset, subject, fixed, plain_warp(ieee), masks, reading)
        ]
    return tables


def _regions(
    dataset: Dataset,
    subject: Subject,
    affine: np.ndarray,
    masks: Mapping[str, np.ndarray],
    reading: tuple[str, float | None],
) -> Regions:
    """The brain and tissues of the fixed image, and the label maps that the dataset has."""
    regions = {name: mask for name, mask in masks.items() if name != "all"}
    moving, fixed = dataset.moving_labels(subject), dataset.fixed_labels()
    if moving is None:
        return Regions(regions, affine)
    labels = images.load_labels(moving, *reading)
    fixed_XYZ = images.load_labels(fixed, *reading).data if fixed else None
    names = region_names(np.unique(labels.data), moving)
    return Regions(regions, affine, labels, names, fixed_XYZ)


def _measure_rows(subject: Subject, sample: str, measured: Sample) -> list[Row]:
    return [
        {
            "subject": subject.entities,
            "sample": sample,
            "tissue": tissue,
            "measure": measure,
            "value": value,
        }
        for (tissue, measure), value in measured.values.items()
    ]


def ratio_rows(measures: Sequence[Row]) -> list[Row]:
    """A row for each region and measure, from the samples that all its subjects have."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in measures:
        if row["sample"].isdigit() and math.isfinite(row["value"]):
            subjects = found.setdefault((row["measure"], row["tissue"]), {})
            subjects.setdefault(row["subject"], {})[row["sample"]] = row["value"]
    rows = []
    for measure in UNITS:
        for (_, tissue), subjects in ((k, v) for k, v in found.items() if k[0] == measure):
            shared = sorted(set.intersection(*map(set, subjects.values())))
            if len(shared) < MINIMUM_SAMPLES:
                continue
            values_PS = np.array([[one[s] for s in shared] for one in subjects.values()])
            spread = asdict(ratios(values_PS, measure not in FROM_REFERENCE))
            unit = UNITS[measure]
            rows.append({"tissue": tissue, "measure": measure, "unit": unit, **spread})
    return rows


def _configuration(unit: Path) -> dict[str, Any]:
    return json.loads(bids.sample_json(unit).read_text())["configuration"]


def accuracy_rows(
    dataset: Dataset,
    subject: Subject,
    fixed: images.Image,
    warp: images.Image,
    masks: Mapping[str, np.ndarray],
    reading: tuple[str, float | None] = ("", None),
) -> list[Row]:
    """How good a warp is by what the dataset knows, beside a warp of zeros (before).

    measure: dice; surface and surface_p95, distance of a tissue's surfaces in mm (not for one
    that a map lacks); warp_error and warp_error_p95, distance to the true warp in mm; folding, %
    of voxels whose Jacobian determinant is not positive. reading: orientation and nan of
    `images.load`.
    """
    zeros = replace(warp, data=np.zeros_like(warp.data))
    pair = {"before": zeros, "after": warp}
    rows: list[Row] = []

    def add(tissue: str, measure: str, values: Mapping[str, float]) -> None:
        rows.append({"tissue": tissue, "measure": measure, **values})

    moving_labels, fixed_labels = dataset.moving_labels(subject), dataset.fixed_labels()
    if moving_labels and fixed_labels:
        labels = images.load_labels(moving_labels, *reading)
        target_XYZ = images.load_labels(fixed_labels, *reading).data
        moved = {when: accuracy.moved_labels(labels, one) for when, one in pair.items()}
        dice, surfaces = {}, {}
        for when, moved_XYZ in moved.items():
            dice[when] = accuracy.dice(moved_XYZ, target_XYZ)
            surfaces[when] = accuracy.surface_distance(moved_XYZ, target_XYZ, fixed.voxel_sizes)
        for label, tissue in region_names(dice["after"], fixed_labels).items():
            add(tissue, "dice", {w: found[label] for w, found in dice.items() if label in found})
            distances = {w: found[label] for w, found in surfaces.items() if label in found}
            if len(distances) == 2 and all(np.isfinite(one.mean) for one in distances.values()):
                add(tissue, "surface", {when: one.mean for when, one in distances.items()})
                add(tissue, "surface_p95", {when: one.p95 for when, one in distances.items()})
    true_path = dataset.true_warp(subject)
    if true_path:
        true = images.load_warp(true_path)
        shift = images.shift_between(warp, true)
        errors = {
            when: accuracy.warp_error(one.data, true.data, fixed.affine, masks["brain"], shift)
            for when, one in pair.items()
        }
        add("brain", "warp_error", {when: error.mean for when, error in errors.items()})
        add("brain", "warp_error_p95", {when: error.p95 for when, error in errors.items()})
    growth = {when: images.jacobian_determinant(one.data) for when, one in pair.items()}
    for tissue in ("all", "brain"):
        folds = {
            when: 100 * accuracy.folds(determinant_XYZ[masks[tissue]]).fraction
            for when, determinant_XYZ in growth.items()
        }
        add(tissue, "folding", folds)
    return rows


def tissue_masks(dataset: Dataset, fixed: images.Image) -> dict[str, np.ndarray]:
    """`all`, `brain`, and each label of the fixed image by name; bool (X, Y, Z).

    `brain` is where the fixed image has a label, or, without labels, where it is above its
    minimum (registration inputs are skull-stripped).
    """
    masks = {"all": np.ones(fixed.data.shape, bool)}
    path = dataset.fixed_labels()
    if path is None:
        return {**masks, "brain": fixed.data > fixed.data.min()}
    labels_XYZ = images.load_labels(path).data
    masks["brain"] = labels_XYZ > 0
    for label, name in region_names(np.unique(labels_XYZ[labels_XYZ > 0]), path).items():
        masks[name] = labels_XYZ == label
    return masks


def _bits_row(bits: np.ndarray) -> Row:
    """Statistics of the bits of some voxels; excluded ones (NaN) are counted."""
    excluded = int(np.count_nonzero(np.isnan(bits)))
    return {
        **quantiles(bits),
        "voxels": bits.size - excluded,
        "background_excluded": excluded,
        "without_a_bit": int(np.count_nonzero(bits == 0)),
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all, and their digest beside it, as sha256sum does;
    floats keep every digit. No rows: an empty file."""
    content = csv_of(rows)
    write_atomically(path, content)
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    write_atomically(_digest_file(path), line.encode())


def _digest_file(table: Path) -> Path:
    return table.with_name(f".{table.name}.sha256")


def read_table(path: Path) -> list[Row]:
    """Rows of a table that `write_table` wrote; numbers come back as numbers. No file: no rows.
    UserError where it is not what was written."""
    if not path.is_file():
        return []
    content, digest_file = path.read_bytes(), _digest_file(path)
    if digest_file.is_file():
        written = digest_file.read_text(errors="replace").partition(" ")[0]
        if written != hashlib.sha256(content).hexdigest():
            raise UserError(
                f"{path}: was changed or damaged since it was written; give the command again "
                "that made it"
            )
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{k: _value(k, text) for k, text in row.items()} for row in rows]


def _value(column: str, text: str) -> Any:
    if column in (
        "subject",
        "sample",
        "tissue",
        "quantity",
        "method",
        "reference",
        "measure",
        "unit",
        "comparison",
        "against",
    ):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
