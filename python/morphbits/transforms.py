"""Files of warps: this suite's own, and the displacement fields of ITK, FSL and FreeSurfer.

In memory a warp is an `Image`: data (X, Y, Z, 3) float32 in voxels of its own grid, affine, shift.
It takes a point of the fixed image's world to the moving image's, both RAS mm:

    affine · x  →  affine · (x + warp(x)) + shift

Each format stores that transform whole:

| format | values | NIfTI | read by |
|---|---|---|---|
| voxels | warp, voxels; the shift in the header | intent_name "morphbits warp" | this suite |
| ras | displacement, RAS mm | intent 1006, 5 axes | FreeSurfer, nitransforms, ITK 5.4 |
| itk | displacement, LPS mm | intent 1007, 5 axes | ITK, ANTs, elastix, nitransforms |
| fsl | displacement, FSL's mm, relative | intent 2006, 4 axes | FSL |

FSL's millimetres are voxel indices times voxel sizes, the first axis reversed where the affine has
a positive determinant, of the fixed image before and of the moving image after the transform:
their worlds do not enter, so that the field belongs to this very grid of the moving image
(https://fsl.fmrib.ox.ac.uk/fsl/docs/#/registration/fnirt/user_guide).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphbits.choices import WARP_FORMATS
from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.imagefiles import (
    as_float32,
    encode,
    extension_of,
    load_any,
    noted,
    say,
)
from morphbits.imageformats import CODES, MGH_INTENT, WARP_NAME, Image, by

Affine = NDArray[np.float64]

RELATIVE = "relative"  # the intent's name of FSL's displacements that we write
LPS = np.array([-1.0, -1.0, 1.0])  # RAS components to LPS and back
RIGHT_ANGLE = 1e-4  # largest cosine between axes of a grid that ITK still takes as orthogonal
SAME_SIZE = 1e-3  # relative: voxel sizes in header and affine that differ by less are the same
# what the numbers of other programs' files are, by intent codes
FOREIGN = {
    2007: "FSL's cubic spline coefficients",
    2008: "FSL's cosine coefficients",
    2009: "FSL's quadratic spline coefficients",
    2016: "topup's cubic spline coefficients",
    2017: "topup's quadratic spline coefficients",
    2018: "topup's field in Hz",
    MGH_INTENT + 3: "FreeSurfer's warp",
    MGH_INTENT + 4: "FreeSurfer's inverse warp",
    MGH_INTENT + 6: "FreeSurfer's warp",
    MGH_INTENT + 7: "FreeSurfer's inverse warp",
}
# names of intents that say of vectors that they are something else than ITK's
NAMED = {"Mapping": "SPM's positions in millimetres", "NREG_TRANS": "NiftyReg's transform"}


@dataclass(frozen=True)
class Format:
    """How a NIfTI file says what it holds: intent code, axes, and words for header and sidecar."""

    intent: int
    axes: int
    description: str  # at most 79 letters, the length of NIfTI's descrip
    units: str
    coordinates: str


FORMATS = {
    "voxels": Format(
        0,
        4,
        "moving(x + warp(x)), in voxels, then intent_p1 to p3 added in RAS mm",
        "voxel",
        "voxels of the file's own grid, then the shift of the header in RAS mm",
    ),
    "ras": Format(
        1006, 5, "displacements in RAS mm, from the fixed world to the moving world", "mm", "RAS"
    ),
    "itk": Format(
        1007, 5, "displacements in LPS mm, from the fixed world to the moving world", "mm", "LPS"
    ),
    "fsl": Format(
        2006,
        4,
        "relative displacements in FSL's mm, from fixed to moving image (--rel)",
        "mm",
        "FSL's scaled voxels (radiological), relative",
    ),
}
assert tuple(FORMATS) == WARP_FORMATS
_BY_INTENT = {f.intent: name for name, f in FORMATS.items() if f.intent}


# -------------------------------------------------------------------------------- load


def load_warp(path: str | Path, orientation: str = "", moving: Image | None = None) -> Image:
    """A warp in any of the formats, as (X, Y, Z, 3) float32 in voxels of its own grid.

    moving: the image that it moves, as it is stored; FSL's fields cannot be read without it.
    Warps of other programs that say what they are and are none of these are refused by name.
    """
    image = load_any(Path(path), ("vol", "vol_data"), orientation)
    _check_kind(image)
    name = _BY_INTENT.get(image.intent, "voxels")
    if image.data.ndim == 5 and image.data.shape[3] == 1:
        image.data = image.data[:, :, :, 0]
    if image.data.ndim != 4 or image.data.shape[3] != 3:
        raise UserError(f"{path} has shape {by(image.data.shape)}; a warp is X × Y × Z × 3")
    if image.shift is not None and not (
        image.shift.shape == (3,) and np.isfinite(image.shift).all()
    ):
        raise UserError(f"{path}: the shift in its header is no three numbers; get it again")
    if name == "voxels":
        image.data = as_float32(path, image.data)
        return noted(image)
    values = np.asarray(image.data, np.float64)
    if name == "fsl":
        if moving is None:
            raise UserError(
                f"{path} holds FSL's displacements, which mean nothing without the moving image: "
                "convert them to voxels by `morphbits warp --moving … --export …`"
            )
        check_grids("fsl", image, moving)
        origin = _apply(scaled(image), _grid(image))
        if image.intent_name != RELATIVE and _spread(values) > _spread(values - origin):
            raise UserError(
                f"{path} seems to hold FSL's absolute positions: make them relative by FSL's "
                "convertwarp --abs --relout"
            )
        places = values + origin
        voxels = _apply(np.linalg.inv(scaled(moving)), places)
        world = _apply(moving.affine, voxels)
        image.notes.append("FSL's displacements, taken as relative (--rel)")
    else:
        world = _apply(image.affine, _grid(image)) + values * (LPS if name == "itk" else 1)
        who = "ITK and ANTs" if name == "itk" else "FreeSurfer and ITK"
        image.notes.append(f"displacements in {FORMATS[name].coordinates} mm, as {who} have them")
    warp = _apply(np.linalg.inv(image.affine), world) - _grid(image)
    image.data, image.shift = as_float32(path, warp), np.zeros(3)
    return noted(image)


def _spread(values: NDArray[Any]) -> float:
    """By which FSL tells positions, which vary more, from displacements (is_abs_convention)."""
    return float(values.std(axis=(0, 1, 2)).sum())


def _check_kind(image: Image) -> None:
    """A UserError where the intent's code or name says that it is none of the formats."""
    kind = FOREIGN.get(image.intent)
    if image.intent == FORMATS["itk"].intent:
        kind = NAMED.get(image.intent_name)
    if kind is None and image.intent not in (0, *_BY_INTENT):
        kind = f"something else (intent code {image.intent})"
    if kind is None and image.intent and image.data.ndim != FORMATS[_BY_INTENT[image.intent]].axes:
        kind = f"vectors of intent code {image.intent}, but in shape {by(image.data.shape)}"
    if kind:
        raise UserError(
            f"{image.path} holds {kind}: none of the formats that are read "
            f"({', '.join(WARP_FORMATS)}; notes/images.md)"
        )


