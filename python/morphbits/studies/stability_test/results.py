"""Which files are compared, and what their differences are in millimetres and Dice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from morphbits import bids, images
from morphbits.bids import Dataset, Subject
from morphbits.errors import UserError
from morphbits.stats import accuracy, measures
from morphbits.stats.analysis import tissue_masks
from morphbits.stats.values import READERS, read
from morphbits.studies.stability_test.verdict import (
    MINIMUM,
    FileResult,
    SubjectResult,
    compare_file,
    judge_subject,
)

AFFINES = (".txt", ".tfm", ".mat", ".npy")  # files that may hold a matrix
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
ONE = "all"  # the name of the only subject where files do not name one


@dataclass(frozen=True)
class Compared:
    """One file: of A, of B, and of every sample that has it; `name` is relative to a sample."""

    name: Path
    a: Path
    b: Path
    samples: list[Path]

    @property
    def subject(self) -> str:
        found = _SUBJECT.search(str(self.name))
        return found[0] if found else ONE


def find(a: Path, b: Path, reference: Path) -> dict[str, list[Compared]]:
    """Files to compare, by subject. Files of A and B belong to those of a sample with the same
    path, or else the same name. Left out are files that A and B lack, and those of no subject
    where others name theirs."""
    folders = [f for f in reference.glob("sample-*") if f.name.removeprefix("sample-").isdigit()]
    if not folders:
        raise UserError(
            f"{reference}: has no samples, which are folders sample-01, sample-02, …: run "
            "`make inference` first, or give another --experiment"
        )
    files = [_files(folder) for folder in sorted(folders)]
    names = {name for found in files for name in found}
    for given in (a, b):
        if not given.exists():
            raise UserError(f"{given}: there is no such file or folder")
    if a.is_file() != b.is_file():
        raise UserError(f"{a} and {b}: give two files, or two folders")
    of_a, of_b = (_given(given, names) for given in (a, b))
    if a.is_file() and not (of_a and of_b) and len(names) == 1:
        of_a, of_b = dict.fromkeys(names, a), dict.fromkeys(names, b)
    if a.is_file() and not of_b:  # named otherwise than the reference's: what A is
        of_b = dict.fromkeys(of_a, b)
    if a.is_file() and not of_a:
        of_a = dict.fromkeys(of_b, a)
    compared: dict[str, list[Compared]] = {}
    for name in sorted(of_a | of_b):
        if name not in of_a or name not in of_b:
            raise UserError(f"{a if name in of_b else b}: has no {name}, though the other has it")
        samples = [found[name] for found in files if name in found]
        for path in (of_a[name], of_b[name]):
            if path.resolve() in [sample.resolve() for sample in samples]:
                raise UserError(
                    f"{path}: is one of the samples that the test compares with; give a result "
                    "that is none of them"
                )
        file = Compared(name, of_a[name], of_b[name], samples)
        compared.setdefault(file.subject, []).append(file)
    if not compared:
        raise UserError(
            f"{a}: has no file that is called as one in {folders[0]}, by which it would be "
            "compared; give A and B the names that the samples have"
        )
    if len(compared) > 1:  # what is of no subject describes the data set, or depends on all
        compared.pop(ONE, None)
    return compared


def left_out(a: Path, b: Path, compared: dict[str, list[Compared]]) -> list[Path]:
    """Files of A and of B that are compared with nothing, because no sample has their name."""
    used = {path for files in compared.values() for file in files for path in (file.a, file.b)}
    given = [path for folder in (a, b) if folder.is_dir() for path in _files(folder).values()]
    return sorted(path for path in given if path not in used)


def _files(folder: Path) -> dict[Path, Path]:
    """Files that can be read, by their path in the folder, without what describes others."""
    sidecars = {bids.sidecar(path) for path in folder.rglob("*") if path.suffix != ".json"}
    return {
        path.relative_to(folder): path
        for path in folder.rglob("*")
        if path.name.lower().endswith(tuple(READERS))
        and path.name != bids.sample_json(folder).name
        and path not in sidecars
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _given(given: Path, names: set[Path]) -> dict[Path, Path]:
    """The files of A or of B, by the names of the reference's files."""
    found = {Path(given.name): given} if given.is_file() else _files(given)
    if same := {name: path for name, path in found.items() if name in names}:
        return same
    matched: dict[Path, Path] = {}
    for path in found.values():
        named = [name for name in names if name.name == path.name]
        if len(named) > 1:
            raise UserError(f"{path}: the samples have several files of this name; give folders")
        if named:
            if named[0] in matched:
                raise UserError(f"{given}: has several files called {path.name}")
            matched[named[0]] = path
    return matched


def compare_subject(subject: str, files: list[Compared]) -> SubjectResult:
    """All files of a subject against its samples."""
    n = min(len(file.samples) for file in files)
    if n < MINIMUM:
        raise UserError(
            f"{files[0].name}: the reference experiment has {n} samples of it and the test needs "
            f"at least {MINIMUM}; run more samples (make inference RUNS=10)"
        )
    found = [result for file in files for result in _compare(file, n)]
    if not found:
        raise UserError(f"{files[0].a}: holds no numbers to compare")
    return judge_subject(subject, found, n)


