"""Images: brought onto the network's grid and back (their files: `morphbits.imagefiles`).

A registration network sees two arrays of one shape, a multiple of 16 along each axis, with values
in [0, 1]. `prepare` gets there from any pair of images in five steps, each of which it puts into
words (`Prepared.steps`):

1. axes: both images are brought into the order and direction of axes that the model was trained
   in, where that is known; nothing is interpolated;
2. align: nothing ("header": both images already share a world), or a translation in millimetres
   that brings the centres of intensity mass together ("centre");
3. conform: the moving image is resampled (trilinear) onto the fixed image's grid, through both
   affines; an image that is already on that grid is taken as it is, bit for bit;
4. normalize: each image by its own minimum and maximum to [0, 1];
5. pad (or crop, when asked) both to a multiple of 16.

Outputs come back onto exactly the fixed image's grid: `Prepared.moved_back`, `warp_back`. All of
it is plain single-threaded arithmetic, so that the same files give the same bytes.

Axes: X Y Z voxels in the order of the file, V the three components of a warp. Affines take voxel
indices to RAS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits.axes import Turn, turn_to
from morphbits.errors import UserError
from morphbits.imagefiles import EXTENSIONS as EXTENSIONS
from morphbits.imagefiles import Image, by
from morphbits.imagefiles import conformed_affine as conformed_affine
from morphbits.imagefiles import extension_of as extension_of
from morphbits.imagefiles import known_axes as known_axes
from morphbits.imagefiles import load as load
from morphbits.imagefiles import load_labels as load_labels
from morphbits.imagefiles import save as save
from morphbits.transforms import load_warp as load_warp
from morphbits.transforms import save_warp as save_warp
from morphbits.transforms import say_if_unnamed as say_if_unnamed

PLANES = 8  # of a volume at a time: their derivatives stay in a processor's cache
MULTIPLE = 16  # four levels of stride two, as in every SynthMorph network
SAME_GRID = 1e-3  # voxels: corners closer than this are one grid (headers hold float32 affines)
NOTE = "note on the "  # begins a step that says what was decided or looks wrong
FEWEST = 8  # voxels along each axis of what is registered: less is a stack of slices
SMALLEST = 60.0  # mm that a brain covers along each axis, at least
THICK = 3.0  # times the thinnest edge of a voxel: the thickest of slices that are no volume's
ONE_WORLD = 25.0  # mm: brains whose centres are further apart are not in one world (scanner space)


# -------------------------------------------------------------------------------- grids


@dataclass(frozen=True)
class NetworkGrid:
    """The window of the fixed grid that the network sees.

    shape: the fixed grid. start: index of the window's first voxel in it (negative: padding).
    size: the window's shape, multiples of 16 or of what the network asks for.
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    @classmethod
    def around(
        cls,
        shape: tuple[int, ...],
        box: tuple[slice, ...] | None = None,
        multiple: int = MULTIPLE,
    ) -> NetworkGrid:
        """The smallest window that holds the box (default: the whole grid) in its middle."""
        spans = [(b.start, b.stop) for b in box] if box else [(0, n) for n in shape]
        size = [-(-(stop - start) // multiple) * multiple for start, stop in spans]
        first = [
            start - (n - (stop - start)) // 2 for (start, stop), n in zip(spans, size, strict=True)
        ]
        return cls(_triple(shape), _triple(first), _triple(size))

    def pad(self, array: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """Fixed grid (X, Y, Z[, V]) to network grid; voxels outside the fixed grid are `fill`."""
        return _window(array, self.start, self.size, fill)

    def unpad(self, array: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """Network grid to fixed grid; voxels that the network did not see are `fill`."""
        back = _triple(-start for start in self.start)
        return _window(array, back, self.shape, fill)


def _triple(values: object) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)  # type: ignore[attr-defined]
    return x, y, z


def _window(
    array: NDArray[Any],
    start: tuple[int, int, int],
    size: tuple[int, int, int],
    fill: float,
) -> NDArray[Any]:
    out = np.full((*size, *array.shape[3:]), fill, dtype=array.dtype)
    source, target = [], []
    for first, length, available in zip(start, size, array.shape[:3], strict=True):
        low, high = max(first, 0), min(first + length, available)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = array[tuple(source)]
    return out


def same_grid(a: Image, b: Image) -> bool:
    """True where both have one shape and their corners agree within SAME_GRID voxels."""
    if a.data.shape[:3] != b.data.shape[:3]:
        return False
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in a.data.shape[:3]]), -1).reshape(-1, 3)
    a_to_b = np.linalg.solve(b.affine, a.affine)
    moved = corners @ a_to_b[:3, :3].T + a_to_b[:3, 3]
    return bool(np.abs(moved - corners).max() < SAME_GRID)