def say_if_unnamed(warp: Image) -> None:
    """A note where a file does not say that it holds a warp in voxels, and what is added to it."""
    if warp.shift is None:
        say(
            warp.name,
            "it does not say what its numbers are (voxelmorph and older files do not): taken as "
            "voxels of its own grid, with no shift of the worlds after it",
        )


# -------------------------------------------------------------------------------- save


def save_warp(
    path: str | Path,
    warp: NDArray[Any],
    affine: NDArray[np.floating],
    shift: NDArray[np.floating[Any]],
    codes: tuple[int, int] = CODES,
    form: str = "voxels",
    moving: Image | None = None,
) -> NDArray[np.float32]:
    """Write a warp, (X, Y, Z, 3) in voxels of its own grid, in one of FORMATS; returns the numbers
    that were written.

    voxels: as NIfTI, npz (`shift`) or MGH, which has no place for the shift. The others: NIfTI.
    moving: the moving image as it is stored, for FSL.
    """
    path, chosen = Path(path), FORMATS[form]
    check_format(path, form)
    if np.any(shift) and extension_of(path) in (".mgz", ".mgh"):
        raise UserError(
            f"{path}: the images' centres were aligned, and a warp in MGH format cannot hold that "
            "shift: give the name of a .nii.gz file"
        )
    header: dict[str, Any] = {"intent_code": chosen.intent, "descrip": chosen.description}
    if form == "voxels":
        values = np.asarray(warp, np.float32)
        header |= {f"intent_p{k}": mm for k, mm in enumerate(shift, start=1)}
        header["intent_name"] = WARP_NAME
    else:
        image = Image(np.asarray(warp, np.float64), np.asarray(affine, np.float64), path=path)
        image.shift = np.asarray(shift, np.float64)
        values = np.asarray(_displacements(image, form, moving), np.float32)
        if codes[0] > 0 and is_sheared(affine):
            codes = codes[0], 0  # a qform has no shear, and ITK would use it in silence
        if form == "fsl":
            header["intent_name"] = RELATIVE
        if chosen.axes == 5:
            values = values[:, :, :, None]
    write_atomically(
        path, encode(path, values, affine, codes, header, {"shift": shift}, noisy=True)
    )
    return values


