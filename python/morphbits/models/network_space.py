"""FreeSurfer 8's preparation of images for SynthMorph: a cube of 1 mm voxels about each image.

`mri_synthmorph` takes images as they come from the scanner. It resamples each one (linear, 0
outside) to a cube of 1 mm voxels with the axes left, inferior, anterior, centred on the image's
field of view, and scales it to [0, 1] (`synthmorph/registration.py` in freesurfer/freesurfer, with
the geometry of surfa: the centre of n voxels lies at index n / 2). What the network gives in that
cube comes back onto the fixed image's grid by linear interpolation.

Positions are float64 here and float32 there, so that resampled values differ in their last bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits.axes import Turn
from morphbits.errors import UserError
from morphbits.imagefiles import by
from morphbits.images import Image, NetworkGrid, Prepared, described

LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # mm, RAS, of a step along each axis


@dataclass(frozen=True)
class InNetworkSpace(Prepared):
    """A pair in network space, and the way back.

    to_network: (4, 4) voxel of the fixed grid to voxel of the network's.
    """

    to_network: NDArray[np.floating] = field(kw_only=True)
    fixed_shape: tuple[int, int, int] = field(kw_only=True)

    def moved_back(self, moved_XYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """A volume of network space on the fixed image's grid; 0 outside."""
        return _sampled(moved_XYZ, self.to_network, self.fixed_shape)

    def warp_back(self, warp_XYZV: NDArray[np.float32]) -> NDArray[np.float32]:
        """A warp of network space on the fixed image's grid and in its voxels; outside of the
        network's cube its border goes on."""
        parts = [
            _sampled(warp_XYZV[..., v], self.to_network, self.fixed_shape, "nearest")
            for v in range(3)
        ]
        to_voxels = np.linalg.solve(self.fixed_affine[:3, :3], LIA)
        back = np.stack(parts, -1).astype(np.float64) @ to_voxels.T
        return back.astype(np.float32)


def prepare(moving: Image, fixed: Image, extent: int, one_centre: bool) -> InNetworkSpace:
    """Both images in cubes of `extent` mm, each about its own centre or (`one_centre`, for images
    that are aligned already) both about the fixed image's."""
    steps = [*described("moving", moving), *described("fixed", fixed)]
    centre = _centre(fixed)
    shift = np.zeros(3) if one_centre else _centre(moving) - centre
    # rounded to what the header of a warp holds, so that what is done is what is saved
    shift = shift.astype(np.float32).astype(np.float64)
    alignment = np.eye(4)
    alignment[:3, 3] = shift
    size = (extent, extent, extent)
    arrays = []
    for role, image, middle in (("moving", moving, centre + shift), ("fixed", fixed, centre)):
        to_image = np.linalg.solve(image.affine, _affine(extent, middle))
        array = _sampled(image.data.astype(np.float32), to_image, size)
        arrays.append(_normalized(array, image, extent))
        lost = np.ceil(image.voxel_sizes * image.data.shape).max() - extent
        steps.append(
            f"conform: {role} image resampled (linear) to {by(size)} voxels of 1 mm, LIA, about "
            + ("the fixed image's centre" if one_centre else "its centre")
            + (f"; {lost:.0f} mm of its field of view are outside" if lost > 0 else "")
        )
    steps.append("normalize: each image min–max to [0, 1] in network space")
    return InNetworkSpace(
        arrays[0],
        arrays[1],
        NetworkGrid(size, (0, 0, 0), size),
        fixed.affine.copy(),
        fixed.codes,
        alignment,
        Turn(),
        steps,
        to_network=np.linalg.solve(_affine(extent, centre), fixed.affine),
        fixed_shape=fixed.data.shape,
    )


def _centre(image: Image) -> NDArray[np.float64]:
    """Of the field of view, in RAS millimetres."""
    return image.affine[:3, :3] @ (np.array(image.data.shape) / 2) + image.affine[:3, 3]


def _affine(extent: int, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel of a cube about `centre` to RAS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = LIA
    affine[:3, 3] = centre - LIA @ np.full(3, extent / 2)
    return affine


def _sampled(
    array: NDArray[np.float32],
    to_array: NDArray[np.floating],
    shape: tuple[int, ...],
    outside: str = "constant",
) -> NDArray[np.float32]:
    """`array` (X, Y, Z) on another grid, linear; outside it is 0, or its border goes on."""
    return ndimage.affine_transform(
        array, to_array[:3, :3], to_array[:3, 3], output_shape=shape, order=1, mode=outside
    )


def _normalized(array: NDArray[np.float32], image: Image, extent: int) -> NDArray[np.float32]:
    """Minimum to 0, then maximum to 1, in float32 as the tool does."""
    array = array - array.min()
    if not (highest := array.max()) > 0:
        raise UserError(
            f"{image.name}: is constant in the {extent} mm about the centre that it is resampled "
            "around; is its affine right, or are the images not aligned (MODEL=deform needs that)?"
        )
    return array / highest
