"""Saved warps: the file alone is the transform, checked against SimpleITK's own resampling."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from support.grids import GRIDS, SHAPE, SHEARED, SHIFT, grid, places, rotation, smooth

from morphbits import images
from morphbits.axes import Turn
from morphbits.cli.evaluate import evaluate
from morphbits.config import RegisterConfig
from morphbits.errors import UserError
from morphbits.imagefiles import WORTH
from morphbits.images import Image
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.provenance import data_sha256
from morphbits.samples.single import Files, register_files

LPS = np.diag([-1.0, -1.0, 1.0])
CENTRE = RegisterConfig(align="centre")


def by_simpleitk(moving_path: Path, warp_path: Path, like: Path | None) -> np.ndarray:
    """The moving image through the warp; NaN where it leads beyond the centres of the outermost
    voxels, where SimpleITK and we go on differently.

    The field that SimpleITK gets is in LPS millimetres, computed from what nibabel reads in the
    warp's header and nothing else. like: a file on the warp's grid. None: a sheared one, which
    SimpleITK's images cannot have; then it is asked point by point.
    """
    warp = nibabel.load(warp_path)
    data, affine = np.asarray(warp.dataobj, np.float64), warp.affine
    shift = np.array([float(warp.header[f"intent_p{k}"]) for k in (1, 2, 3)])
    field = data @ affine[:3, :3].T + shift
    moving = sitk.ReadImage(str(moving_path), sitk.sitkFloat64)
    points = (places(affine, data.shape[:3]) + field) @ LPS
    found = np.full(data.shape[:3], np.nan)
    for index in np.ndindex(found.shape):
        voxel = moving.TransformPhysicalPointToContinuousIndex(points[index].tolist())
        if all(0 <= i <= n - 1 for i, n in zip(voxel, moving.GetSize(), strict=True)):
            found[index] = 0 if like else moving.EvaluateAtPhysicalPoint(points[index].tolist())
    if like is None:
        return found
    displacement = sitk.GetImageFromArray((field @ LPS).transpose(2, 1, 0, 3), isVector=True)
    fixed = sitk.ReadImage(str(like))
    displacement.CopyInformation(fixed)
    transform = sitk.DisplacementFieldTransform(displacement)
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, np.nan)
    return found + sitk.GetArrayFromImage(moved).transpose(2, 1, 0)


def check(tmp_path: Path, fixed: np.ndarray, shape: tuple[int, ...], moving: np.ndarray) -> None:
    """`morphbits warp`'s arithmetic against SimpleITK's, for files on these two grids."""
    sheared = abs(fixed[:3, :3].T @ fixed[:3, :3] * (1 - np.eye(3))).max() > 1e-6
    rng = np.random.default_rng(3)
    warp = rng.uniform(-1.5, 1.5, (*shape, 3)).astype(np.float32)
    extent = tuple(n + 4 for n in SHAPE)
    away = moving.copy()
    away[:3, 3] += SHIFT
    paths = [tmp_path / f"{name}.nii.gz" for name in ("moving", "warp", "moved")]
    images.save(paths[0], smooth(moving, extent), away, (1, 1))
    images.save_warp(paths[1], warp, fixed, SHIFT, (4, 1))
    moved = images.move(images.load(paths[0]), images.load_warp(paths[1]))
    images.save(paths[2], moved.data, moved.affine, moved.codes)
    truth = by_simpleitk(paths[0], paths[1], None if sheared else paths[2])
    # Both compute in float64 from headers in float32: directions to 6e-8, over some 60 mm, twice,
    # 1e-5 mm, which is 1.5e-6 of intensity. SimpleITK makes directions orthonormal, which moves
    # them as much again; results are rounded to float32 (6e-8).
    far = np.abs(moved.data - truth)
    assert np.isfinite(far).mean() > 0.5 and np.nanmax(far) < 5e-6


@pytest.mark.parametrize("fixed", [*GRIDS.values(), *SHEARED.values()], ids=[*GRIDS, *SHEARED])
def test_a_warp_file_alone_is_the_transform(tmp_path: Path, fixed: np.ndarray) -> None:
    for moving in GRIDS.values():
        check(tmp_path, fixed, SHAPE, moving)


def test_a_warp_file_alone_is_the_transform_in_all_48_orders_of_axes(tmp_path: Path) -> None:
    others = itertools.cycle(GRIDS.values())
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Turn(order, flips)
            base = GRIDS["oblique, anisotropic, left-handed"]
            shape = tuple(SHAPE[axis] for axis in order)
            check(tmp_path, turn.affine(base, SHAPE), shape, next(others))


def test_distances_of_warps_and_labels_do_not_depend_on_how_files_are_stored(
    tmp_path: Path,
) -> None:
    """`evaluate` over all 48 orders of axes of an oblique, anisotropic grid: equal but for the
    order of some hundred float64 sums, 700 · 2^-53 at most."""
    rng = np.random.default_rng(4)
    grid = GRIDS["oblique, anisotropic, left-handed"]
    warps = [rng.normal(0, 1, (*SHAPE, 3)).astype(np.float32) for _ in range(2)]
    labels = [rng.integers(0, 3, SHAPE) for _ in range(2)]
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("a", "b", "mask")}
    found = []
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Turn(order, flips)
            affine, numbers = turn.affine(grid, SHAPE), {}
            for path, label in zip(paths.values(), (*labels, labels[0]), strict=True):
                images.save(path, turn.array(label), affine)
            for measure in ("dice", "surface", "hausdorff95"):
                numbers |= {(measure, k): v for k, v in evaluate(measure, paths).items()}
            for name, warp, shift in zip("ab", warps, (SHIFT, 0 * SHIFT), strict=True):
                signed = warp[..., list(order)] * np.where(flips, -1, 1)
                stored = np.stack([turn.array(signed[..., k]) for k in range(3)], -1)
                images.save_warp(paths[name], stored, affine, shift)
            found.append(numbers | evaluate("warp", paths))
    assert found[0]["mean_mm"] > 20 and len(found[0]) == 8
    for numbers in found[1:]:
        assert numbers == pytest.approx(found[0], rel=1e-12)


# ------------------------------------------------------------------------- what `register` writes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5, orientation="LIA")
    path = tmp_path_factory.mktemp("model") / "tiny.h5"
    save_h5(path, architecture, init_weights(architecture, 1))
    return path


def registered(
    tmp_path: Path,
    model: Path,
    fixed: Image,
    moving: Image,
    suffix: str,
    config: RegisterConfig = CENTRE,
    **more: Path,
) -> Files:
    files = Files(
        tmp_path / "moving.nii.gz",
        tmp_path / "fixed.nii.gz",
        model,
        tmp_path / "moved.nii.gz",
        tmp_path / f"warp{suffix}",
        **more,
    )
    images.save(files.moving, moving.data, moving.affine, (1, 1))
    images.save(files.fixed, fixed.data, fixed.affine, fixed.codes)
    register_files(files, config)
    return files


def far_apart(fixed: np.ndarray) -> tuple[Image, Image]:
    """A fixed image, and the same a world away, on another grid."""
    shape = (20, 18, 22)
    moving = grid(rotation(5, 10, -8), (2.0, 1.9, 2.1), shape)
    made = []
    for affine in (fixed, moving):
        blob = np.exp(-((places(affine, shape) - (3, -2, 1.5)) ** 2).sum(-1) / 150)
        made.append(Image(np.float32(blob * smooth(affine, shape)), affine))
    made[1].affine[:3, 3] += 150, -90, 40
    return made[0], made[1]


@pytest.mark.parametrize("suffix", [".nii.gz", ".npz"])
def test_what_register_writes_needs_no_record(tmp_path: Path, model: Path, suffix: str) -> None:
    """Centres aligned, axes of the file other than the model's: moving the image by the saved warp
    gives the moved image, up to its two interpolations instead of one."""
    fixed, moving = far_apart(grid(np.eye(3)[:, [2, 0, 1]] * [1, -1, 1], (2, 2, 2), (20, 18, 22)))
    files = registered(tmp_path, model, fixed, moving, suffix)
    warp = images.load_warp(files.warp)
    assert warp.shift is not None and np.abs(warp.shift).max() > 100 and not warp.notes
    assert np.abs(warp.data).max() > 0.3  # voxels: an untrained network's
    moved = images.normalize(images.move(images.load(files.moving), warp).data)
    network = images.load(files.moved).data
    assert np.corrcoef(moved.ravel(), network.ravel())[0, 1] > 0.995
    warp.shift = None
    assert np.ptp(images.move(images.load(files.moving), warp).data) == 0  # leads elsewhere
    if suffix == ".nii.gz":
        truth = by_simpleitk(files.moving, files.warp, files.moved)
        seen = np.isfinite(truth)
        assert np.corrcoef(truth[seen], network[seen])[0, 1] > 0.995


@pytest.mark.parametrize("form", ["ras", "itk", "fsl"])
def test_register_writes_other_formats_and_the_image_in_its_intensities(
    tmp_path: Path, model: Path, form: str
) -> None:
    """The warp's file gives the resampled image; the record and the sidecar say what they are."""
    fixed, moving = far_apart(GRIDS["oblique"])
    moving.data = 70 + 900 * moving.data
    resampled = tmp_path / "resampled.nii.gz"
    files = registered(tmp_path, model, fixed, moving, ".nii.gz", resampled=resampled)
    image, warp = images.load(files.moving), images.load_warp(files.warp)
    again = images.load(resampled).data
    assert np.array_equal(images.move(image, warp).data, again) and again.max() > 500
    network = images.load(files.moved).data
    assert np.corrcoef(again.ravel(), network.ravel())[0, 1] > 0.99 and network.max() <= 1

    config = RegisterConfig(align="centre", warp_format=form)
    files = registered(tmp_path, model, fixed, moving, ".nii.gz", config, resampled=resampled)
    assert np.array_equal(images.load(resampled).data, again)  # of the warp, not of its file
    warp = images.load_warp(files.warp, moving=image)
    # displacements of up to 170 mm in float32, 8e-6 mm, where 900 levels change by 0.15 per mm
    assert np.abs(images.move(image, warp).data - again).max() < 900 * 0.15 * 8e-6 * 3
    record = json.loads((tmp_path / "sample.json").read_text())
    assert record["configuration"]["warp_format"] == form
    for name, path in (("warp", files.warp), ("resampled", resampled)):
        stored = np.asarray(nibabel.load(path).dataobj)
        assert record["outputs"][name]["sha256"] == data_sha256(stored)
    sidecar = json.loads((tmp_path / "warp.json").read_text())
    assert sidecar["Format"] == form and sidecar["Units"] == "mm"
    assert sidecar["Sources"] == [str(files.moving), str(files.fixed)]


