"""Formats of warps: each file is the whole transform, applied by other programs and by us.

`make test` has SimpleITK only. For the others (marked slow), in an environment of their own:

    pip install antspyx itk-elastix nitransforms fslpy surfa
    cd python && python -m pytest ../tests/test_transforms.py -rA
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates
from support.grids import GRIDS, SHAPE, SHEARED, SHIFT, grid, rotation, smooth

from morphbits import images
from morphbits.choices import WARP_FORMATS
from morphbits.errors import UserError
from morphbits.images import Image

FIXED = GRIDS | SHEARED
MOVING = {
    "upright": grid(np.eye(3), (1.8, 2.4, 1.3), SHAPE),
    "oblique, left-handed": grid(rotation(40, 15, -20) * [1, 1, -1], (1.8, 2.4, 1.3), SHAPE),
}
EXTENT = (32, 26, 44)  # of moving images: the fixed grids lie in their inside
WARP = np.random.default_rng(3).uniform(-1.5, 1.5, (*SHAPE, 3)).astype(np.float32)


def pair(folder: Path, fixed: str, moving: str, form: str) -> tuple[Path, Path, np.ndarray]:
    """Files of a moving image and of a warp, and the image moved by our own arithmetic."""
    affine, base = FIXED[fixed], MOVING[moving].copy()
    middle = affine[:3] @ [*((np.array(SHAPE) - 1) / 2), 1]
    base[:3, 3] = middle + SHIFT - base[:3, :3] @ ((np.array(EXTENT) - 1) / 2)
    image_path, warp_path = (folder / f"{name}.nii.gz" for name in ("moving", "warp"))
    images.save(image_path, smooth(base, EXTENT), base, (1, 1))
    image = images.load(image_path)
    images.save_warp(warp_path, WARP, affine, SHIFT, (1, 1), form, image)
    moved = images.move(image, Image(WARP, affine, shift=SHIFT)).data
    return image_path, warp_path, moved


def simpleitk(moving: Path, warp: Path) -> np.ndarray:
    field = sitk.ReadImage(str(warp), sitk.sitkVectorFloat64)
    reference = sitk.VectorIndexSelectionCast(field, 0)
    transform = sitk.DisplacementFieldTransform(field)
    image = sitk.ReadImage(str(moving), sitk.sitkFloat64)
    moved = sitk.Resample(image, reference, transform, sitk.sitkLinear, np.nan)
    return sitk.GetArrayFromImage(moved).T


def ants(moving: Path, warp: Path) -> np.ndarray:
    module = pytest.importorskip("ants")
    image = module.image_read(str(moving))
    values = nibabel.load(warp)
    reference_path = warp.with_name("reference.nii.gz")
    images.save(reference_path, np.zeros(values.shape[:3], np.float32), values.affine, (1, 1))
    reference = module.image_read(str(reference_path))
    moved = module.apply_transforms(reference, image, [str(warp)], "linear", defaultvalue=0)
    return moved.numpy()


def transformix(moving: Path, warp: Path) -> np.ndarray:
    itk = pytest.importorskip("itk", reason="needs itk-elastix")
    if not hasattr(itk, "transformix_filter"):
        pytest.skip("needs itk-elastix")
    field = sitk.ReadImage(str(warp))
    words = {
        "Transform": ["DeformationFieldTransform"],
        "NumberOfParameters": ["0"],
        "DeformationFieldFileName": [str(warp)],
        "DeformationFieldInterpolationOrder": ["1"],
        "FixedImageDimension": ["3"],
        "MovingImageDimension": ["3"],
        "HowToCombineTransforms": ["Compose"],
        "InitialTransformParametersFileName": ["NoInitialTransform"],
        "Size": [str(n) for n in field.GetSize()],
        "Index": ["0", "0", "0"],
        "Spacing": [str(v) for v in field.GetSpacing()],
        "Origin": [str(v) for v in field.GetOrigin()],
        # elastix has the matrix column by column
        "Direction": [str(v) for v in np.reshape(field.GetDirection(), (3, 3)).T.ravel()],
        "UseDirectionCosines": ["true"],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": ["0"],
        "ResultImagePixelType": ["float"],
    }
    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap(words)
    image = itk.imread(str(moving), itk.F)
    moved = itk.transformix_filter(image, parameters, log_to_console=False)
    return itk.array_from_image(moved).T


def nitransforms(moving: Path, warp: Path) -> np.ndarray:
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    resampling = pytest.importorskip("nitransforms.resampling")
    code = int(nibabel.load(warp).header["intent_code"])
    make = nonlinear.DenseFieldTransform
    form = {1007: "itk", 2006: "fsl"}.get(code)
    transform = make.from_filename(warp, fmt=form) if form else make(nibabel.load(warp))
    return np.asarray(resampling.apply(transform, nibabel.load(moving), order=1).dataobj)


def fslpy(moving: Path, warp: Path) -> np.ndarray:
    nonlinear = pytest.importorskip("fsl.transform.nonlinear", reason="needs fslpy")
    image = pytest.importorskip("fsl.data.image")
    source = image.Image(str(moving))
    field = nonlinear.DeformationField(str(warp), source, defType="relative")
    return nonlinear.applyDeformation(source, field)


def surfa(moving: Path, warp: Path) -> np.ndarray:
    module = pytest.importorskip("surfa")
    image, transform = module.load_volume(str(moving)), module.load_warp(str(warp))
    transform.source = image.geom
    return transform.transform(image).data


READERS: dict[Callable[[Path, Path], np.ndarray], tuple[str, ...]] = {
    simpleitk: ("itk", "ras"),
    ants: ("itk", "ras"),
    transformix: ("itk", "ras"),
    nitransforms: ("itk", "ras"),
    surfa: ("ras",),
    fslpy: ("fsl",),
}
OF_ITK = (simpleitk, ants, transformix)  # whose images cannot be sheared
# Ours is computed in float64 from the warp in float32; the others get float32 displacements of up
# to 60 mm (rounded to 2e-6 mm), on grids from headers in float32 (1e-5 mm, see test_warp_files),
# and some compute voxel indices of up to 44 in float32 (2e-6 voxels of 2.4 mm, a few times). The
# image changes by 0.15 per mm at most, and is rounded to float32: together below 5e-6.
BOUND = 5e-6


@pytest.mark.parametrize(
    ("reader", "form"),
    [
        pytest.param(
            reader,
            form,
            marks=() if reader is simpleitk else pytest.mark.slow,
            id=f"{reader.__name__}-{form}",
        )
        for reader, forms in READERS.items()
        for form in forms
    ],
)
def test_other_programs_move_the_image_as_we_do(
    tmp_path: Path, reader: Callable[[Path, Path], np.ndarray], form: str
) -> None:
    grids = [g for g in FIXED if g not in SHEARED or (reader not in OF_ITK and form != "itk")]
    for fixed in grids:
        for moving in MOVING:
            image, warp, moved = pair(tmp_path, fixed, moving, form)
            far = np.abs(reader(image, warp) - moved).max()
            assert far < BOUND, (fixed, moving)
    assert np.ptp(moved) > 0.3  # and there is something to see


@pytest.mark.parametrize("fixed", FIXED)
def test_fsl_field_by_its_definition(tmp_path: Path, fixed: str) -> None:
    """At each voxel: voxel sizes and direction of the first axis from the two files' headers."""
    image_path, warp_path, moved = pair(tmp_path, fixed, "oblique, left-handed", "fsl")
    field, image = nibabel.load(warp_path), nibabel.load(image_path)
    assert int(field.header["intent_code"]) == 2006 and field.ndim == 4

    def millimetres(file: nibabel.Nifti1Image, index: np.ndarray) -> np.ndarray:
        index = np.array(index, np.float64)
        if np.linalg.det(file.affine[:3, :3]) > 0:
            index[0] = file.shape[0] - 1 - index[0]
        return index * file.header.get_zooms()[:3]  # its own inverse but for the sizes

    data, values = np.asarray(field.dataobj, np.float64), image.get_fdata()
    for index in [(0, 0, 0), (8, 10, 7), (3, 5, 2), (7, 1, 6)]:
        place = millimetres(field, np.array(index)) + data[index]
        voxel = place / image.header.get_zooms()[:3]
        if np.linalg.det(image.affine[:3, :3]) > 0:
            voxel[0] = image.shape[0] - 1 - voxel[0]
        found = map_coordinates(values, voxel[:, None], order=1)
        assert abs(found[0] - moved[index]) < BOUND


