"""Files of images: loaded, checked to be usable, saved. Their formats: `morphbits.imageformats`.

Axes: X Y Z voxels in the order of the file, V the three components of a warp. Affines take voxel
indices to RAS millimetres.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from morphbits.errors import UserError
from morphbits.imageformats import CODES, EXTENSIONS, MGH_INTENT, WARP_NAME, Image, by, decode
from morphbits.imageformats import conformed_affine as conformed_affine

TEMPORARY = ".*.tmp"  # the name of a file that is being written
WARP_FORMULA = b"moving(x + warp(x)), in voxels, then intent_p1 to p3 added in RAS mm"
LARGEST = 100.0  # mm of a voxel's edge
LEVELS = 2.0**16  # grey levels that float32 must keep apart
SCALED = 2e-5  # of a label: what a slope of 65536 / 65535 adds to it, and a bit
WHOLE = 1e-3  # how far from a whole number a label may lie that went through scaling
# the fields of displacements, coefficients and positions of other programs, by their intent codes
FOREIGN = {
    1006: "displacements in millimetres (DISPVECT)",
    1007: "vectors in millimetres, as ITK, ANTs, NiftyReg and SPM write them (VECTOR)",
    2006: "FSL's displacement field in millimetres",
    2007: "FSL's cubic spline coefficients",
    2008: "FSL's cosine coefficients",
    2009: "FSL's quadratic spline coefficients",
    2016: "topup's cubic spline coefficients",
    2017: "topup's quadratic spline coefficients",
    2018: "topup's field in Hz",
    MGH_INTENT + 6: "FreeSurfer's warp",
    MGH_INTENT + 7: "FreeSurfer's inverse warp",
}

# nibabel says aloud what it finds wrong with a header; here a UserError says it, once
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
_said: set[str] = set()


# -------------------------------------------------------------------------------- load


def load(path: str | Path, orientation: str = "", nan: float | None = None) -> Image:
    """A three-dimensional image as float32 (stored scaling applied), checked to be usable.

    Reads NIfTI (also pairs .hdr and .img), FreeSurfer's MGH and numpy's npz (variable `vol`,
    `vol_data`, or the only one) and npy, compressed or not. Trailing axes of length one are
    dropped. orientation: how the axes lie where the file does not say, as LAS. nan: what stands
    for NaN and infinities, which are refused without it.
    """
    image = _load(Path(path), ("vol", "vol_data"), orientation, nan)
    if image.data.ndim != 3:
        raise UserError(
            f"{path} has shape {by(image.data.shape)}; one three-dimensional image is needed: "
            "extract a volume first"
        )
    known_axes(image)
    exact = image.data
    image.data = _as_float32(path, exact)
    low, high = exact.min(), exact.max()
    if low == high:
        raise UserError(
            f"{path} is constant (every voxel is {image.data.flat[0]:g}); nothing can be "
            "registered to it: check how it was made"
        )
    if not np.can_cast(exact.dtype, np.float32):
        above = _above_minimum(exact)
        error = np.abs(np.float64(image.data) - np.float64(low) - above).max()
        if error > above.max() / LEVELS / 2:  # half a grey level
            image.data = np.ascontiguousarray(above, np.float32)
            if not image.data.any():
                raise UserError(
                    f"{path} holds values up to {high:g}, whose differences are too small for "
                    "float32: multiply them by a power of ten"
                )
            image.notes.append(
                f"its values, {low:.10g} to {high:.10g}, are too close to each other for float32: "
                "their minimum was subtracted first"
            )
    return _noted(image)


def _above_minimum(array: NDArray[Any]) -> NDArray[np.float64]:
    """How far each value lies above the least, in float64; whole numbers are subtracted exactly
    (modulo 2⁶⁴), which float64 cannot do above 2⁵³."""
    if array.dtype.kind in "iu":
        above = array.astype(np.uint64) - array.min().astype(np.uint64)
        return above.astype(np.float64)
    return array.astype(np.float64) - np.float64(array.min())


def load_labels(path: str | Path, orientation: str = "", nan: float | None = None) -> Image:
    """A three-dimensional label map as int32; of an npz file `seg`, else as `load`.

    Labels within WHOLE or SCALED of whole numbers, as scaling leaves them, are rounded. A map that
    does not say how its axes lie is `guessed`, for the voxels alone may be what is asked for.
    """
    image = _load(Path(path), ("seg", "vol", "vol_data"), orientation, nan)
    if image.data.ndim != 3:
        raise UserError(f"{path} has shape {by(image.data.shape)}; a label map has three axes")
    exact = np.float64(image.data)
    labels = np.rint(exact)
    distance = np.abs(exact - labels)
    off = float(distance.max())
    scaled = np.minimum(SCALED * np.abs(labels), 0.1)
    limits = np.iinfo(np.int32)
    if (
        (distance > np.maximum(WHOLE, scaled)).any()
        or labels.min() < limits.min
        or labels.max() > limits.max
    ):
        raise UserError(
            f"{path} holds values that are not label numbers (32-bit integers); "
            "resample label maps with nearest neighbour, not linearly"
        )
    if off > 0:
        image.notes.append(f"its labels lie up to {off:.1g} off whole numbers: they were rounded")
    image.data = np.ascontiguousarray(labels, np.int32)
    return _noted(image)


def load_warp(path: str | Path, orientation: str = "") -> Image:
    """A warp of this suite or of voxelmorph, (X, Y, Z, 3) float32, in voxels of its own grid.

    Warps of other programs are in millimetres, absolute, or of another direction; those that say
    what they are (`FOREIGN`) are refused by name.
    """
    image = _load(Path(path), ("vol", "vol_data"), orientation)
    if image.intent:
        kind = FOREIGN.get(image.intent, f"something else (intent code {image.intent})")
        raise UserError(
            f"{path} holds {kind}, not a displacement in voxels of its own grid, as `morphbits "
            "register` and voxelmorph write it; give such a warp"
        )
    if image.data.ndim != 4 or image.data.shape[3] != 3:
        raise UserError(f"{path} has shape {by(image.data.shape)}; a warp is X × Y × Z × 3")
    if image.shift is not None and not (
        image.shift.shape == (3,) and np.isfinite(image.shift).all()
    ):
        raise UserError(f"{path}: the shift in its header is no three numbers; get it again")
    image.data = _as_float32(path, image.data)
    return _noted(image)


def say_if_unnamed(warp: Image) -> None:
    """A note where a file does not say that it holds a warp in voxels, and what is added to it."""
    if warp.shift is None:
        say(
            warp.name,
            "it does not say what its numbers are (voxelmorph and older files do not): taken as "
            "voxels of its own grid, with no shift of the worlds after it",
        )


def known_axes(image: Image) -> Image:
    """The image; a UserError where left and right of it would be a guess."""
    if image.guessed:
        raise UserError(
            f"{image.name} does not say how its axes lie, so left and right would be a guess: "
            "give --orientation, where its three axes point to (as LAS: left, anterior, superior)"
        )
    return image


def _load(
    path: Path, names: tuple[str, ...], orientation: str = "", nan: float | None = None
) -> Image:
    """Values in their own type, all finite, in an array of three axes or more."""
    image = decode(path, names, orientation)
    array = image.data
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {array.dtype} values; one real number per voxel is needed")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim < 3:
        raise UserError(f"{path} has shape {by(array.shape)}; three axes with voxels are needed")
    finite = np.isfinite(array)
    if nan is not None and not finite.all():
        image.notes.append(
            f"{finite.size - np.count_nonzero(finite)} voxels of {finite.size} are not finite: "
            f"they were set to {nan:g}"
        )
        array = np.where(finite, array, array.dtype.type(nan))
    _all_finite(path, array)
    if image.affine.shape != (4, 4):
        raise UserError(f"{path} has an affine of shape {by(image.affine.shape)}, not 4 × 4")
    if image.voxel_sizes.max() > LARGEST:
        raise UserError(
            f"{path} has voxels of {by(tuple(image.voxel_sizes.round(3)))} mm, as large as a "
            "head: repair its voxel sizes or their unit"
        )
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-12:
        raise UserError(f"{path} has a header whose affine cannot be inverted; repair the header")
    image.data = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return image


def _as_float32(path: str | Path, array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(array, np.float32)
    _all_finite(path, data)
    return data


def _all_finite(path: str | Path, array: NDArray[Any]) -> None:
    wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
    if wrong:
        raise UserError(
            f"{path} has {wrong} voxels of {array.size} that are not finite (NaN, infinite or too "
            f"large for float32); replace them, e.g. by 0{' (--nan 0)' if array.ndim == 3 else ''}"
        )


def _noted(image: Image) -> Image:
    """The image, its notes said aloud."""
    for note in image.notes:
        say(image.name, note)
    return image


def say(name: str, note: str) -> None:
    """A note about an image on stderr, once in a process."""
    line = f"note: {name}: {note}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)


def extension_of(path: Path) -> str:
    """The extension by which an image is saved; a UserError for one that is not known."""
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension):
            return extension
    raise UserError(f"{path} has no extension that is known; use one of {', '.join(EXTENSIONS)}")


# -------------------------------------------------------------------------------- save


def save(
    path: str | Path,
    data: NDArray[Any],
    affine: NDArray[np.floating],
    codes: tuple[int, int] = CODES,
) -> None:
    """Write an image or warp (as float32) or a label map (as int32); format by extension.

    The file appears whole or not at all, and the same data gives the same bytes: no time and no
    name go into the gzip header. NIfTI units: millimetres; codes: of its sform and its qform.
    """
    path = Path(path)
    kind = np.float32 if data.dtype.kind == "f" else np.int32
    content = _encode(path, np.asarray(data, dtype=kind), np.asarray(affine, np.float64), codes)
    write_atomically(path, content)


def save_warp(
    path: str | Path,
    warp: NDArray[Any],
    affine: NDArray[np.floating],
    shift: NDArray[np.floating[Any]],
    codes: tuple[int, int] = CODES,
) -> None:
    """Write a warp, (X, Y, Z, 3) in voxels of its own grid, with all that the transform needs:

    moving(affine · (x + warp(x)) + shift), the argument in RAS mm.

    NIfTI: intent_name is WARP_NAME, intent_p1 to p3 are the shift; the intent code stays 0,
    because NIfTI's vectors are in millimetres. npz: `shift`. MGH has no place for it.
    """
    path = Path(path)
    if np.any(shift) and extension_of(path) in (".mgz", ".mgh"):
        raise UserError(
            f"{path}: the images' centres were aligned, and a warp in MGH format cannot hold that "
            "shift: give the name of a .nii.gz file"
        )
    data = np.asarray(warp, dtype=np.float32)
    write_atomically(path, _encode(path, data, np.asarray(affine, np.float64), codes, shift))


def _encode(
    path: Path,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    codes: tuple[int, int],
    shift: NDArray[np.floating[Any]] | None = None,
) -> bytes:
    extension = extension_of(path)
    if extension == ".npz":
        buffer = io.BytesIO()
        arrays = {"vol": data, "affine": affine} | ({} if shift is None else {"shift": shift})
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()
    if extension in (".mgz", ".mgh"):
        raw = nibabel.MGHImage(data, affine).to_bytes()
    else:
        nifti = nibabel.Nifti1Image(data, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.header["sform_code"], nifti.header["qform_code"] = codes
        if shift is not None:
            nifti.header["intent_name"], nifti.header["descrip"] = WARP_NAME, WARP_FORMULA
            for k, millimetres in enumerate(shift, start=1):
                nifti.header[f"intent_p{k}"] = millimetres
        raw = nifti.to_bytes()
    # level 1: brain images with noise hardly shrink more at higher levels, and take far longer
    return gzip.compress(raw, 1, mtime=0) if extension in (".nii.gz", ".mgz") else raw


def write_atomically(path: Path, content: bytes | memoryview) -> None:
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
