"""Images: load, check, bring onto the network's grid and back, save.

A registration network sees two arrays of one shape, a multiple of 16 along each axis, with values
in [0, 1]. `prepare` gets there from any pair of images in four steps, each of which it puts into
words (`Prepared.steps`):

1. align: nothing ("header": both images already share a world), or a translation in millimetres
   that brings the centres of intensity mass together ("centre");
2. conform: the moving image is resampled (trilinear) onto the fixed image's grid, through both
   affines; an image that is already on that grid is taken as it is, bit for bit;
3. normalize: each image by its own minimum and maximum to [0, 1];
4. pad (or crop, when asked) both to a multiple of 16.

Outputs come back onto exactly the fixed image's grid: `Prepared.grid.unpad`. All of it is plain
single-threaded arithmetic, so that the same files give the same bytes.

Axes: X Y Z voxels in the order of the file, V the three components of a warp. Affines take voxel
indices to RAS millimetres.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits.errors import UserError

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".npz")
MULTIPLE = 16  # four levels of stride two, as in every SynthMorph network
SAME_GRID = 1e-3  # voxels: corners closer than this are one grid (headers hold float32 affines)
ONE_WORLD = 25.0  # mm: brains whose centres are further apart are not in one world (scanner space)
TEMPORARY = ".*.tmp"  # the name of a file that is being written

# nibabel says aloud what it finds wrong with a header; here a UserError says it, once
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@dataclass
class Image:
    """A volume and where it lies.

    data: (X, Y, Z) float32, or int32 for labels, or (X, Y, Z, 3) float32 for a warp.
    affine: (4, 4) float64, voxel indices to RAS millimetres.
    has_affine: False where the file says nothing about the world and the affine is a convention.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    has_affine: bool = True
    path: Path | None = None

    @property
    def voxel_sizes(self) -> NDArray[np.float64]:
        """Edge lengths of a voxel, (3,) in millimetres."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return str(self.path) if self.path else "the image"


# -------------------------------------------------------------------------------- load


def load(path: str | Path) -> Image:
    """A three-dimensional image as float32 (stored scaling applied), checked to be usable.

    Reads NIfTI (.nii, .nii.gz), FreeSurfer (.mgz, .mgh) and npz (variable `vol`, or the only
    one). A trailing fourth axis of length one is dropped.
    """
    image = _load(Path(path), np.float32)
    if image.data.ndim != 3:
        raise UserError(
            f"{path} has shape {_by(image.data.shape)}; one three-dimensional image is needed: "
            "extract a volume first"
        )
    if image.data.min() == image.data.max():
        raise UserError(
            f"{path} is constant (every voxel is {image.data.flat[0]:g}); nothing can be "
            "registered to it: check how it was made"
        )
    return image


def load_labels(path: str | Path) -> Image:
    """A three-dimensional label map as int32."""
    image = _load(Path(path), np.float64)
    if image.data.ndim != 3:
        raise UserError(f"{path} has shape {_by(image.data.shape)}; a label map has three axes")
    with np.errstate(invalid="ignore"):
        labels = image.data.astype(np.int32)
    if not np.array_equal(labels, image.data):
        raise UserError(
            f"{path} holds values that are not label numbers (32-bit integers); "
            "resample label maps with nearest neighbour, not linearly"
        )
    image.data = labels
    return image


def load_warp(path: str | Path) -> Image:
    """A warp, (X, Y, Z, 3) float32, in voxels of its own grid."""
    image = _load(Path(path), np.float32)
    if image.data.ndim != 4 or image.data.shape[3] != 3:
        raise UserError(f"{path} has shape {_by(image.data.shape)}; a warp is X × Y × Z × 3")
    return image


def _load(path: Path, dtype: type) -> Image:
    if not path.exists():
        raise UserError(f"there is no file {path}: check the name")
    if not path.is_file():
        raise UserError(f"{path} is not a file: name one image")
    extension = extension_of(path)
    try:
        raw = path.read_bytes()
        if extension == ".npz":
            array, affine, has_affine = _read_npz(path, raw)
        else:
            array, affine, has_affine = _read_nibabel(raw, extension)
    except UserError:
        raise
    except Exception as error:  # nibabel, numpy and zlib have a dozen for damaged files
        raise UserError(
            f"{path} cannot be read: it is damaged, cut short, or not what its name says "
            f"({type(error).__name__}: {_first_line(error)}); get it again"
        ) from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {array.dtype} values; one real number per voxel is needed")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim < 3:
        raise UserError(f"{path} has shape {_by(array.shape)}; three axes with voxels are needed")
    with np.errstate(over="ignore"):
        data: NDArray[Any] = np.ascontiguousarray(array, dtype=dtype)
    wrong = int(data.size - np.count_nonzero(np.isfinite(data)))
    if wrong:
        raise UserError(
            f"{path} has {wrong} voxels of {data.size} that are not finite (NaN, infinite or too "
            "large for float32); replace them, e.g. by 0"
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise UserError(f"{path} has a header whose affine cannot be inverted; repair the header")
    return Image(data, affine, has_affine, path)


def _read_nibabel(raw: bytes, extension: str) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    """Decompress to the end first, so that every cut or damaged .gz is noticed (CRC)."""
    if extension in (".nii.gz", ".mgz"):
        raw = gzip.decompress(raw)
    if extension in (".mgz", ".mgh"):
        mgh = nibabel.MGHImage.from_bytes(raw)
        good_ras = int.from_bytes(raw[28:30], "big", signed=True) > 0
        return np.asanyarray(mgh.dataobj), np.asarray(mgh.affine, np.float64), good_ras
    is_nifti2 = 540 in (int.from_bytes(raw[:4], order) for order in ("little", "big"))
    nifti = (nibabel.Nifti2Image if is_nifti2 else nibabel.Nifti1Image).from_bytes(raw)
    has_affine = bool(nifti.header["sform_code"] > 0 or nifti.header["qform_code"] > 0)
    return np.asanyarray(nifti.dataobj), np.asarray(nifti.affine, np.float64), has_affine


def _read_npz(path: Path, raw: bytes) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        names = list(archive.keys())
        if "vol" not in names and len(names) != 1:
            raise UserError(f"{path} holds {names or 'nothing'}; the image must be named 'vol'")
        array = archive["vol" if "vol" in names else names[0]]
        if "affine" in names:
            return array, np.asarray(archive["affine"], np.float64), True
    return array, conformed_affine(array.shape), False


def conformed_affine(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of an image without one: FreeSurfer's conformed axes (LIA), 1 mm, centred.

    voxelmorph's convention for npz files (`voxelmorph.py.utils.save_volfile`).
    """
    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[:3]) / 2)
    return affine


