"""The phantom dataset: brains made on the spot, whose true registration is known.

A phantom is the MNI152 template (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033, with its
tissue maps, as nilearn bundles them) under a seeded random diffeomorphism, with a T1-like contrast
of its own, a bias field and noise; brain-extracted. The template itself is the fixed image.

The diffeomorphism is the exponential of a stationary velocity field (Arsigny et al. 2006,
doi:10.1007/11866565_113), integrated forwards and backwards by scaling and squaring:

    phi(x)      = x + warp(x)            = exp(+velocity)
    phi^-1(x)                            = exp(-velocity)
    moving(x)   = template(phi^-1(x))    so that     template(x) = moving(x + warp(x))

`warp` is therefore what a perfect registration of the moving to the fixed image returns: a
displacement in voxels of the fixed grid. The velocity lives on a 4 mm lattice in millimetres, so
the same phantom at another size has the same deformation.

Phantom k is a pure function of (seed, k, size): it depends neither on how many are made nor on
threads. Each random part has a stream of its own (numpy SeedSequence). Only elementary arithmetic
and scipy.ndimage, which are single-threaded, take part; they release Python's lock, so that
other threads make other phantoms meanwhile.

Axes: X Y Z voxels, V the three components of a displacement, T tissues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import morphbits
from morphbits import bids, images
from morphbits.bids import Dataset, Subject
from morphbits.errors import UserError
from morphbits.files import TEMPORARY, locked, write_atomically, write_json
from morphbits.machine import cores, memory_free

ORIENTATION = "RAS"  # the template's axes, and so every phantom's
RECIPE = 1  # raised whenever the bytes of a phantom change
LABELS = {0: "background", 1: "CSF", 2: "grey matter", 3: "white matter"}
STREAMS = {"velocity": 0, "contrast": 1, "bias": 2, "noise": 3}

Float = NDArray[np.float32]
Lattice = NDArray[np.float64]  # (3, X, Y, Z) on the lattice where velocities live


@dataclass(frozen=True)
class Size:
    """A grid around the template's brain.

    start: first voxel, in the template's 1 mm grid (negative: background is added).
    shape: voxels of 1 mm that are covered; factor: how many of them make one voxel, per axis.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    factor: int

    @property
    def voxels(self) -> tuple[int, int, int]:
        """Shape of the grid."""
        return _triple(n // self.factor for n in self.shape)


SIZES = {
    "4mm": Size((18, 21, 0), (160, 192, 160), 4),
    "2mm": Size((18, 21, 0), (160, 192, 160), 2),
    "1mm": Size((18, 21, -32), (160, 192, 224), 1),
}

# Velocity: normal noise on control lattices of these spacings (mm), cubic B-splines between.
SPACINGS = (48, 24)
LATTICE = 4  # mm, where the velocity is integrated: points around the largest of the SIZES
LATTICE_START = (18, 21, -32)
LATTICE_SHAPE = (41, 49, 57)
SQUARINGS = 6
TAPER = 20  # mm, over which the velocity falls to 0 at the faces of the grid
DISPLACEMENT = (3.0, 5.0)  # mm, the range of the root mean square of the velocity in the brain
BIAS_SPACING = 64  # mm
BIAS_AMPLITUDE = (0.05, 0.20)  # range of the largest deviation of the multiplicative bias from 1
NOISE = (0.01, 0.03)  # range of the noise's standard deviation, white matter is about 0.85
CONTRAST = {1: (0.15, 0.35), 2: (0.45, 0.62), 3: (0.78, 0.95)}  # range of each tissue's mean
VOXEL_BYTES = 150  # of memory while a phantom is made and saved, for each voxel of its grid
TEXTURE = (0.6, 1.2)  # range of the gain on what the template shows within a tissue


@dataclass(frozen=True)
class Template:
    """The fixed image.

    image: (X, Y, Z) float32, T1 in [0, 1]. tissues: (T, X, Y, Z) float32, fractions of CSF, grey
    and white matter. labels: (X, Y, Z) int32, see LABELS. affine: (4, 4), voxels to RAS mm.
    """

    image: Float
    tissues: Float
    labels: NDArray[np.int32]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Phantom:
    """A moving image and its truth, on the template's grid.

    image: (X, Y, Z) float32, background 0. labels: (X, Y, Z) int32, see LABELS. warp: (X, Y, Z, 3)
    float32, voxels, template(x) = image(x + warp(x)). affine: (4, 4), voxels to RAS mm.
    """

    image: Float
    labels: NDArray[np.int32]
    warp: Float
    affine: NDArray[np.float64]


# ------------------------------------------------------------------------------- template


@cache
def template(size: str = "2mm") -> Template:
    """The template on one of the SIZES: averaged over blocks of voxels, never interpolated."""
    if size not in SIZES:
        raise UserError(f"no phantom size {size!r}: choose one of {', '.join(SIZES)}")
    grid = SIZES[size]
    maps, affine = _bundled_maps()
    image, gm, wm, brain = _blocks(maps, grid)
    tissues = np.stack([np.maximum(brain - gm - wm, 0), gm, wm])
    first = np.array(grid.start) + (grid.factor - 1) / 2
    own_affine = affine.copy()
    own_affine[:3, 3] += affine[:3, :3] @ first
    own_affine[:3, :3] *= grid.factor
    return Template(image, tissues, _labels(tissues), own_affine)


def _labels(tissues: Float) -> NDArray[np.int32]:
    """The most probable tissue where the voxel is at least half brain, else background."""
    brain = tissues.sum(axis=0) >= 0.5
    return np.where(brain, 1 + tissues.argmax(axis=0), 0).astype(np.int32)


@cache
def _bundled_maps() -> tuple[Float, NDArray[np.float64]]:
    """T1, grey and white matter, brain mask of the template, (4, X, Y, Z) at 1 mm; affine."""
    from nilearn import datasets  # here, because it takes seconds

    t1 = datasets.load_mni152_template(resolution=1)
    others = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = [t1, *(load(resolution=1) for load in others)]
    t1_data, gm, wm = (np.asarray(v.dataobj, np.float32) for v in volumes)
    brain = (t1_data > 0).astype(np.float32)
    maps = np.stack([t1_data, gm * brain, wm * brain, brain])
    return maps, np.asarray(t1.affine, np.float64)


def _blocks(volumes: Float, grid: Size) -> Float:
    """Means over the blocks of 1 mm voxels that make a voxel of the grid, (4, X, Y, Z)."""
    window = images.NetworkGrid(_triple(volumes.shape[1:]), grid.start, grid.shape)
    cut = np.stack([window.pad(volume) for volume in volumes])
    (x, y, z), f = grid.voxels, grid.factor
    blocks = cut.reshape(len(cut), x, f, y, f, z, f)
    return blocks.mean(axis=(2, 4, 6), dtype=np.float64).astype(np.float32)


# ------------------------------------------------------------------------------- phantom


def make_phantom(seed: int, index: int, size: str = "2mm") -> Phantom:
    """Phantom `index` of `seed`: a pure function of its arguments, held in memory only.

    About a second at 2 mm, most of it for the deformation, once the template is in memory (the
    first call loads it). Who trains on phantoms takes a seed that no dataset on disk has.
    """
    base, grid = template(size), SIZES[size]
    rng = {name: _stream(seed, index, number) for name, number in STREAMS.items()}

    forward_mm, backward_mm = _diffeomorphism(rng["velocity"])
    points = np.indices(base.image.shape, dtype=np.float64) + _to_voxels(backward_mm, grid)

    labels = _labels(np.stack([_pull(tissue, points) for tissue in base.tissues]))
    clean = _pull(_recoloured(base, rng["contrast"]), points) * (1 + _bias(rng["bias"], grid))
    noise = rng["noise"].uniform(*NOISE) * rng["noise"].standard_normal(clean.shape)
    image = np.where(labels > 0, np.maximum(clean + noise, 0), 0).astype(np.float32)
    warp = np.ascontiguousarray(np.moveaxis(_to_voxels(forward_mm, grid), 0, -1), np.float32)
    return Phantom(image, labels, warp, base.affine.copy())


def _stream(seed: int, index: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, number)))