def resample(
    image: Image,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    order: int = 1,
    warp: NDArray[np.float32] | None = None,
) -> Image:
    """The image on another grid: linear (order 1) or nearest (order 0), through both affines.

    With a warp, (X, Y, Z, 3) float32 in voxels of the new grid, voxel x takes the image's value at
    x + warp(x), interpolated once. Beyond its border the image goes on with its minimum.
    """
    to_image = np.linalg.solve(image.affine, affine)
    fill = float(image.data.min())
    if warp is None:
        data = ndimage.affine_transform(
            image.data,
            to_image[:3, :3],
            to_image[:3, 3],
            output_shape=tuple(shape[:3]),
            order=order,
            mode="grid-constant",
            cval=fill,
        )
    else:
        points: NDArray[Any] = np.moveaxis(warp, -1, 0) + np.indices(shape[:3], dtype=np.float64)
        scales = np.diag(to_image[:3, :3])
        if (to_image[:3, :3] == np.diag(scales)).all():  # the sums' other terms are 0
            points *= scales[:, None, None, None]
        else:
            points = np.einsum("ij,jxyz->ixyz", to_image[:3, :3], points)
        points += to_image[:3, 3, None, None, None]
        if order == 0:
            data = _nearest(image.data, points, fill)
        else:
            data = ndimage.map_coordinates(
                image.data, points, order=order, mode="grid-constant", cval=fill
            )
    return Image(data, affine.copy(), image.has_affine, image.path)


def _nearest(data: NDArray[Any], points: NDArray[np.float64], fill: float) -> NDArray[Any]:
    """What `ndimage.map_coordinates` gives for order 0 and grid-constant, in half of the time: the
    values of data (X, Y, Z) nearest to `points` (3, …), in voxels, and `fill` outside. Overwrites
    `points`."""
    points += 0.5
    inside = np.ones(points.shape[1:], bool)
    places = np.zeros(points.shape[1:], np.int64)
    for position, n in zip(np.floor(points, out=points), data.shape, strict=True):
        inside &= (position >= 0) & (position < n)
        places *= n
        with np.errstate(invalid="ignore"):  # far outside
            places += position.astype(np.int64)
    values = data.reshape(-1).take(places, mode="clip")
    values[~inside] = fill
    return values


def move(moving: Image, warp: Image, order: int = 1) -> Image:
    """The moving image (linear, order 1) or label map (nearest, 0) on the warp's grid."""
    alignment = np.eye(4)
    if warp.shift is not None:
        alignment[:3, 3] = warp.shift
    aligned = replace(moving, affine=np.linalg.inv(alignment) @ moving.affine)
    moved = resample(aligned, warp.data.shape, warp.affine, order, warp.data)
    return replace(moved, codes=warp.codes)


def shift_between(warp: Image, true_warp: Image) -> NDArray[np.float64]:
    """What the shift of a warp is above that of another, (3,) RAS mm; none said is none."""
    return np.subtract(*(np.zeros(3) if w.shift is None else w.shift for w in (warp, true_warp)))


def normalize(data: NDArray[Any]) -> NDArray[np.float32]:
    """Min–max to [0, 1], float32; data that already spans [0, 1] comes back bit for bit."""
    low, high = float(data.min()), float(data.max())
    if not high > low:
        raise UserError("an image is constant and cannot be brought to [0, 1]")
    return ((data - np.float64(low)) / (high - low)).astype(np.float32)