@pytest.mark.parametrize("form", WARP_FORMATS)
def test_we_read_what_we_write(tmp_path: Path, form: str) -> None:
    for fixed in FIXED:
        if form == "itk" and fixed in SHEARED:
            continue
        image_path, warp_path, moved = pair(tmp_path, fixed, "upright", form)
        image = images.load(image_path)
        warp = images.load_warp(warp_path, moving=image)
        assert np.abs(images.move(image, warp).data - moved).max() < BOUND
        assert warp.data.shape == WARP.shape and warp.codes[0] == 1


@pytest.mark.slow
def test_what_freesurfers_library_writes_is_read_or_refused_by_name(tmp_path: Path) -> None:
    surfa = pytest.importorskip("surfa")
    for fixed in GRIDS:
        image_path, warp_path, moved = pair(tmp_path, fixed, "oblique, left-handed", "ras")
        transform = surfa.load_warp(str(warp_path))
        transform.source = surfa.load_volume(str(image_path)).geom
        transform.save(str(tmp_path / "surfa.nii.gz"))
        found = images.move(images.load(image_path), images.load_warp(tmp_path / "surfa.nii.gz"))
        assert np.abs(found.data - moved).max() < BOUND
    transform.save(str(tmp_path / "surfa.mgz"))
    with pytest.raises(UserError, match="FreeSurfer"):
        images.load_warp(tmp_path / "surfa.mgz")