def test_mgz_has_no_place_for_the_shift(tmp_path: Path, model: Path) -> None:
    fixed, moving = far_apart(GRIDS["upright"])
    with pytest.raises(UserError, match=r"warp\.mgz: .*\.nii\.gz"):
        registered(tmp_path, model, fixed, moving, ".mgz")
    assert not (tmp_path / "moved.nii.gz").exists()


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (4, 4), (4, 1), (0, 3), (3, 0)])
def test_outputs_carry_the_codes_of_the_fixed_image(
    tmp_path: Path, model: Path, codes: tuple[int, int]
) -> None:
    """Read by nibabel and by SimpleITK, moved image and warp, in millimetres and on its grid."""
    fixed, moving = far_apart(GRIDS["oblique"])
    fixed.codes = codes
    files = registered(tmp_path, model, fixed, moving, ".nii.gz")
    expected = nibabel.load(files.fixed)
    for path in (files.moved, files.warp):
        header = nibabel.load(path).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == codes
        assert header.get_xyzt_units()[0] == "mm"
        assert np.array_equal(nibabel.load(path).affine, expected.affine)
        read = sitk.ReadImage(str(path))
        assert read.GetMetaData("sform_code") == str(codes[0])
        assert read.GetMetaData("qform_code") == str(codes[1])
    moved, fixed_read = (sitk.ReadImage(str(p)) for p in (files.moved, files.fixed))
    assert moved.GetDirection() == fixed_read.GetDirection()
    assert moved.GetOrigin() == fixed_read.GetOrigin()
    assert moved.GetSpacing() == fixed_read.GetSpacing()
    assert json.loads((tmp_path / "sample.json").read_text())["provenance"]["alignment"]


def test_a_warp_is_compressed_where_that_is_worth_it(tmp_path: Path) -> None:
    """As well as by a search for repetitions, a hundredth larger at most, where zeros shrink; and
    stored as it is, in a tenth of the time, where its last digits are noise and little else."""
    noise = np.random.default_rng(1).normal(0, 2, (24, 24, 24, 3)).astype(np.float32)
    half = noise.copy()
    half[:, :, :12] = 0
    for warp, compressed in ((noise, False), (half, True), (np.zeros_like(noise), True)):
        images.save_warp(tmp_path / "warp.nii.gz", warp, np.eye(4), np.zeros(3))
        saved = (tmp_path / "warp.nii.gz").read_bytes()
        raw = gzip.decompress(saved)
        assert raw.endswith(warp.tobytes(order="F"))
        searched = len(gzip.compress(raw, 1)) + 200  # and a header's bytes
        if compressed:
            assert len(saved) <= 1.01 * searched
        else:
            assert len(raw) < len(saved) < searched / (1 - WORTH)