def jacobian_determinant(warp: NDArray[Any]) -> NDArray[np.float64]:
    """Jacobian determinant of x + warp(x), (X, Y, Z); warp (X, Y, Z, 3) in voxels.

    Central differences, one-sided at the border, as voxelmorph's `jacobian_determinant`. Above 1:
    local growth of what is sampled; 0 or less: a fold.
    """
    determinants = np.empty(warp.shape[:3])
    for start in range(0, len(warp), PLANES):  # and a neighbour on each side
        first, stop = max(start - 1, 0), start + PLANES
        (a, b, c), (d, e, f), (g, h, i) = (
            np.gradient(warp[first : stop + 1, ..., v].astype(np.float64, order="C"))
            for v in range(3)
        )
        for diagonal in (a, e, i):
            diagonal += 1
        found: Any = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        determinants[start:stop] = found[start - first :][:PLANES]
    return determinants


# -------------------------------------------------------------------------------- prepare


@dataclass(frozen=True)
class Prepared:
    """A pair that a network can register, and the way back.

    moving, fixed: float32 in [0, 1], both of shape `grid.size`, in the model's axes.
    fixed_affine, fixed_codes: of the fixed image, which outputs carry once they are brought back.
    alignment: (4, 4) millimetres, the fixed image's world to the moving image's.
    turn: the fixed file's axes to the model's.
    steps: what was done, a sentence each.
    """

    moving: NDArray[np.float32]
    fixed: NDArray[np.float32]
    grid: NetworkGrid
    fixed_affine: NDArray[np.float64]
    fixed_codes: tuple[int, int]
    alignment: NDArray[np.float64]
    turn: Turn
    steps: list[str] = field(default_factory=list)

    def moved_back(self, moved_XYZ: NDArray[Any]) -> NDArray[Any]:
        """A volume of the network's grid on the fixed image's."""
        return self.turn.array_back(self.grid.unpad(moved_XYZ))

    def warp_back(self, warp_XYZV: NDArray[Any]) -> NDArray[Any]:
        """A warp in voxels of the network's grid, on the fixed image's and in its voxels."""
        return self.turn.warp_back(self.grid.unpad(warp_XYZV))


def prepare(
    moving: Image,
    fixed: Image,
    align: str = "auto",
    crop: bool = False,
    orientation: str = "",
    multiple: int = MULTIPLE,
) -> Prepared:
    """Bring a pair of images onto one network grid, as the module's docstring says.

    align: "header", "centre", or "auto": header where both files have an affine and the centres
    of mass are within ONE_WORLD, else centre.
    crop: leave out the part of the fixed grid where both images are at their minimum.
    orientation: axes that the model was trained in (see `axes`), empty for the fixed file's.
    multiple: of voxels, that the network's grid is along each axis.
    """
    steps = [*described("moving", moving), *described("fixed", fixed)]
    turn, fixed_affine = Turn(), fixed.affine.copy()
    if orientation:
        turn = turn_to(fixed.affine, orientation)
        moving, fixed = _turned(moving, orientation), _turned(fixed, orientation)
        steps.append(
            f"axes: both images in the model's, {orientation}; results in those of the fixed file"
        )
    else:
        steps.append(
            "axes: those of the fixed file, because the model does not say in which it was "
            "trained (--model-orientation does)"
        )
    alignment, step = alignment_of(moving, fixed, align)
    steps.append(step)

    aligned = Image(moving.data, np.linalg.inv(alignment) @ moving.affine, path=moving.path)
    if same_grid(aligned, fixed):
        steps.append("conform: the moving image is on the fixed grid already, taken as it is")
    else:
        aligned = resample(aligned, fixed.data.shape, fixed.affine)
        steps.append(
            f"conform: moving image resampled (trilinear) to the fixed grid, "
            f"{by(fixed.data.shape)}; outside it: its minimum, {moving.data.min():g}"
        )
        if aligned.data.min() == aligned.data.max():
            raise UserError(
                f"{moving.name} and {fixed.name} do not overlap in world coordinates; "
                "align their centres (--align centre)"
            )
    moving_01, fixed_01 = normalize(aligned.data), normalize(fixed.data)
    steps.append("normalize: each image min–max to [0, 1] on the fixed grid")

    box = _box((moving_01 > 0) | (fixed_01 > 0)) if crop else None
    grid = NetworkGrid.around(fixed.data.shape, box, multiple)
    if grid.size == fixed.data.shape:
        steps.append(f"grid: {by(grid.size)} is a multiple of {multiple} already")
    else:
        steps.append(
            f"grid: {by(grid.shape)} {'cropped and ' if crop else ''}padded with 0 to "
            f"{by(grid.size)}, first voxel at {grid.start}"
        )
    return Prepared(
        grid.pad(moving_01),
        grid.pad(fixed_01),
        grid,
        fixed_affine,
        fixed.codes,
        alignment,
        turn,
        steps,
    )