def _recoloured(base: Template, rng: np.random.Generator) -> Float:
    """The template with each tissue's mean moved to a random one, its texture kept with a gain."""
    image = np.zeros_like(base.image)
    for label, tissue in enumerate(base.tissues, start=1):
        mean, gain = rng.uniform(*CONTRAST[label]), rng.uniform(*TEXTURE)
        weight = tissue.sum(dtype=np.float64)
        centre = (tissue * base.image).sum(dtype=np.float64) / weight
        image += tissue * np.float32(mean) + np.float32(gain) * tissue * (
            base.image - np.float32(centre)
        )
    return image


def _pull(volume: Float, points: NDArray[np.float64]) -> Float:
    """Trilinear values of (X, Y, Z) at points (3, X, Y, Z) in voxels; 0 outside."""
    return ndimage.map_coordinates(volume, points, order=1, mode="constant", cval=0)


# -------------------------------------------------------------------------- deformation


def _diffeomorphism(rng: np.random.Generator) -> tuple[Lattice, Lattice]:
    """phi - id and phi^-1 - id on the lattice, each (3, X, Y, Z) in mm along the voxel axes."""
    place = (LATTICE, LATTICE_START, LATTICE_SHAPE)
    noise = [[_smooth_noise(rng, spacing, *place) for spacing in SPACINGS] for _ in range(3)]
    velocity = np.array(noise).sum(axis=1) * _taper()
    brain = _lattice_brain()
    rms = np.sqrt((velocity[:, brain] ** 2).sum(axis=0).mean())
    velocity *= rng.uniform(*DISPLACEMENT) / rms
    while True:
        forward, backward = _exponential(velocity), _exponential(-velocity)
        if min(_smallest_jacobian(forward), _smallest_jacobian(backward)) > 0:
            return forward, backward
        velocity *= 0.8  # never seen at these amplitudes; a phantom without folds all the same