def extension_of(path: Path) -> str:
    """The extension that says how an image is stored; a UserError for one that is not known."""
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension):
            return extension
    raise UserError(f"{path} has no extension that is known; use one of {', '.join(EXTENSIONS)}")


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "of a single number"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


# -------------------------------------------------------------------------------- save


def save(path: str | Path, data: NDArray[Any], affine: NDArray[np.floating]) -> None:
    """Write an image or warp (as float32) or a label map (as int32); format by extension.

    The file appears whole or not at all, and the same data gives the same bytes: no time and no
    name go into the gzip header. NIfTI units: millimetres.
    """
    path = Path(path)
    kind = np.float32 if data.dtype.kind == "f" else np.int32
    content = _encode(path, np.asarray(data, dtype=kind), np.asarray(affine, np.float64))
    write_atomically(path, content)


def _encode(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    extension = extension_of(path)
    if extension == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, vol=data, affine=affine)
        return buffer.getvalue()
    if extension in (".mgz", ".mgh"):
        raw = nibabel.MGHImage(data, affine).to_bytes()
    else:
        nifti = nibabel.Nifti1Image(data, affine)
        nifti.header.set_xyzt_units("mm")
        raw = nifti.to_bytes()
    # level 1: brain images with noise hardly shrink more at higher levels, and take far longer
    return gzip.compress(raw, 1, mtime=0) if extension in (".nii.gz", ".mgz") else raw


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the final name, then rename: whatever happens, no partial file stays."""
    temporary = path.with_name(TEMPORARY.replace("*", f"{path.name}.{os.getpid()}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"cannot write into {path.parent} ({error.strerror}): choose another folder or "
            "change its permissions"
        ) from error
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): make room or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


# -------------------------------------------------------------------------------- grids


@dataclass(frozen=True)
class NetworkGrid:
    """The window of the fixed grid that the network sees.

    shape: the fixed grid. start: index of the window's first voxel in it (negative: padding).
    size: the window's shape, multiples of 16.
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    @classmethod
    def around(cls, shape: tuple[int, ...], box: tuple[slice, ...] | None = None) -> NetworkGrid:
        """The smallest window that holds the box (default: the whole grid) in its middle."""
        spans = [(b.start, b.stop) for b in box] if box else [(0, n) for n in shape]
        size = [-(-(stop - start) // MULTIPLE) * MULTIPLE for start, stop in spans]
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
        points = np.moveaxis(warp, -1, 0) + np.indices(shape[:3], dtype=np.float64)
        points = np.einsum("ij,jxyz->ixyz", to_image[:3, :3], points)
        points += to_image[:3, 3, None, None, None]
        data = ndimage.map_coordinates(
            image.data, points, order=order, mode="grid-constant", cval=fill
        )
    return Image(data, affine.copy(), image.has_affine, image.path)


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
    rows = np.stack([np.stack(np.gradient(np.float64(warp[..., v]))) for v in range(3)])
    rows[(0, 1, 2), (0, 1, 2)] += 1
    (a, b, c), (d, e, f), (g, h, i) = rows
    return np.asarray(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


# -------------------------------------------------------------------------------- prepare


@dataclass(frozen=True)
class Prepared:
    """A pair that a network can register, and the way back.

    moving, fixed: float32 in [0, 1], both of shape `grid.size`.
    fixed_affine: (4, 4) of the fixed image, which outputs carry after `grid.unpad`.
    alignment: (4, 4) millimetres, the fixed image's world to the moving image's.
    steps: what was done, a sentence each.
    """

    moving: NDArray[np.float32]
    fixed: NDArray[np.float32]
    grid: NetworkGrid
    fixed_affine: NDArray[np.float64]
    alignment: NDArray[np.float64]
    steps: list[str] = field(default_factory=list)


def prepare(moving: Image, fixed: Image, align: str = "auto", crop: bool = False) -> Prepared:
    """Bring a pair of images onto one network grid, as the module's docstring says.

    align: "header", "centre", or "auto": header where both files have an affine and the centres
    of mass are within ONE_WORLD, else centre.
    crop: leave out the part of the fixed grid where both images are at their minimum.
    """
    steps = [_described("moving", moving), _described("fixed", fixed)]
    alignment, step = alignment_of(moving, fixed, align)
    steps.append(step)

    aligned = Image(moving.data, np.linalg.inv(alignment) @ moving.affine, path=moving.path)
    if same_grid(aligned, fixed):
        steps.append("conform: the moving image is on the fixed grid already, taken as it is")
    else:
        aligned = resample(aligned, fixed.data.shape, fixed.affine)
        steps.append(
            f"conform: moving image resampled (trilinear) to the fixed grid, "
            f"{_by(fixed.data.shape)}; outside it: its minimum, {moving.data.min():g}"
        )
        if aligned.data.min() == aligned.data.max():
            raise UserError(
                f"{moving.name} and {fixed.name} do not overlap in world coordinates; "
                "align their centres (--align centre)"
            )
    moving_01, fixed_01 = normalize(aligned.data), normalize(fixed.data)
    steps.append("normalize: each image min–max to [0, 1] on the fixed grid")

    box = _box((moving_01 > 0) | (fixed_01 > 0)) if crop else None
    grid = NetworkGrid.around(fixed.data.shape, box)
    if grid.size == fixed.data.shape:
        steps.append(f"grid: {_by(grid.size)} is a multiple of {MULTIPLE} already")
    else:
        steps.append(
            f"grid: {_by(grid.shape)} {'cropped and ' if crop else ''}padded with 0 to "
            f"{_by(grid.size)}, first voxel at {grid.start}"
        )
    return Prepared(
        grid.pad(moving_01), grid.pad(fixed_01), grid, fixed.affine.copy(), alignment, steps
    )


def alignment_of(
    moving: Image, fixed: Image, align: str = "auto"
) -> tuple[NDArray[np.float64], str]:
    """World of the fixed image to world of the moving image, (4, 4) mm, and the step in words."""
    if align not in ("auto", "header", "centre"):
        raise UserError(f"unknown way to align, {align!r}: use auto, header or centre")
    shift = _centre_of_mass(moving) - _centre_of_mass(fixed)
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


def _described(role: str, image: Image) -> str:
    axes = "".join(nibabel.aff2axcodes(image.affine))
    text = f"{role}: {_by(image.data.shape)}, {_by(tuple(image.voxel_sizes.round(3)))} mm, {axes}"
    if not image.has_affine:
        text += " (these axes are assumed: the file has no affine)"
    return text


def _mm(vector: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in vector) + ") RAS"
