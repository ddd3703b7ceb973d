"""A small finished experiment, whose archive is committed here: `tests/shapes/archive/`.

    PYTHONPATH=python .venv/bin/python tests/shapes/record.py

Two subjects, balls with lobes and cavities that were drawn at random (no image of a person, and
nothing of the template), registered four times each by the demo model under random rounding.
tests/report/test_committed_archive.py reads it with the present code, as whoever downloads an
archive of today will with a later version. So it stays as it is; record it again only where a
change of the archive's format is meant, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from morphbits import cli, images
from morphbits.files import write_json

ARCHIVE = Path(__file__).parent / "archive"
SHAPE = (24, 28, 24)
AFFINE = np.array([[6.0, 0, 0, -72], [0, 6, 0, -84], [0, 0, 6, -72], [0, 0, 0, 1]])
OPTIONS = (
    "--subjects=2",
    "--runs=4",
    "--engine=native",
    "--mode=random",
    "--threads=1",
    "--jobs=1",
)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball of about the size of a head, its brightness from 0 to 1 and its labels: a rim, lobes
    inside, two cavities."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    lobes, inner = (ndimage.gaussian_filter(rng.standard_normal(SHAPE), s) for s in (2.5, 1.5))
    radius = np.sqrt(sum(axis**2 for axis in axes)) + 0.4 * lobes / np.abs(lobes).max()
    labels = np.select([radius < 0.6, radius < 0.8], [2, 1], 0)
    for side in (-1, 1):
        away = (axes[0] - 0.18 * side) ** 2 / 0.01 + axes[1] ** 2 / 0.06 + axes[2] ** 2 / 0.02
        labels[away < 1] = 3
    of_lobes = 0.7 + 0.3 * inner / np.abs(inner).max()
    return np.select([labels == 2, labels == 1, labels == 3], [of_lobes, 0.5, 0.2], 0), labels


def dataset(root: Path) -> None:
    """A BIDS folder of two subjects, with label maps and the fixed image."""
    derivative = root / "derivatives/shapes"
    for folder in (root, derivative):
        description = {"Name": "shapes", "BIDSVersion": "1.10.0"}
        write_json(folder / "dataset_description.json", description)
    for seed, name in enumerate(
        ("tpl-shapes/tpl-shapes", "sub-01/anat/sub-01", "sub-02/anat/sub-02")
    ):
        brightness, labels = drawn(seed)
        of_fixed = name.startswith("tpl")
        images.save((derivative if of_fixed else root) / f"{name}_T1w.nii.gz", brightness, AFFINE)
        images.save(derivative / f"{name}_dseg.nii.gz", labels, AFFINE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset(Path(folder) / "shapes")
        where = ["--experiment=shapes", f"--results={folder}/results"]
        for words in (
            ["inference", *where, f"--dataset={folder}/shapes", *OPTIONS],
            ["archive", *where, "--license=CC0-1.0", "--without-page"],
        ):
            subprocess.run([*cli.command(words[0]), *words[1:]], check=True)
        shutil.rmtree(ARCHIVE, ignore_errors=True)
        shutil.copytree(Path(folder) / "results/shapes/archive", ARCHIVE)
    size = sum(path.stat().st_size for path in ARCHIVE.rglob("*") if path.is_file())
    print(json.dumps({"files": len(list(ARCHIVE.rglob("*.*"))), "kB": size // 1000}))


if __name__ == "__main__":
    sys.exit(main())