def _compare(file: Compared, n: int) -> Iterator[FileResult]:
    """Each array of a file."""
    a, b, *samples = (read(path) for path in (file.a, file.b, *file.samples[:n]))
    for array in a:
        for path, found in zip((file.b, *file.samples), (b, *samples), strict=False):
            if array not in found or found[array].array.shape != a[array].array.shape:
                raise UserError(
                    f"{path}: {array or 'it'} is not there, or not of the shape "
                    f"{a[array].array.shape} that {file.a} has: results must lie on one grid"
                )
            here, there = a[array].affine, found[array].affine
            # 1e-3 mm: what headers in float32 lose of a field of view of a metre is 6e-5 mm
            if here is not None and there is not None and not np.allclose(here, there, atol=1e-3):
                raise UserError(
                    f"{path}: lies elsewhere in the world than {file.a} (its affine differs); "
                    "results must lie on one grid"
                )
        stacked = np.stack([sample[array].array for sample in samples])
        result = compare_file(str(file.name), a[array].array, b[array].array, stacked)
        result.array = array
        yield result


@dataclass(frozen=True)
class Millimetres:
    """How far two warps put a point apart, over the grid."""

    root_mean_square: float
    largest: float


def is_warp(file: Compared) -> bool:
    return "_xfm" in file.name.name and not file.name.name.lower().endswith(AFFINES)


def millimetres(file: Compared) -> Millimetres:
    """Of a warp."""
    a, b = (images.load_warp(path) for path in (file.a, file.b))
    shift_a, shift_b = (np.zeros(3) if w.shift is None else w.shift for w in (a, b))
    apart = np.subtract(a.data, b.data, dtype=np.float64) @ a.affine[:3, :3].T
    apart += shift_a - shift_b
    squares = np.square(apart).sum(axis=-1)
    return Millimetres(float(np.sqrt(squares.mean())), float(np.sqrt(squares.max())))


Brain = tuple[np.ndarray, np.ndarray]


def brain_of(dataset: Dataset | None) -> Brain | None:
    """Where the brain is on the fixed image's grid, bool (X, Y, Z), and the grid's affine."""
    if dataset is None or not dataset.fixed().is_file():
        return None
    image = images.load(dataset.fixed())
    return tissue_masks(dataset, image)["brain"], image.affine


def framewise_displacement(file: Compared, brain: Brain | None) -> tuple[float, float] | None:
    """Power's and Jenkinson's framewise displacement from A to B, in mm. Of warps: of the affine
    fits over the brain, or over the grid where the brain is not known. Of files that hold an
    affine transform: at the brain's centre, or at the origin. None for other files."""
    if is_warp(file):
        warps = [images.load_warp(path) for path in (file.a, file.b)]
        grid = warps[0].data.shape[:3]
        if brain is None or brain[0].shape != grid:
            brain = np.ones(grid, bool), warps[0].affine
        points_NV = _points(*brain)
        fit = measures.Fit.of(points_NV)
        one, other = (fit.affine_part(measures.displacements(warp, brain[0])) for warp in warps)
        centre = fit.middle_V
    else:
        matrices = [m for path in (file.a, file.b) if (m := affine(path)) is not None]
        if len(matrices) < 2:
            return None
        one, other = matrices
        centre = np.zeros(3) if brain is None else _points(*brain).mean(axis=0)
    return (
        measures.framewise_displacement_power(other, one, centre),
        measures.framewise_displacement_jenkinson(other, one, centre),
    )


def _points(mask_XYZ: np.ndarray, to_mm: np.ndarray) -> np.ndarray:
    """Its voxels, (N, 3) mm."""
    return np.argwhere(mask_XYZ) @ to_mm[:3, :3].T + to_mm[:3, 3]


def affine(path: Path) -> np.ndarray | None:
    """The transform in a file, (4, 4), mm to mm, RAS where the format says what the axes are:
    ITK's linear ones, and the numbers of a matrix whose last row is 0 0 0 1 (FSL's are in the
    scaled voxels of its images). None where there is none."""
    if not path.name.lower().endswith(AFFINES):
        return None
    content = path.read_bytes()
    if content.startswith(b"#Insight Transform File") or (
        path.suffix == ".mat" and b"\0" in content
    ):
        try:
            transform = sitk.ReadTransform(str(path))
        except RuntimeError:  # another program's arrays
            return None
        if transform.GetDimension() != 3 or not transform.IsLinear():
            return None
        origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        axes = [transform.TransformPoint(tuple(axis)) - origin for axis in np.eye(3)]
        matrix = np.vstack([np.column_stack([*axes, origin]), [0, 0, 0, 1]])
        return LPS @ matrix @ LPS
    numbers = read(path).get("")
    if numbers is None or numbers.array.size != 16:
        return None
    matrix = numbers.array.reshape(4, 4).astype(np.float64)
    return matrix if np.array_equal(matrix[3], [0, 0, 0, 1]) and np.linalg.det(matrix) else None


def dice(file: Compared, dataset: Dataset | None) -> dict[int, float]:
    """Dice of A's and B's labels: of a label map, or of the moving labels that a warp moves."""
    if is_warp(file):
        labels = dataset and dataset.moving_labels(Subject.parse(file.name.name))
        if not labels:
            return {}
        moving = images.load_labels(labels)
        a, b = (accuracy.moved_labels(moving, images.load_warp(path)) for path in (file.a, file.b))
        return accuracy.dice(a, b)
    if not file.name.name.partition(".")[0].endswith(("_dseg", "_seg", "aseg")):
        return {}
    return accuracy.dice(*(images.load_labels(path).data for path in (file.a, file.b)))