def test_what_a_format_cannot_say_is_refused(tmp_path: Path) -> None:
    for sheared in SHEARED:
        with pytest.raises(UserError, match="sheared"):
            pair(tmp_path, sheared, "upright", "itk")
        _, warp, _ = pair(tmp_path, sheared, "upright", "ras")
        with pytest.raises(RuntimeError, match="orthonormal"):  # not read as if it were upright
            sitk.ReadImage(str(warp))
    image_path, warp_path, _ = pair(tmp_path, "upright", "upright", "fsl")
    with pytest.raises(UserError, match=r"without the moving image.*--moving"):
        images.load_warp(warp_path)
    image = images.load(image_path)
    with pytest.raises(UserError, match=r"npz: a warp in format itk is a NIfTI file"):
        images.save_warp(tmp_path / "a.npz", WARP, np.eye(4), SHIFT, form="itk")
    with pytest.raises(UserError, match="needs the moving image"):
        images.save_warp(tmp_path / "a.nii", WARP, np.eye(4), SHIFT, form="fsl")
    header = nibabel.load(image_path)
    header.header["pixdim"][1:4] = 5
    nibabel.Nifti1Image(header.dataobj, None, header.header).to_filename(image_path)
    image = images.load(image_path)
    with pytest.raises(UserError, match=r"voxels of 5.0 × 5.0 × 5.0 \(pixdim\)"):
        images.save_warp(tmp_path / "a.nii", WARP, np.eye(4), SHIFT, form="fsl", moving=image)
    assert not list(tmp_path.glob("a.*"))


def test_fsl_fields_of_positions_are_refused_and_displacements_read(tmp_path: Path) -> None:
    """As FSL's own programs write them: nothing but the intent's code says what they are."""
    image_path, warp_path, moved = pair(tmp_path, "upright", "upright", "fsl")
    file, image = nibabel.load(warp_path), images.load(image_path)
    file.header["intent_name"] = ""
    relative, absolute = tmp_path / "relative.nii", tmp_path / "absolute.nii"
    values = np.asarray(file.dataobj)
    nibabel.Nifti1Image(values, None, file.header).to_filename(relative)
    positions = values + 2 * (np.moveaxis(np.indices(SHAPE), 0, -1) * [-1, 1, 1] + [8, 0, 0])
    nibabel.Nifti1Image(positions, None, file.header).to_filename(absolute)
    warp = images.load_warp(relative, moving=image)
    assert np.abs(images.move(image, warp).data - moved).max() < BOUND
    with pytest.raises(UserError, match="absolute positions"):
        images.load_warp(absolute, moving=image)


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [(1007, "Mapping", "SPM's positions"), (1007, "NREG_TRANS", "NiftyReg"), (2007, "", "cubic")],
)
def test_transforms_of_other_kinds_are_refused_by_name(
    tmp_path: Path, code: int, name: str, says: str
) -> None:
    _, path, _ = pair(tmp_path, "upright", "upright", "itk")
    file = nibabel.load(path)
    file.header["intent_code"], file.header["intent_name"] = code, name
    changed = tmp_path / "changed.nii"
    nibabel.Nifti1Image(file.dataobj, None, file.header).to_filename(changed)
    with pytest.raises(UserError, match=f"{says}.*none of the formats that are read"):
        images.load_warp(changed)
