"""The open route: a raw T1-weighted head to a brain on the template's grid, with SimpleITK.

What the study did with FreeSurfer, without a license and without a download:

1. N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908) takes the bias field out;
2. affine registration to the MNI152 template (mutual information, Mattes et al. 2003,
   doi:10.1109/TMI.2003.809072) from several starting positions, coarse to fine, in which only
   the surroundings of the template's brain count, so that scalp and neck do not;
3. brain mask: the template's mask, brought to the head by a coarse B-spline registration
   (Rueckert et al. 1999, doi:10.1109/42.796284), then cut at the dark rim of the brain;
4. one linear interpolation onto the network's grid (160×192×224 at 1 mm, FreeSurfer's axes LIA, as
   the published networks were trained), masked, min–max to [0, 1];
5. tissues: a mixture of three Gaussians with the template's tissue maps as priors (Ashburner and
   Friston 2005, doi:10.1016/j.neuroimage.2005.02.018, without its deformation).

One thread, no random numbers: the same file gives the same bytes. Axes X Y Z; worlds are RAS mm
(ITK's are LPS, here only inside).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from morphbits import images
from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.images import Image

SIZES = {"4mm": 4, "2mm": 2, "1mm": 1}  # voxels of the grid, and how many 1 mm make one
GRID = (160, 192, 224)  # mm along left, inferior, anterior
SURROUNDINGS = 8  # mm around the template's brain that count in a registration
SMALLEST = 60  # mm that an image of a head covers along each axis
FAINT = 0.05  # of the brain's intensity: what remains around a brain that was extracted
RIM = 3  # mm beyond the warped mask where brain may still be
BEYOND = 4.0  # mm beyond a mask where no brain is; one voxel of the coarsest grid
MESH = (5, 6, 5)  # B-spline cells of the brain mask's registration, about 40 mm each
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# starting positions: nodding (radians) and shift along the axis of the body (mm)
STARTS = tuple(itertools.product((0.0, -0.35, 0.35), (0.0, -20.0)))
BRIGHTEST = 99.9  # percentile of the brain where intensities end

Float = NDArray[np.float32]
Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The template on the network's grid: image (X, Y, Z) float32 in [0, 1], tissues (T, X, Y, Z)
    float32 fractions of CSF, grey and white matter, labels (X, Y, Z) int32, affine (4, 4)."""

    image: Float
    tissues: Float
    labels: NDArray[np.int32]
    affine: Affine

    @property
    def brain(self) -> NDArray[np.bool_]:
        """At least half brain, (X, Y, Z)."""
        return self.labels > 0


@dataclass(frozen=True)
class Brain:
    """What becomes of a head: image (X, Y, Z) float32 in [0, 1] and labels (X, Y, Z) int32 on the
    target's grid, template_to_head (4, 4) mm, and measures of quality."""

    image: Float
    labels: NDArray[np.int32]
    template_to_head: Affine
    quality: dict[str, float]


# ------------------------------------------------------------------------------ target


