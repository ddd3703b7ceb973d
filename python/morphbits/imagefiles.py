"""Files of images: loaded, checked to be usable, saved. Their formats: `morphbits.imageformats`.

Files of warps: `morphbits.transforms`. Affines take voxel indices to RAS millimetres.
"""

from __future__ import annotations

import gzip
import io
import logging
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.imageformats import CODES, EXTENSIONS, Image, by, decode
from morphbits.imageformats import conformed_affine as conformed_affine

LARGEST = 100.0  # mm of a voxel's edge
LEVELS = 2.0**16  # grey levels that float32 must keep apart
SCALED = 2e-5  # of a label: what a slope of 65536 / 65535 adds to it, and a bit
WORTH, PIECE, PIECES = 1 / 8, 1 << 13, 16  # share; bytes of a piece; pieces: see `_shrinks`
WHOLE = 1e-3  # how far from a whole number a label may lie that went through scaling

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
    image = load_any(Path(path), ("vol", "vol_data"), orientation, nan)
    if image.data.ndim != 3:
        raise UserError(
            f"{path} has shape {by(image.data.shape)}; one three-dimensional image is needed: "
            "extract a volume first"
        )
    known_axes(image)
    exact = image.data
    image.data = as_float32(path, exact)
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
    return noted(image)


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
    image = load_any(Path(path), ("seg", "vol", "vol_data"), orientation, nan)
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
    return noted(image)


def known_axes(image: Image) -> Image:
    """The image; a UserError where left and right of it would be a guess."""
    if image.guessed:
        raise UserError(
            f"{image.name} does not say how its axes lie, so left and right would be a guess: "
            "give --orientation, where its three axes point to (as LAS: left, anterior, superior)"
        )
    return image


def load_any(
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


def as_float32(path: str | Path, array: NDArray[Any]) -> NDArray[np.float32]:
    """The same as float32; a UserError where it is not finite there."""
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


def noted(image: Image) -> Image:
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
    noisy: bool = False,
) -> None:
    """Write an image (as float32) or a label map (as int32); format by extension.

    The file appears whole or not at all, and the same data gives the same bytes: no time and no
    name go into the gzip header. NIfTI units: millimetres; codes: of its sform and its qform;
    noisy: see `encode`.
    """
    path = Path(path)
    kind = np.float32 if data.dtype.kind == "f" else np.int32
    array = np.asarray(data, dtype=kind)
    write_atomically(path, encode(path, array, affine, codes, noisy=noisy))


def encode(
    path: Path,
    data: NDArray[Any],
    affine: NDArray[np.floating],
    codes: tuple[int, int],
    header: Mapping[str, Any] = MappingProxyType({}),
    arrays: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    noisy: bool = False,
) -> bytes:
    """The bytes of a file. header: fields of NIfTI's. arrays: what an npz file holds beside it.
    noisy: no piece of the data comes again, so that gzip need not look for one."""
    extension, affine = extension_of(path), np.asarray(affine, np.float64)
    if extension == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{"vol": data, "affine": affine, **arrays})  # type: ignore[arg-type]
        return buffer.getvalue()
    if extension in (".mgz", ".mgh"):
        raw = nibabel.MGHImage(data, affine).to_bytes()
    else:
        nifti = nibabel.Nifti1Image(data, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.header["sform_code"], nifti.header["qform_code"] = codes
        for name, value in header.items():
            nifti.header[name] = value
        raw = nifti.to_bytes()
    # level 1: brain images with noise hardly shrink more at higher levels, and take far longer
    if extension not in (".nii.gz", ".mgz"):
        return raw
    if noisy:
        return _gzip(raw, 1 if _shrinks(raw) else 0)
    return gzip.compress(raw, 1, mtime=0)


def _gzip(raw: bytes, level: int) -> bytes:
    """A gzip file without a search for repeated sequences (run lengths and Huffman codes only):
    for noisy data as small as with it, in a third of the time. At level 0 nothing is compressed,
    which takes a tenth of that."""
    stream = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS, strategy=zlib.Z_RLE)
    return stream.compress(raw) + stream.flush()


def _shrinks(raw: bytes) -> bool:
    """Whether compression is worth its time: whether pieces from all over the file shrink by the
    share WORTH or more. Warps shrink by 7 %, those with many zeros by more."""
    starts = range(0, len(raw), max(PIECE, len(raw) // PIECES))
    pieces = b"".join(raw[start : start + PIECE] for start in starts)
    return len(_gzip(pieces, 1)) <= (1 - WORTH) * len(pieces)
