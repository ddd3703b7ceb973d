"""A small experiment on disk, for tests: real arrays with a known spread, written as samples are.

Nothing is registered: a smooth brain-like ball is "moved" by a smooth warp, and a sample is the
unperturbed result times (1 + 2^-b · noise), with b chosen by the test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphbits import bids, images, provenance
from morphbits.bids import Dataset, Subject
from morphbits.files import write_json

SHAPE = (24, 28, 20)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def make_dataset(root: Path, subjects: int, shape: tuple[int, ...] = SHAPE) -> Dataset:
    """A dataset in the phantom's layout: a ball of three tissues in a dark box."""
    dataset = bids.phantom_dataset(root, "small")
    radius_XYZ = _radius(shape)
    labels_XYZ = np.select([radius_XYZ < 0.35, radius_XYZ < 0.6, radius_XYZ < 0.8], [3, 2, 1], 0)
    truth = dataset.fixed().parent
    images.save(truth / bids.build("dseg", tpl=dataset.space), labels_XYZ.astype(int), AFFINE)
    fixed_XYZ = np.where(labels_XYZ > 0, labels_XYZ / 3, 0).astype(np.float32)
    images.save(dataset.fixed(), fixed_XYZ, AFFINE)
    for k in range(1, subjects + 1):
        subject = Subject(f"{k:03d}")
        images.save(dataset.moving(subject), fixed_XYZ, AFFINE)
        derivative = truth.parent / subject.anat
        images.save(derivative / subject.file("dseg"), labels_XYZ.astype(int), AFFINE)
        warp_XYZV = np.zeros((*shape, 3), np.float32)
        images.save(derivative / bids.xfm_name(subject, dataset.space), warp_XYZV, AFFINE)
    return dataset


def make_experiment(
    results: Path,
    name: str,
    dataset: Dataset,
    runs: int,
    image_bits: float = 19.5,
    warp_bits: float = 18.5,
    skip: tuple[tuple[str, str], ...] = (),
    settings: dict[str, Any] | None = None,
) -> None:
    """Write `runs` samples of every subject and the four references.

    skip: (sample, subject label) pairs that are not written, as if the run had been stopped.
    """
    for subject in dataset.subjects():
        fixed_XYZ = images.load(dataset.fixed()).data
        seed = int(subject.label)
        rng = np.random.default_rng(seed)
        grid = np.moveaxis(np.indices(fixed_XYZ.shape), 0, -1) / np.array(fixed_XYZ.shape)
        warp_XYZV = (1.5 * np.sin(5 * grid + seed) + 0.1 * grid[..., ::-1]).astype(np.float32)
        moved_XYZ = np.where(fixed_XYZ > 0, fixed_XYZ * (0.8 + 0.2 * grid[..., 0]), 0)
        moved_XYZ = moved_XYZ.astype(np.float32)
        sharp_XYZ = _radius(fixed_XYZ.shape)  # noisier outwards
        for sample in [*(f"{run:02d}" for run in range(1, runs + 1)), *_REFERENCES]:
            if (sample, subject.label) in skip:
                continue
            moved, warp = moved_XYZ, warp_XYZV
            if sample.isdigit():
                noise = rng.standard_normal((*fixed_XYZ.shape, 4)) * 2.0 ** sharp_XYZ[..., None]
                moved = (moved * (1 + 2.0**-image_bits * noise[..., 0])).astype(np.float32)
                warp = (warp * (1 + 2.0**-warp_bits * noise[..., 1:])).astype(np.float32)
            elif sample != "ieee":
                moved, warp = np.nextafter(moved, moved * 2), np.nextafter(warp, warp * 2)
            write_unit(results, name, sample, subject, dataset, moved, warp)
    content = {
        "settings": {"dataset": "phantom", "seed": 7, "runs": runs, **(settings or {})},
        "dataset": {"name": dataset.name, "root": str(dataset.root)},
    }
    write_json(bids.experiment_file(results, name, "experiment.json"), content)


_REFERENCES = ("ieee", "plain", "again", "threads")


def write_unit(
    results: Path,
    name: str,
    sample: str,
    subject: Subject,
    dataset: Dataset,
    moved_XYZ: np.ndarray,
    warp_XYZV: np.ndarray,
) -> None:
    """One finished unit: images, then sample.json."""
    unit = bids.sample_folder(results, name, sample, subject)
    moved = bids.moved_path(unit, subject, dataset.space)
    warp = bids.warp_path(unit, subject, dataset.space)
    images.save(moved, moved_XYZ, AFFINE)
    images.save(warp, warp_XYZV, AFFINE)
    engine = "native" if sample.isdigit() or sample == "ieee" else "ieee"
    configuration = {
        "framework": "torch",
        "engine": engine,
        "moving": f"sha256:{subject.label:a>64}",
        "fixed": f"sha256:{1:064}",
        "model": f"sha256:{2:064}",
        "versions": {"torch": "2.13.0", "numpy": "2.4.0"},
        "accumulation": "sequential",
        "subnormals": "keep",
        "mode": "random" if sample.isdigit() else "nearest",
        "seed": 1,
    }
    record = {
        "configuration": configuration | {"hash": provenance.configuration_hash(configuration)},
        "provenance": {
            "seconds": 4.0 if sample.isdigit() else 1.0,
            "operations": 32_000_000 if sample.isdigit() else 0,
            "operators": {"convolution": 31_000_000, "add": 1_000_000},
            "order": "TensorFlow's (each output one chain of fused multiply-adds)",
            "threads": 1,
            "peak_memory_bytes": 500_000_000,
            "host": "here",
            "system": "Linux",
            "cpu": {"name": "a processor", "features": []},
            "code": {"revision": "0123456789abcdef", "dirty": False},
            "files": {
                "model": "model.h5",
                "moving": str(dataset.moving(subject)),
                "fixed": str(dataset.fixed()),
            },
        },
        "outputs": {"moved": {"file": moved.name}, "warp": {"file": warp.name}},
    }
    write_json(bids.sample_json(unit), record)


def _radius(shape: tuple[int, ...]) -> np.ndarray:
    """Distance from the middle of the grid, 1 at the faces."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes))