@cache
def target(size: str = "1mm") -> Target:
    """The template on the grid of one of the SIZES, averaged over blocks of 1 mm voxels."""
    if size not in SIZES:
        raise UserError(f"no size {size!r} of the grid: choose one of {', '.join(SIZES)}")
    maps, affine = phantom._bundled_maps()
    factor = SIZES[size]
    # the axes turned to LIA, then a window with the brain in its middle: no interpolation
    turned = [m[::-1, :, ::-1].transpose(0, 2, 1) for m in maps]
    shape = turned[3].shape
    box = ndimage.find_objects((turned[3] > 0).astype(np.int8))[0]
    start = [(b.start + b.stop - n) // 2 for b, n in zip(box, GRID, strict=True)]
    window = images.NetworkGrid(shape, (start[0], start[1], start[2]), GRID)
    volumes = [window.pad(m) for m in turned]
    last = np.array(maps[3].shape) - 1
    axes = np.array([[-1, 0, 0, last[0]], [0, 0, 1, 0], [0, -1, 0, last[2]], [0, 0, 0, 1]])
    fine = affine @ axes
    fine[:3, 3] += fine[:3, :3] @ start
    x, y, z = (n // factor for n in GRID)
    blocks = np.stack(volumes).reshape(4, x, factor, y, factor, z, factor)
    image, gm, wm, brain = blocks.mean(axis=(2, 4, 6), dtype=np.float64).astype(np.float32)
    tissues = np.stack([np.maximum(brain - gm - wm, 0), gm, wm])
    own = fine.copy()
    own[:3, 3] += fine[:3, :3] @ np.full(3, (factor - 1) / 2)
    own[:3, :3] *= factor
    return Target(image, tissues, phantom._labels(tissues), own)


# ------------------------------------------------------------------------------- route


def extract(head: Image, size: str = "1mm", any_orientation: bool = False) -> Brain:
    """A head (or a brain that somebody else has extracted) to a brain on the target's grid.

    any_orientation: do not trust the header, start from all 24 ways that the axes can point.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the order of sums is part of the bytes
    extent = head.voxel_sizes * head.data.shape
    if extent.min() < SMALLEST or min(head.data.shape) < 8:
        by = " × ".join(f"{length:.0f}" for length in extent)
        raise UserError(f"{head.name} is no head: it covers {by} mm; look at the image")
    goal = target(size)
    moving = _without_bias(head)
    affine = _register_affine(moving, 2 if size == "1mm" else 4, any_orientation)
    mask = _brain_mask(moving, affine, goal, head)
    blurred = sitk.SmoothingRecursiveGaussian(moving, SIZES[size] / 2) if size != "1mm" else moving
    raw = _sampled(blurred, goal, affine)
    if mask.sum() * SIZES[size] ** 3 < 1e5:  # mm³, a fourteenth of a brain
        raise UserError(f"{head.name}: no brain was found in it; look at the image")
    image = np.where(mask, np.clip(raw, 0, np.percentile(raw[mask], BRIGHTEST)), 0)
    labels = _tissues(raw, mask, goal)
    quality = measure(image, mask, goal) | {"border": border(raw, mask, goal)}
    return Brain(images.normalize(image), labels, _matrix(affine), quality)


def measure(image: NDArray[Any], mask: NDArray[np.bool_], goal: Target) -> dict[str, float]:
    """How well a brain lies on the template's: `dice` of the two masks, and `correlation` of the
    intensities where either has brain (blurred by 4 mm, so that folds of the cortex do not count).
    """
    sigma = 4 / 2.355 / abs(np.linalg.det(goal.affine)) ** (1 / 3)
    either = mask | goal.brain
    a, b = (ndimage.gaussian_filter(np.float64(x), sigma)[either] for x in (image, goal.image))
    dice = 2 * (mask & goal.brain).sum() / (mask.sum() + goal.brain.sum())
    return {"correlation": float(np.corrcoef(a, b)[0, 1]), "dice": float(dice)}


def border(data: Float, mask: NDArray[np.bool_], goal: Target) -> float:
    """How much of what lies just beyond a mask, within BEYOND, is darker than half of the median
    brain: CSF, skull or nothing. The rest is scalp, or cortex that the mask lacks."""
    voxel = abs(np.linalg.det(goal.affine)) ** (1 / 3)
    distance = voxel * ndimage.distance_transform_edt(~mask)
    beyond = data[(distance > 0) & (distance <= BEYOND)]
    return float((beyond < 0.5 * np.median(data[mask])).mean())


def _without_bias(head: Image) -> sitk.Image:
    """N4 on a grid of about 4 mm, the field divided out at full resolution; background at 0."""
    data = np.maximum(head.data - _background(head.data), 0)
    moving = _to_sitk(np.minimum(data, np.percentile(data[data > 0], 99.9)), head.affine)
    factors = [max(1, round(4 / s)) for s in moving.GetSpacing()]
    small = sitk.Shrink(moving, factors)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 30])
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
    return sitk.Divide(moving, sitk.Exp(n4.GetLogBiasFieldAsImage(moving)))


def _background(data: Float) -> np.floating:
    """What is dark: the value of most voxels where one has most, else the minimum; a thousandth of
    the voxels may lie below it, if they lie far below (FAINT of the range), as outliers do."""
    middle = np.median(data)
    if (data == middle).mean() > 0.5:
        return middle
    low, high = np.percentile(data, (0.1, BRIGHTEST))
    return data.min() if low - data.min() <= FAINT * (high - low) else low


# ------------------------------------------------------------------------ registration


@cache
def _fixed(step: int) -> tuple[sitk.Image, sitk.Image]:
    """The template every `step` mm, blurred, and where a registration looks at it."""
    maps, affine = phantom._bundled_maps()
    every = (slice(None, None, step),) * 3
    coarse = affine.copy()
    coarse[:3, :3] *= step
    grid = _to_sitk(maps[3][every], coarse)
    near = _from_sitk(_resampled(_border(), grid, fill=50.0)) <= SURROUNDINGS
    image = ndimage.gaussian_filter(maps[0], step / 2.355)[every]
    return _to_sitk(image, coarse), _to_sitk(near.astype(np.uint8), coarse)


@cache
def _border() -> sitk.Image:
    """Distance to the border of the template's brain, mm, negative inside; every 2 mm."""
    maps, affine = phantom._bundled_maps()
    brain = maps[3][::2, ::2, ::2] > 0
    coarse = affine.copy()
    coarse[:3, :3] *= 2
    outside, inside = (ndimage.distance_transform_edt(x) for x in (~brain, brain))
    return _to_sitk(2 * (outside - inside), coarse)


def _register_affine(
    moving: sitk.Image, finest: int, any_orientation: bool
) -> sitk.AffineTransform:
    """Template to head, the best of the starting positions, then finer."""
    rotations = _orientations() if any_orientation else [np.eye(3)]
    blurred = {step: sitk.SmoothingRecursiveGaussian(moving, step / 2.355) for step in (8, 4)}
    best: tuple[float, sitk.AffineTransform] | None = None
    starts = STARTS[:1] if any_orientation else STARTS
    for rotation in rotations:
        for transform in _starts(moving, rotation, starts):
            value = _optimize(8, blurred[8], transform, 40, 4.0)
            if best is None or value < best[0]:
                best = value, transform
    assert best is not None
    transform = best[1]
    _optimize(4, blurred[4], transform, 100, 1.0)
    if finest < 4:
        _optimize(2, sitk.SmoothingRecursiveGaussian(moving, 1.0), transform, 40, 1.0)
    return transform


def _starts(
    moving: sitk.Image, rotation: Affine, positions: tuple[tuple[float, float], ...]
) -> list[sitk.AffineTransform]:
    """Where to start: the middle of what lies in the upper 160 mm of the head on the middle of the
    template's brain, in several positions of the head. rotation: (3, 3), template to head."""
    maps, affine = phantom._bundled_maps()
    brain = affine[:3] @ [*ndimage.center_of_mass(maps[3]), 1]
    inside = sitk.GetArrayFromImage(sitk.OtsuThreshold(moving, 0, 1, 200)).T[::3, ::3, ::3]
    voxels = np.argwhere(inside) * 3
    world = voxels @ _affine_of(moving)[:3, :3].T + _affine_of(moving)[:3, 3]
    upright = world @ rotation  # in the template's orientation
    top = np.percentile(upright[:, 2], 99.8)
    middle = rotation @ upright[upright[:, 2] > top - 160].mean(axis=0)
    found = []
    for nod, shift in positions:
        transform = sitk.AffineTransform(3)
        transform.SetCenter((LPS[:3, :3] @ brain).tolist())
        turn = LPS[:3, :3] @ rotation @ _nodding(nod) @ LPS[:3, :3]
        transform.SetMatrix(turn.ravel().tolist())
        along = middle + rotation @ [0, 0, shift] - brain
        transform.SetTranslation((LPS[:3, :3] @ along).tolist())
        found.append(transform)
    return found


def _nodding(angle: float) -> Affine:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _orientations() -> list[Affine]:
    """The 24 rotations that take axes to axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return found


def _optimize(
    step: int, moving: sitk.Image, transform: sitk.Transform, iterations: int, rate: float
) -> float:
    """Improve a transform in place; returns minus the mutual information."""
    fixed, near = _fixed(step)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(near)
    method.SetInterpolator(sitk.sitkLinear)
    if isinstance(transform, sitk.BSplineTransform):
        method.SetOptimizerAsLBFGSB(numberOfIterations=iterations)
    else:
        method.SetOptimizerAsRegularStepGradientDescent(
            rate, 1e-3, iterations, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
        )
        method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # the two do not overlap: a start that leads nowhere
        return 0.0
    return float(method.GetMetricValue())


# -------------------------------------------------------------------------- brain mask


def _brain_mask(
    moving: sitk.Image, affine: sitk.AffineTransform, goal: Target, head: Image
) -> NDArray[np.bool_]:
    """The brain on the target's grid, (X, Y, Z).

    The template's mask through a coarse deformation; of it and its RIM, what is brighter than the
    dark rim (CSF, skull) between brain and scalp, in one piece. A brain that was extracted already
    keeps its own border.
    """
    fixed, _ = _fixed(8)
    blurred = sitk.SmoothingRecursiveGaussian(moving, 4 / 2.355)
    aligned = _resampled(blurred, _fixed(4)[0], affine)
    spline = sitk.BSplineTransformInitializer(fixed, list(MESH))
    _optimize(8, aligned, spline, 20, 1.0)
    # the spline takes the template's points to the head's: the template's mask, seen from the
    # head, needs its inverse
    field = sitk.TransformToDisplacementField(
        spline, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(),
        fixed.GetSpacing(), fixed.GetDirection(),
    )  # fmt: skip
    inverse = sitk.DisplacementFieldTransform(sitk.InverseDisplacementField(
        field, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing()
    ))  # fmt: skip
    grid = _to_sitk(goal.image, goal.affine)
    warped = _from_sitk(_resampled(_border(), grid, inverse, 50.0))
    data = _sampled(moving, goal, affine)
    own = _own_border(head, affine, goal, warped)
    if own is not None:
        return _in_one_piece(own)
    core = np.median(data[warped < -10])
    bright = data > 0.35 * core
    voxel = abs(np.linalg.det(goal.affine)) ** (1 / 3)
    opened = ndimage.binary_opening(
        bright & (warped < RIM), ndimage.generate_binary_structure(3, 1), max(1, round(2 / voxel))
    )
    return _in_one_piece((opened | (bright & (warped < -2))) | (warped < -6))


def _own_border(
    head: Image, affine: sitk.AffineTransform, goal: Target, distance: Float
) -> NDArray[np.bool_] | None:
    """The mask of a brain that was extracted already, (X, Y, Z); None for a head.

    A brain has next to nothing around it, in the shell between one and three SURROUNDINGS from
    the warped mask: a fifth of FAINT at most. What it has there is background, whose level and
    spread (noise, ringing, a voxel below all others) say above what brain begins; of a background
    that is one value, above that value.
    """
    plain = _sampled(_to_sitk(head.data - head.data.min(), head.affine), goal, affine)
    inside = _to_sitk(np.ones(head.data.shape, np.uint8), head.affine)
    seen = _sampled(inside, goal, affine) > 0.5
    shell = seen & (distance > SURROUNDINGS) & (distance < 3 * SURROUNDINGS)
    if not shell.any():
        return None
    dark, core = np.percentile(plain[shell], 25), np.median(plain[distance < -10])
    if (plain[shell] > dark + FAINT * (core - dark)).mean() > 0.2:
        return None
    level = np.median(plain[shell])
    spread = 1.4826 * np.median(np.abs(plain[shell] - level))  # of noise: its standard deviation
    near = plain[seen & (distance > 0) & (distance < 2 * SURROUNDINGS)]
    below = level - np.percentile(near, 1)  # ringing goes as far below as above
    return (plain > level + max(6 * spread, below)) & (distance < 2 * SURROUNDINGS)


def _in_one_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part, holes filled."""
    parts, count = ndimage.label(mask)
    if count > 1:
        mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return np.asarray(ndimage.binary_fill_holes(mask))


# ----------------------------------------------------------------------------- tissues


def _tissues(data: Float, mask: NDArray[np.bool_], goal: Target) -> NDArray[np.int32]:
    """Labels 1 CSF, 2 grey, 3 white matter in the mask: the most probable tissue by intensity and
    the template's maps (blurred by 6 mm, for brains differ), by expectation maximization."""
    sigma = 6 / 2.355 / abs(np.linalg.det(goal.affine)) ** (1 / 3)
    prior = np.stack([ndimage.gaussian_filter(t, sigma)[mask] for t in goal.tissues]) + 0.02
    prior /= prior.sum(axis=0)
    values = np.float64(data[mask])
    share = prior
    for _ in range(30):
        weight = share.sum(axis=1)
        mean = (share * values).sum(axis=1) / weight
        variance = (share * (values - mean[:, None]) ** 2).sum(axis=1) / weight
        variance = np.maximum(variance, 1e-6 * values.var())
        share = prior * np.exp(-((values - mean[:, None]) ** 2) / (2 * variance[:, None]))
        share /= np.sqrt(variance)[:, None]
        share /= np.maximum(share.sum(axis=0), 1e-300)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = 1 + share.argmax(axis=0)
    return labels


# --------------------------------------------------------------------------------- ITK


def _to_sitk(data: NDArray[Any], affine: Affine) -> sitk.Image:
    """(X, Y, Z) and its RAS affine as ITK's image, whose world is LPS."""
    kept = data if data.dtype == np.uint8 else data.astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(kept.T))
    lps = LPS @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _from_sitk(image: sitk.Image) -> Float:
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).T, dtype=np.float32)


def _affine_of(image: sitk.Image) -> Affine:
    """Voxels to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def _matrix(transform: sitk.AffineTransform) -> Affine:
    """The transform's matrix, (4, 4), RAS mm to RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = transform.GetTranslation() + centre - matrix[:3, :3] @ centre
    return LPS @ matrix @ LPS


def _resampled(
    image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, fill: float = 0
) -> sitk.Image:
    """The image on another grid, linear; `fill` outside."""
    where = transform or sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(image, grid, where, sitk.sitkLinear, fill)


def _sampled(moving: sitk.Image, goal: Target, transform: sitk.Transform) -> Float:
    """The head on the target's grid, linear, 0 outside."""
    return _from_sitk(_resampled(moving, _to_sitk(goal.image, goal.affine), transform))
