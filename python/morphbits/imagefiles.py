"""Files of images: what is read, what is refused and why, and how images are written.

Axes: X Y Z voxels in the order of the file, V the three components of a warp. Affines take voxel
indices to RAS millimetres.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from morphbits.errors import UserError

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".npz")
TEMPORARY = ".*.tmp"  # the name of a file that is being written
CODES = (2, 0)  # of sform ("aligned") and qform ("unknown") where an image brings none of its own
MGH_INTENT = 65536  # added to the intent codes of MGH files, which are not NIfTI's
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


@dataclass
class Image:
    """A volume and where it lies.

    data: (X, Y, Z) float32, or int32 for labels, or (X, Y, Z, 3) float32 for a warp.
    affine: (4, 4) float64, voxel indices to RAS millimetres.
    has_affine: False where the file says nothing about the world and the affine is a convention.
    codes: NIfTI's sform_code and qform_code, of which world the affine is; `save` takes them.
    intent: NIfTI's (or, above 65536, MGH's) code of what the values mean; 0 says nothing.
    notes: what was decided in reading, a sentence each.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    has_affine: bool = True
    path: Path | None = None
    codes: tuple[int, int] = CODES
    intent: int = 0
    notes: list[str] = field(default_factory=list)

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
            f"{path} has shape {by(image.data.shape)}; one three-dimensional image is needed: "
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
        raise UserError(f"{path} has shape {by(image.data.shape)}; a label map has three axes")
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
    """A warp of this suite or of voxelmorph, (X, Y, Z, 3) float32, in voxels of its own grid.

    Warps of other programs are in millimetres, absolute, or of another direction; those that say
    what they are (`FOREIGN`) are refused by name.
    """
    image = _load(Path(path), np.float32)
    if image.intent:
        kind = FOREIGN.get(image.intent, f"something else (intent code {image.intent})")
        raise UserError(
            f"{path} holds {kind}, not a displacement in voxels of its own grid, as register.py "
            "and voxelmorph write it; give such a warp"
        )
    if image.data.ndim != 4 or image.data.shape[3] != 3:
        raise UserError(f"{path} has shape {by(image.data.shape)}; a warp is X × Y × Z × 3")
    return image


def _load(path: Path, dtype: type) -> Image:
    if not path.exists():
        raise UserError(f"there is no file {path}: check the name")
    if not path.is_file():
        raise UserError(f"{path} is not a file: name one image")
    extension = extension_of(path)
    try:
        raw = path.read_bytes()
        found = _read_npz(path, raw) if extension == ".npz" else _read_nibabel(raw, extension)
    except UserError:
        raise
    except Exception as error:  # nibabel, numpy and zlib have a dozen for damaged files
        raise UserError(
            f"{path} cannot be read: it is damaged, cut short, or not what its name says "
            f"({type(error).__name__}: {_first_line(error)}); get it again"
        ) from error
    array, affine = found.data, found.affine
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {array.dtype} values; one real number per voxel is needed")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim < 3:
        raise UserError(f"{path} has shape {by(array.shape)}; three axes with voxels are needed")
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
    return replace(found, data=data, path=path)


def _read_nibabel(raw: bytes, extension: str) -> Image:
    """Decompress to the end first, so that every cut or damaged .gz is noticed (CRC)."""
    if extension in (".nii.gz", ".mgz"):
        raw = gzip.decompress(raw)
    if extension in (".mgz", ".mgh"):
        # the version's upper bytes are the intent, since FreeSurfer 7.3; nibabel knows none
        intent = int.from_bytes(raw[1:3], "big")
        mgh = nibabel.MGHImage.from_bytes(raw[:1] + bytes(2) + raw[3:])
        good_ras = int.from_bytes(raw[28:30], "big", signed=True) > 0
        return Image(
            np.asanyarray(mgh.dataobj),
            np.asarray(mgh.affine, np.float64),
            good_ras,
            intent=MGH_INTENT + intent if intent else 0,
        )
    is_nifti2 = 540 in (int.from_bytes(raw[:4], order) for order in ("little", "big"))
    nifti = (nibabel.Nifti2Image if is_nifti2 else nibabel.Nifti1Image).from_bytes(raw)
    codes = int(nifti.header["sform_code"]), int(nifti.header["qform_code"])
    return Image(
        np.asanyarray(nifti.dataobj),
        np.asarray(nifti.affine, np.float64),
        max(codes) > 0,
        codes=codes if max(codes) > 0 else CODES,
        intent=int(nifti.header["intent_code"]),
    )


def _read_npz(path: Path, raw: bytes) -> Image:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        names = list(archive.keys())
        if "vol" not in names and len(names) != 1:
            raise UserError(f"{path} holds {names or 'nothing'}; the image must be named 'vol'")
        array = archive["vol" if "vol" in names else names[0]]
        if "affine" in names:
            return Image(array, np.asarray(archive["affine"], np.float64))
    return Image(array, conformed_affine(array.shape), False)


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


def by(shape: tuple[float, ...]) -> str:
    """A shape or sizes as they are said: 160 × 192 × 224."""
    return " × ".join(map(str, shape)) or "of a single number"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


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


def _encode(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64], codes: tuple[int, int]
) -> bytes:
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
        nifti.header["sform_code"], nifti.header["qform_code"] = codes
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