def _smooth_noise(
    rng: np.random.Generator,
    spacing: int,
    step: float,
    start: tuple[float, ...],
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Cubic B-splines with standard normal coefficients on nodes `spacing` mm apart.

    Evaluated at start, start + step, … (mm in the template's grid). Nodes cover the largest of
    the SIZES whatever is asked for, so every grid sees the same function.
    """
    nodes = [n // spacing + 4 for n in SIZES["1mm"].shape]
    first_node = np.array(SIZES["1mm"].start) - spacing
    first = (np.array(start) - first_node) / spacing
    return _splines(rng.standard_normal(nodes), first, step / spacing, shape)


def _splines(
    coefficients: NDArray[np.float64],
    first: NDArray[np.float64],
    step: float,
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Sum of cubic B-splines on a regular lattice, at first, first + step, … (lattice units).

    One axis after the other: four multiplications per axis instead of sixty-four per voxel.
    """
    values = coefficients
    for axis, n in enumerate(shape):
        position = first[axis] + step * np.arange(n)
        node = np.floor(position).astype(int)
        t = position - node
        t, r = (x.reshape([-1 if a == axis else 1 for a in range(3)]) for x in (t, 1 - t))
        weights = (r * r * r, 4 - 3 * t * t * (2 - t), 4 - 3 * r * r * (2 - r), t * t * t)
        last = coefficients.shape[axis] - 1
        values = sum(
            weight / 6 * values.take(last - np.abs(last - np.abs(node + k - 1)), axis)
            for k, weight in enumerate(weights)
        )
    return values


def _exponential(velocity: Lattice) -> Lattice:
    """Displacement (mm) of the flow of a stationary velocity (mm) after unit time."""
    displacement = velocity / (LATTICE * 2**SQUARINGS)  # in steps of the lattice
    identity = np.indices(velocity.shape[1:], dtype=np.float64)
    for _ in range(SQUARINGS):
        points = identity + displacement
        displacement = displacement + np.stack(
            [ndimage.map_coordinates(u, points, order=3, mode="nearest") for u in displacement]
        )
    return displacement * LATTICE


def _smallest_jacobian(displacement: Lattice) -> float:
    """Smallest Jacobian determinant of id + displacement (mm, on the lattice)."""
    return float(images.jacobian_determinant(np.moveaxis(displacement / LATTICE, 0, -1)).min())


def _to_voxels(displacement: Lattice, grid: Size) -> NDArray[np.float64]:
    """Lattice (mm) to a grid (voxels), by cubic splines."""
    first = (np.array(grid.start) + (grid.factor - 1) / 2 - np.array(LATTICE_START)) / LATTICE
    coefficients = [ndimage.spline_filter(u / grid.factor, order=3) for u in displacement]
    step = grid.factor / LATTICE
    return np.stack([_splines(c, first, step, grid.voxels) for c in coefficients])


def _bias(rng: np.random.Generator, grid: Size) -> NDArray[np.float64]:
    """A smooth field between -a and a; the image is multiplied by 1 + field."""
    start = tuple(s + (grid.factor - 1) / 2 for s in grid.start)
    field = _smooth_noise(rng, BIAS_SPACING, grid.factor, start, grid.voxels)
    return field * (rng.uniform(*BIAS_AMPLITUDE) / np.abs(field).max())


@cache
def _taper() -> NDArray[np.float64]:
    """1 inside, falling to 0 at the faces of the 2 mm grid, so that no brain leaves it."""
    box, factors = SIZES["2mm"], []
    for axis, n in enumerate(LATTICE_SHAPE):
        position = LATTICE_START[axis] - box.start[axis] + LATTICE * np.arange(n)
        depth = np.minimum(position, box.shape[axis] - position) / TAPER
        t = np.clip(depth, 0, 1)
        factors.append(t * t * (3 - 2 * t))
    x, y, z = factors
    return x[:, None, None] * y[:, None] * z


@cache
def _lattice_brain() -> NDArray[np.bool_]:
    brain = _bundled_maps()[0][3]
    every_mm = _triple(n * LATTICE for n in LATTICE_SHAPE)
    window = images.NetworkGrid(_triple(brain.shape), LATTICE_START, every_mm)
    return window.pad(brain)[::LATTICE, ::LATTICE, ::LATTICE] > 0


def _triple(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z


# -------------------------------------------------------------------------- dataset


def make_dataset(
    data: Path,
    subjects: int,
    seed: int = 1,
    size: str = "2mm",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Phantoms 001 … `subjects` under `data/phantom-<size>`, making those that are not there yet.

    Each subject appears whole or not at all; its label is its index, so what is there already
    stays as it is when more are asked for.
    """
    if not 1 <= subjects <= 999:
        raise UserError(f"{subjects} phantoms cannot be made: ask for 1 to 999")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: choose 0 or more")
    if size not in SIZES:
        raise UserError(f"no phantom size {size!r}: choose one of {', '.join(SIZES)}")
    dataset = bids.phantom_dataset(data, size)
    with _locked(dataset.root):
        _describe_dataset(dataset, seed, size)
        todo = [k for k in range(1, subjects + 1) if not dataset.moving(subject(k)).is_file()]
        if not dataset.fixed().is_file():
            _write_template(dataset, size)

        def make(index: int) -> None:
            _write_phantom(dataset, subject(index), make_phantom(seed, index, size))

        if todo:
            template(size)  # once, not by each thread
            progress(0, len(todo))
            with ThreadPoolExecutor(_jobs(size)) as pool:
                for done, _ in enumerate(pool.map(make, todo), start=1):
                    progress(done, len(todo))
            rows = ["participant_id", *(one.entities for one in dataset.subjects())]
            table = dataset.root / "participants.tsv"
            write_atomically(table, ("\n".join(rows) + "\n").encode())
    return dataset


def _jobs(size: str) -> int:
    """As many phantoms at a time as there are cores, and memory for."""
    return max(1, min(cores(), memory_free() // (VOXEL_BYTES * prod(SIZES[size].voxels))))


def subject(index: int) -> Subject:
    """The subject that holds phantom `index`: 1 is `sub-001`."""
    return Subject(f"{index:03d}")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time makes phantoms in a folder; the next one finds them there."""
    with locked(root / ".lock", "choose another data folder"):
        for leftover in root.rglob(TEMPORARY):
            leftover.unlink()
        yield


def _describe_dataset(dataset: Dataset, seed: int, size: str) -> None:
    """Describe a new folder; refuse one that was made with another seed or recipe."""
    path = dataset.root / "dataset_description.json"
    truth = bids.phantom_truth(dataset.root) / path.name
    # BIDS 1.10 has no name for a warp
    write_atomically(truth.with_name(".bidsignore"), b"*_xfm.*\n")
    recipe = {"seed": seed, "size": size, "recipe": RECIPE}
    if path.is_file():
        try:
            found = json.loads(path.read_text())["GeneratedBy"][0]["Parameters"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} does not describe phantoms: delete that folder") from error
        if found != recipe:
            raise UserError(
                f"{dataset.root} was made with {found}, not {recipe}: delete that folder, or use "
                "another data folder"
            )
        return
    made_by = {
        "Name": "morphbits",
        "Version": morphbits.__version__,
        "Description": "The MNI152 template under seeded random diffeomorphisms",
        "Parameters": recipe,
        "Libraries": {name: version(name) for name in ("nilearn", "numpy", "scipy")},
    }
    common = {"BIDSVersion": "1.10.0", "GeneratedBy": [made_by]}
    readme = DATASET_README.format(notice=TEMPLATE_NOTICE, seed=seed, size=size)
    write_atomically(dataset.root / "README", readme.encode())
    write_json(truth, {"Name": "Truth of the phantoms", "DatasetType": "derivative", **common})
    write_json(path, {"Name": f"Phantoms, {size}", "DatasetType": "raw", **common})


def _write_template(dataset: Dataset, size: str) -> None:
    """Labels first, the image last: where the image is, everything is."""
    base, truth = template(size), bids.phantom_truth(dataset.root)
    table = "".join(f"{number}\t{name}\n" for number, name in LABELS.items())
    table_path = bids.template_in(truth, dataset.space, "dseg", ".tsv")
    write_atomically(table_path, f"index\tname\n{table}".encode())
    images.save(bids.template_in(truth, dataset.space, "dseg"), base.labels, base.affine)
    images.save(dataset.fixed(), base.image, base.affine)


def _write_phantom(dataset: Dataset, who: Subject, phantom: Phantom) -> None:
    """Truth first, the image last: where the image is, everything is."""
    truth = bids.phantom_truth(dataset.root)
    warp_path = bids.true_warp_in(truth, who, dataset.space)
    images.save(bids.labels_in(truth, who), phantom.labels, phantom.affine)
    images.save_warp(warp_path, phantom.warp, phantom.affine, np.zeros(3))
    write_json(bids.sidecar(warp_path), _describe_warp(phantom))
    images.save(dataset.moving(who), phantom.image, phantom.affine)


def _describe_warp(phantom: Phantom) -> dict[str, object]:
    millimetres = phantom.warp @ phantom.affine[:3, :3].T
    distance = np.sqrt((millimetres**2).sum(axis=-1))[phantom.labels > 0]
    return {
        "Description": "True warp: template(x) = moving(x + warp(x)), on the template's grid",
        "Units": "voxels of the template's grid, along its axes",
        "MeanDisplacementInBrainMillimetres": round(float(distance.mean()), 3),
        "MaxDisplacementInBrainMillimetres": round(float(distance.max()), 3),
    }


TEMPLATE_NOTICE = """\
Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University. Permission to use, copy, modify, and distribute this software and
its documentation for any purpose and without fee is hereby granted, provided that the above
copyright notice appear in all copies. The authors and McGill University make no representations
about the suitability of this software for any purpose. It is provided "as is" without express or
implied warranty. The authors are not responsible for any data loss, equipment damage, property
loss, or injury to subjects or patients resulting from the use or misuse of this software package.
"""

DATASET_README = """\
Phantoms: brains whose true registration is known

Made on this machine by morphbits (morphbits phantom --size {size} --seed {seed}). No subject
is a person: each is the MNI152 template under a random diffeomorphism, with a contrast, a bias
field and noise of its own.

sub-*/anat/*_T1w.nii.gz       moving image, brain-extracted
derivatives/phantom/tpl-*     the fixed image (the template itself) and its tissue labels
derivatives/phantom/sub-*     tissue labels of the moving image (0 background, 1 CSF, 2 grey,
                              3 white matter), and the true warp: a displacement u in voxels
                              of the fixed grid with template(x) = moving(x + u(x))

The template is the ICBM 152 nonlinear atlas (2009), as nilearn bundles it: Fonov et al. 2011,
NeuroImage 54, doi:10.1016/j.neuroimage.2010.07.033; Fonov et al. 2009, NeuroImage 47 (Suppl. 1),
doi:10.1016/S1053-8119(09)70884-5. These images derive from it; its notice goes with every copy:

{notice}"""
