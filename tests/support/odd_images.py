"""Small images of odd kinds, as bytes: headers that differ from the usual ones."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (10, 12, 9)
OBLIQUE = np.array(
    [[-1.6, 0.4, 0.2, 9], [0.4, 1.7, -0.3, -8], [0.2, 0.25, 2.0, 5], [0, 0, 0, 1]], np.float64
)
_TURN = np.linalg.qr(OBLIQUE[:3, :3])[0] * np.sign(np.linalg.qr(OBLIQUE[:3, :3])[1].diagonal())
RIGID = np.eye(4)  # OBLIQUE without shears: what a qform can hold; left-handed (qfac -1)
RIGID[:3, :3], RIGID[:3, 3] = _TURN * [1.5, 2, 1.25], OBLIQUE[:3, 3]
FIELDS = {  # of a NIfTI-1 header: where they lie, and their type
    "dim": (40, "<8h"),
    "qfac": (76, "<f"),
    "pixdim": (80, "<3f"),
    "vox_offset": (108, "<f"),
    "slope": (112, "<f"),
    "inter": (116, "<f"),
    "units": (123, "<B"),
    "qform": (252, "<h"),
    "sform": (254, "<h"),
    "quaternion": (256, "<3f"),
    "offset": (268, "<3f"),
    "srow": (280, "<12f"),
    "magic": (344, "4s"),
}


def volume(dtype: str = "u1") -> np.ndarray:
    """Noise of 10 to 59, and the values 200 to 203 in the first voxel and the ends of the axes."""
    data = np.random.default_rng(3).integers(10, 60, SHAPE)
    data[[0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, -1]] = 200, 201, 202, 203
    return data.astype(dtype)


def nifti(
    data: np.ndarray, affine: np.ndarray = RIGID, codes: tuple[int, int] = (1, 1), **fields: object
) -> bytes:
    """A NIfTI-1 file whose sform and qform are this affine; then `fields` of its header."""
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    return patched(image.to_bytes(), sform=codes[0], qform=codes[1], **fields)


def patched(raw: bytes, **fields: object) -> bytes:
    """The file with other values in fields of its header."""
    changed = bytearray(raw)
    for name, value in fields.items():
        place, kind = FIELDS[name]
        values = (value,) if isinstance(value, bytes) else np.ravel(value).tolist()
        whole = kind[-1] in "hB"
        struct.pack_into(kind, changed, place, *(int(v) if whole else v for v in values))
    return bytes(changed)


def mgh(data: np.ndarray, good_ras: int, intent: int = 0) -> bytes:
    """An MGH file of uint8 without voxel sizes and axes."""
    head = struct.pack(">7ih", intent << 8 | 1, *data.shape, 1, 0, 0, good_ras)
    return head + bytes(284 - len(head)) + data.astype("u1").tobytes("F")


def pair(folder: Path, kind: type, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """`a.hdr` and `a.img` of a kind of nibabel's, voxels 1.5 × 2 × 1.25 mm."""
    image = kind(data, affine)
    image.header.set_zooms((1.5, 2, 1.25))
    image.to_filename(folder / "a.img")
    return folder / "a.img"