def check_format(path: Path, form: str) -> None:
    """A UserError where a file of this name cannot hold this format."""
    if form != "voxels" and extension_of(path) not in (".nii.gz", ".nii"):
        raise UserError(f"{path}: a warp in format {form} is a NIfTI file: call it .nii.gz")


def check_grids(form: str, fixed: Image, moving: Image | None) -> None:
    """A UserError where these grids cannot be said in the format."""
    if form == "itk" and is_sheared(fixed.affine):
        raise UserError(
            f"{fixed.name}: its grid is sheared, which no image of ITK can be: use another warp "
            "format (ras or fsl)"
        )
    if form != "fsl":
        return
    if moving is None:
        raise UserError("format fsl needs the moving image, to which its numbers refer: name it")
    sizes = moving.header_sizes
    if sizes is not None and np.abs(sizes / moving.voxel_sizes - 1).max() > SAME_SIZE:
        raise UserError(
            f"{moving.name}: its header has voxels of {by(tuple(sizes.round(3)))} (pixdim), its "
            f"affine of {by(tuple(moving.voxel_sizes.round(3)))} mm, and FSL uses the former: "
            "repair the header or use another warp format"
        )
    if not moving.has_affine:
        raise UserError(
            f"{moving.name} does not say how its axes lie, which FSL assumes in its own way: "
            "save it with an affine first"
        )


def is_sheared(affine: NDArray[np.floating]) -> bool:
    """Whether the axes of a grid are not at right angles, as ITK's images have them."""
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT_ANGLE)


def _displacements(warp: Image, form: str, moving: Image | None) -> NDArray[np.float64]:
    """The whole transform as displacements of a format in millimetres, (X, Y, Z, 3)."""
    check_grids(form, warp, moving)
    assert warp.shift is not None
    if form != "fsl":
        return (warp.data @ warp.affine[:3, :3].T + warp.shift) * (LPS if form == "itk" else 1)
    assert moving is not None
    world = _apply(warp.affine, _grid(warp) + warp.data) + warp.shift
    places = _apply(scaled(moving) @ np.linalg.inv(moving.affine), world)
    return places - _apply(scaled(warp), _grid(warp))


def scaled(image: Image) -> Affine:
    """Voxel indices to FSL's millimetres, (4, 4)."""
    matrix = np.diag([*image.voxel_sizes, 1.0])
    if np.linalg.det(image.affine[:3, :3]) > 0:
        matrix[0, 3] = (image.data.shape[0] - 1) * matrix[0, 0]
        matrix[0, 0] *= -1
    return matrix


def _grid(image: Image) -> NDArray[np.floating]:
    """Voxel indices, (X, Y, Z, 3)."""
    return np.moveaxis(np.indices(image.data.shape[:3], np.float64), 0, -1)


def _apply(matrix: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    return points @ matrix[:3, :3].T + matrix[:3, 3]
