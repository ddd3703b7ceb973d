"""Whether a registration is any good, to the eye: moved over fixed image, and displacements.

Shape legend: X Y Z space in RAS order, V components, H W rows and columns of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from morphbits import bids, images
from morphbits.axes import turn_to
from morphbits.images import Image
from morphbits.report import figures
from morphbits.report.experiment import Experiment, Record
from morphbits.report.figures import Figure

LEVELS = 13  # of brightness: pairs of two images, and grey, leave 86 of a palette's 256 colours
GREY = LEVELS**2  # place in the palette of what is outside of the brain
STEPS = 255 - GREY  # colours of displacements, which follow
COLOURS = "viridis"
WHITE = 0.995  # quantile of an image's values above its minimum that is shown as white


@dataclass(frozen=True)
class Registration:
    """What is shown of a subject's unperturbed registration."""

    before_HW: NDArray[np.uint8]  # moving over fixed image: places in the palette
    after_HW: NDArray[np.uint8]  # moved over fixed image
    displacement_HW: NDArray[np.float32]  # mm; NaN outside of the brain
    mean: float  # mm, of the brain's voxels
    largest: float


def read(experiment: Experiment) -> dict[str, Registration]:
    """Of each subject whose images are there still: the registration with nothing perturbed."""
    found = {}
    for record in experiment.of_sample("ieee"):
        subject, files = record.subject.entities, paths(experiment, record)
        if subject in experiment.subjects and all(path.is_file() for path in files.values()):
            found[subject] = files
    with ThreadPoolExecutor(figures.at_once()) as pool:
        return dict(zip(found, pool.map(partial(_read, experiment), found.values()), strict=True))


def paths(experiment: Experiment, record: Record) -> dict[str, Path]:
    """Moving, fixed and moved image and warp of a sample; whether they are there or not."""
    subject = record.subject
    unit = bids.sample_folder(experiment.results, experiment.name, record.sample, subject)
    inputs = record.provenance.get("files", {})
    return {
        "moving": Path(inputs.get("moving", "")),
        "fixed": Path(inputs.get("fixed", "")),
        "moved": bids.moved_path(unit, subject, experiment.space),
        "warp": bids.warp_path(unit, subject, experiment.space),
    }


def _read(experiment: Experiment, files: dict[str, Path]) -> Registration:
    reading = experiment.settings.get("orientation", ""), experiment.settings.get("nan")
    moving, fixed = (images.load(files[name], *reading) for name in ("moving", "fixed"))
    moved, warp = images.load(files["moved"]), images.load_warp(files["warp"])
    before = images.move(moving, replace(warp, data=np.zeros_like(warp.data)))
    brain_XYZ = fixed.data > fixed.data.min()
    displacement_XYZ = displacement(warp, fixed)
    in_brain = displacement_XYZ[brain_XYZ]
    to_ras = turn_to(fixed.affine, "RAS")
    middle = [int(np.mean(axis)) for axis in np.nonzero(to_ras.array(brain_XYZ))]

    def slices(array_XYZ: NDArray, beyond: float = 0) -> NDArray:
        return figures.strip(to_ras.array(array_XYZ), middle, beyond)

    fixed_HW = slices(_levels(fixed))
    return Registration(
        before_HW=slices(_levels(before)) * LEVELS + fixed_HW,
        after_HW=slices(_levels(moved)) * LEVELS + fixed_HW,
        displacement_HW=slices(np.where(brain_XYZ, displacement_XYZ, np.nan), np.nan),
        mean=float(in_brain.mean()),
        largest=float(in_brain.max()),
    )


def displacement(warp: Image, fixed: Image) -> NDArray[np.float32]:
    """How far each voxel is displaced, (X, Y, Z) mm."""
    return np.linalg.norm(warp.data @ fixed.affine[:3, :3].T, axis=-1)


def white(image: Image) -> float:
    """How far above its minimum an image is shown as white."""
    above = image.data - image.data.min()
    seen = above[above > 0]
    return float(np.quantile(seen, WHITE)) if seen.size else 1.0


def _levels(image: Image) -> NDArray[np.uint8]:
    """An image in LEVELS steps of brightness, from its minimum to its brightest voxels."""
    above = image.data - image.data.min()
    return np.rint(np.clip(above / white(image), 0, 1) * (LEVELS - 1)).astype(np.uint8)


def limit(found: Iterable[Registration]) -> int:
    """The end of the one scale of displacements, in whole mm; it starts at 0."""
    return max([1, *(math.ceil(one.largest) for one in found)])


def picture(subject: str, one: Registration, limit: int) -> Figure:
    """Before (top) and after registration, and how far voxels were displaced (bottom)."""
    steps_HW = np.rint(one.displacement_HW / limit * (STEPS - 1)) + GREY + 1
    displacement_HW = np.nan_to_num(steps_HW, nan=GREY)
    alt = (
        f"{subject} on sagittal, coronal and axial slices: fixed image and moving image over each"
        " other before registration (top) and after it (middle); below, displacements in the"
        f" brain: mean {one.mean:.1f} mm, largest {one.largest:.1f} mm"
    )
    rows = [one.before_HW, one.after_HW, displacement_HW]
    return figures.png(np.concatenate(rows), palette(), alt)


def colours(limit: int) -> Figure:
    """The colour scale of displacements."""
    alt = f"Colour scale of displacements: dark violet 0 mm, yellow {limit} mm"
    return figures.colour_scale(COLOURS, (0, limit), "displacement, mm", alt)


def palette() -> NDArray[np.uint8]:
    """RGB of each place, (256, 3): equally bright images give grey, the moving image alone orange,
    the fixed image alone blue."""
    moving, fixed = np.stack(np.divmod(np.arange(GREY), LEVELS)) / (LEVELS - 1)
    overlay = np.stack([moving, (moving + fixed) / 2, fixed], axis=1)
    displacement = matplotlib.colormaps[COLOURS](np.linspace(0, 1, STEPS))[:, :3]
    outside = np.full((1, 3), 0.95)
    return np.rint(np.concatenate([overlay, outside, displacement]) * 255).astype(np.uint8)