def _turned(image: Image, orientation: str) -> Image:
    """The image with its axes in the order and direction of `orientation`."""
    turn = turn_to(image.affine, orientation)
    affine = turn.affine(image.affine, image.data.shape)
    return replace(image, data=turn.array(image.data), affine=affine)


def alignment_of(
    moving: Image, fixed: Image, align: str = "auto"
) -> tuple[NDArray[np.float64], str]:
    """World of the fixed image to world of the moving image, (4, 4) mm, and the step in words."""
    if align not in ("auto", "header", "centre"):
        raise UserError(f"unknown way to align, {align!r}: use auto, header or centre")
    # rounded to what the header of a warp holds, so that what is done is what is saved
    shift = _centre_of_mass(moving) - _centre_of_mass(fixed)
    shift = shift.astype(np.float32).astype(np.float64)
    distance = float(np.sqrt((shift**2).sum()))
    headers = moving.has_affine and fixed.has_affine
    if align == "header" or (align == "auto" and headers and distance <= ONE_WORLD):
        step = f"align: header (the centres of intensity mass are {distance:.1f} mm apart)"
        return np.eye(4), step
    alignment = np.eye(4)
    alignment[:3, 3] = shift
    step = f"align: centre (moving image shifted by {distance:.1f} mm, {_mm(-shift)}"
    if align == "auto":
        step += ", because " + ("that is far" if headers else "a file has no affine")
    return alignment, step + ")"


def _centre_of_mass(image: Image) -> NDArray[np.float64]:
    """Centre of the intensity above the minimum, in RAS millimetres."""
    weight = image.data - image.data.min()
    voxel = np.array(ndimage.center_of_mass(weight.astype(np.float64)))
    return image.affine[:3, :3] @ voxel + image.affine[:3, 3]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.astype(np.int8))[0]


def described(role: str, image: Image) -> list[str]:
    """What an image is, what was decided in reading it, and what looks wrong with it."""
    shape, sizes = image.data.shape, image.voxel_sizes
    if min(shape) < FEWEST:
        raise UserError(
            f"{image.name} has {by(shape)} voxels; a volume has at least {FEWEST} along each "
            "axis: register whole volumes, not slices"
        )
    axes = "".join(nibabel.aff2axcodes(image.affine))
    text = f"{role}: {by(shape)}, {by(tuple(sizes.round(3)))} mm, {axes}"
    if not image.has_affine:
        text += " (these axes are assumed: the file has no affine)"
    doubts = []
    if (sizes * shape).min() < SMALLEST:
        extent = by(tuple((sizes * shape).round(1)))
        doubts.append(f"it covers {extent} mm, less than a brain does: are its voxel sizes right?")
    if sizes.max() > THICK * sizes.min():
        doubts.append(
            f"its slices are thick ({by(tuple(sizes.round(3)))} mm): across them the warp is "
            "interpolated, not seen"
        )
    return [text, *(f"{NOTE}{role} image: {note}" for note in (*image.notes, *doubts))]


def litres(image: Image) -> float:
    """Volume of what is brighter than the background.

    Otsu's threshold (1979, doi:10.1109/TSMC.1979.4310076) parts bright from dark; the same again,
    with all that is bright taken as alike, parts tissue from background, however bright fat is.
    """
    dark = np.minimum(image.data, _otsu(image.data))
    return float(np.count_nonzero(dark > _otsu(dark)) * image.voxel_sizes.prod() / 1e6)


def _otsu(data: NDArray[Any], bins: int = 256) -> float:
    """The threshold with the largest variance between what lies below and above it."""
    counts, edges = np.histogram(data, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    total, mean = counts.sum(), (counts * centres).sum() / counts.sum()
    between = (mean * below - sums) ** 2 / (below * (total - below))  # the ends hold a voxel each
    return float(centres[np.argmax(between)])


def _mm(vector: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in vector) + ") RAS"
