"""Reading, refusing, conforming, padding, saving images."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import tempfile
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphbits import images
from morphbits.errors import UserError
from morphbits.images import Image, NetworkGrid

RNG = np.random.default_rng(0)
SHAPE = (7, 9, 5)
OBLIQUE = np.array(
    [[1.8, -0.5, 0.1, 3], [0.6, 1.7, 0.3, -8], [-0.2, -0.2, 2.4, 5], [0, 0, 0, 1]], np.float64
)


def volume(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(np.float32)


def nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def ball(shape: tuple[int, int, int], affine: np.ndarray, centre_mm: tuple[float, ...]) -> Image:
    """A smooth blob of 8 mm around a point of the world, on any grid."""
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    distance = np.sqrt(((world - np.array(centre_mm)[:, None]) ** 2).sum(0)).reshape(shape)
    return Image(np.maximum(0, 1 - distance / 8).astype(np.float32), affine)


# -------------------------------------------------------------------------------- load


@pytest.mark.parametrize("extension", images.EXTENSIONS)
@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE, np.diag([-1.0, 1, 1, 1])])
def test_what_is_saved_is_loaded(tmp_path: Path, extension: str, affine: np.ndarray) -> None:
    data = volume()
    images.save(tmp_path / f"a{extension}", data, affine)
    loaded = images.load(tmp_path / f"a{extension}")
    assert loaded.data.tobytes() == data.tobytes()
    assert loaded.data.flags.c_contiguous and loaded.has_affine
    # headers hold float32: 1e-5 of coordinates up to some tens of millimetres
    assert np.abs(loaded.affine - affine).max() < 1e-5
    warp = RNG.standard_normal((*SHAPE, 3)).astype(np.float32)
    images.save(tmp_path / f"w{extension}", warp, affine)
    assert images.load_warp(tmp_path / f"w{extension}").data.tobytes() == warp.tobytes()
    labels = RNG.integers(0, 70000, SHAPE)
    images.save(tmp_path / f"l{extension}", labels, affine)
    assert np.array_equal(images.load_labels(tmp_path / f"l{extension}").data, labels)


@pytest.mark.parametrize("dtype", ["<u1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f4", "<f8"])
def test_every_stored_type(tmp_path: Path, dtype: str) -> None:
    data = volume()
    path = nifti(tmp_path / "a.nii", data.astype(dtype))
    assert images.load(path).data.dtype == np.float32
    assert np.array_equal(images.load(path).data, data)


def test_stored_scaling_is_applied(tmp_path: Path) -> None:
    stored = nibabel.Nifti1Image(volume().astype(np.int16), np.eye(4))
    stored.header.set_slope_inter(0.5, -3)
    nibabel.save(stored, tmp_path / "a.nii.gz")
    raw = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj.get_unscaled())
    assert np.array_equal(images.load(tmp_path / "a.nii.gz").data, raw * np.float32(0.5) - 3)


def test_nifti_without_any_orientation_has_no_affine(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volume(), None)
    image.header["pixdim"][1:4] = 2
    nibabel.save(image, tmp_path / "a.nii")
    loaded = images.load(tmp_path / "a.nii")
    assert not loaded.has_affine and loaded.voxel_sizes.tolist() == [2, 2, 2]


def test_nifti2_and_trailing_axis(tmp_path: Path) -> None:
    data = volume()
    nibabel.save(nibabel.Nifti2Image(data[..., None], OBLIQUE), tmp_path / "a.nii.gz")
    assert np.array_equal(images.load(tmp_path / "a.nii.gz").data, data)


def test_npz_is_taken_as_voxelmorph_takes_it(tmp_path: Path) -> None:
    data = volume((4, 6, 8))
    np.savez(tmp_path / "a.npz", vol=data, seg=data > 5)
    loaded = images.load(tmp_path / "a.npz")
    assert np.array_equal(loaded.data, data) and not loaded.has_affine
    expected = [[-1, 0, 0, 2], [0, 0, 1, -4], [0, -1, 0, 3], [0, 0, 0, 1]]
    assert loaded.affine.tolist() == expected
    assert nibabel.aff2axcodes(loaded.affine) == ("L", "I", "A")


def damaged(kind: str, folder: Path) -> Path:
    """One file for each way in which an image can be unusable."""
    good = nifti(folder / "good.nii.gz", volume())
    path = folder / f"{kind}.nii.gz"
    data = volume()
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-40])
    elif kind == "bit flip":
        raw = bytearray(good.read_bytes())
        raw[-5] ^= 1  # in the checksum: every voxel can still be read
        path.write_bytes(raw)
    elif kind == "truncated inside":
        path.write_bytes(gzip.compress(gzip.decompress(good.read_bytes())[:-40]))
    elif kind == "not gzip":
        path.write_bytes(b"this is no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not finite":
        data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
        nifti(path, data)
    elif kind == "too large":
        nifti(path, np.where(data == data.max(), 1e300, data.astype(np.float64)))
    elif kind == "4-D":
        nifti(path, np.stack([data, data], -1))
    elif kind == "2-D":
        nifti(path, data[..., 0])
    elif kind == "constant":
        nifti(path, np.full(SHAPE, 3, np.float32))
    elif kind == "complex":
        nifti(path, data.astype(np.complex64))
    elif kind == "rgb":
        nifti(path, np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))
    elif kind == "singular":
        raw = bytearray(nibabel.Nifti1Image(data, np.eye(4)).to_bytes())
        raw[280:296] = bytes(16)  # srow_x
        path.write_bytes(gzip.compress(raw))
    elif kind == "missing":
        pass
    elif kind == "folder":
        path.mkdir()
    elif kind == "no extension":
        path = good.rename(folder / "scan.img")
    elif kind == "npz text":
        path = folder / "a.npz"
        path.write_bytes(b"PK\x03\x04 and then nothing")
    elif kind == "npz names":
        path = folder / "a.npz"
        np.savez(path, a=data, b=data)
    elif kind == "npz objects":
        path = folder / "a.npz"
        np.savez(path, vol=np.array([{}], dtype=object))
    elif kind == "npz cut":
        np.savez_compressed(folder / "b.npz", vol=data)
        path = folder / "a.npz"
        path.write_bytes((folder / "b.npz").read_bytes()[:-30])
    else:
        raise AssertionError(kind)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "damaged, cut short"),
        ("bit flip", "damaged, cut short"),
        ("truncated inside", "damaged, cut short"),
        ("not gzip", "not what its name says"),
        ("empty", "damaged, cut short"),
        ("not finite", "3 voxels of 315 that are not finite"),
        ("too large", "not finite"),
        ("4-D", "7 × 9 × 5 × 2"),
        ("2-D", "7 × 9"),
        ("constant", "constant .every voxel is 3"),
        ("complex", "complex64"),
        ("rgb", "one real number per voxel"),
        ("singular", "affine cannot be inverted"),
        ("missing", "no file"),
        ("folder", "not a file"),
        ("no extension", "use one of .nii.gz"),
        ("npz text", "damaged, cut short"),
        ("npz names", "must be named 'vol'"),
        ("npz objects", "damaged, cut short"),
        ("npz cut", "damaged, cut short"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, kind: str, says: str) -> None:
    path = damaged(kind, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        images.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    extension=st.sampled_from([".nii", ".mgh", ".npz"]),
    changes=st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=4),
    keep=st.none() | st.integers(0, 1500),
)
def test_damaged_headers_never_end_in_a_traceback(
    extension: str, changes: dict[int, int], keep: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{extension}")
        images.save(path, volume(), OBLIQUE)
        raw = bytearray(path.read_bytes())
        for position, value in changes.items():
            raw[position % len(raw)] = value
        path.write_bytes(raw[:keep])
        with contextlib.suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = images.load(path)
            assert np.isfinite(loaded.data).all() and loaded.data.ndim == 3


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", volume() / 7)
    too_large = nifti(tmp_path / "large.nii", volume() + 2**40)
    with pytest.raises(UserError, match="not label numbers"):
        images.load_labels(too_large)
    with pytest.raises(UserError, match="not label numbers"):
        images.load_labels(path)
    with pytest.raises(UserError, match="a warp is"):
        images.load_warp(path)
    np.savez(tmp_path / "constant.npz", vol=np.zeros(SHAPE))  # allowed for labels
    assert not images.load_labels(tmp_path / "constant.npz").data.any()


# -------------------------------------------------------------------------------- save


@pytest.mark.parametrize("extension", images.EXTENSIONS)
def test_same_data_same_bytes(tmp_path: Path, extension: str) -> None:
    data = volume()
    for name in ("a", "other"):
        images.save(tmp_path / f"{name}{extension}", data, OBLIQUE)
    one, two = (tmp_path / f"{name}{extension}" for name in ("a", "other"))
    assert one.read_bytes() == two.read_bytes()
    if extension.endswith("gz"):
        assert one.read_bytes()[3:8] == bytes(5)  # no file name flag, no time


def test_saved_nifti_states_its_unit(tmp_path: Path) -> None:
    images.save(tmp_path / "a.nii.gz", volume(), OBLIQUE)
    assert nibabel.load(tmp_path / "a.nii.gz").header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("codes", [(2, 0), (4, 1), (1, 1), (0, 1), (5, 0)])
def test_codes_of_the_world_are_read_and_written(tmp_path: Path, codes: tuple[int, int]) -> None:
    rotated = OBLIQUE.copy()
    rotated[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * 1.5  # a quaternion has no shears
    images.save(tmp_path / "a.nii.gz", volume(), rotated, codes)
    loaded = images.load(tmp_path / "a.nii.gz")
    assert loaded.codes == codes and np.abs(loaded.affine - rotated).max() < 1e-5
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == codes


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_warps_of_other_programs_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    """The same numbers, with and without the code that says what they are."""
    path = tmp_path / f"warp{suffix}"
    images.save(path, RNG.random((*SHAPE, 3)).astype("f4"), OBLIQUE)
    raw = gzip.decompress(path.read_bytes())
    assert images.load_warp(path).intent == 0
    codes: dict[str, tuple[bytes, str]] = {}
    if suffix == ".mgz":
        codes = {"warp": (raw[:2] + b"\x06" + raw[3:], "FreeSurfer's warp")}
    else:
        for code, says in ((2006, "FSL"), (1006, "millimetres"), (1007, "ITK"), (2, "code 2")):
            codes[says] = raw[:68] + code.to_bytes(2, "little") + raw[70:], says
    for content, says in codes.values():
        path.write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match=f"{says}.*not a displacement in voxels"):
            images.load_warp(path)


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"what was there")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.nii\.gz .No space left on device.: make room"):
        images.save(tmp_path / "a.nii.gz", volume(), OBLIQUE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == b"what was there"


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder"):
        images.save(tmp_path / "file" / "a.nii.gz", volume(), OBLIQUE)
    with pytest.raises(UserError, match="use one of"):
        images.save(tmp_path / "a.tif", volume(), OBLIQUE)


# -------------------------------------------------------------------------------- grids


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 99),
    components=st.sampled_from([(), (3,)]),
)
def test_padding_comes_back_exactly(
    shape: tuple[int, int, int], seed: int, components: tuple[int, ...]
) -> None:
    array = np.random.default_rng(seed).standard_normal((*shape, *components)).astype("f4")
    grid = NetworkGrid.around(shape)
    padded = grid.pad(array)
    assert all(n % 16 == 0 and n - m < 16 for n, m in zip(padded.shape, shape, strict=False))
    assert grid.unpad(padded).tobytes() == array.tobytes()
    assert np.isclose(padded.sum(dtype=np.float64), array.sum(dtype=np.float64), atol=1e-6)


@given(
    shape=st.tuples(*[st.integers(2, 40)] * 3),
    corners=st.tuples(*[st.tuples(st.integers(0, 38), st.integers(1, 39))] * 3),
)
def test_cropping_keeps_the_box_in_its_place(
    shape: tuple[int, int, int], corners: tuple[tuple[int, int], ...]
) -> None:
    box = tuple(
        slice(min(a, n - 1), min(max(a + 1, b), n))
        for (a, b), n in zip(corners, shape, strict=True)
    )
    array = np.zeros(shape, np.float32)
    array[box] = 1 + RNG.random(array[box].shape)
    grid = NetworkGrid.around(shape, box)
    assert all(n % 16 == 0 for n in grid.size)
    assert np.array_equal(grid.unpad(grid.pad(array)), array)


# ------------------------------------------------------------------------------ prepare


def test_same_grid_is_untouched_bit_for_bit() -> None:
    data = RNG.random((16, 32, 16)).astype(np.float32)
    data.flat[:2] = 0, 1
    moving = Image(data.copy(), OBLIQUE + 1e-7)
    prepared = images.prepare(moving, Image(data[::-1].copy(), OBLIQUE))
    assert prepared.moving.tobytes() == data.tobytes()
    assert prepared.grid.size == (16, 32, 16)
    assert any("taken as it is" in step for step in prepared.steps)
    assert any("multiple of 16 already" in step for step in prepared.steps)


@pytest.mark.parametrize("axes", [np.diag([1, 1, 1, 1]), np.diag([-1, 1, 1, 1]), OBLIQUE / 1.5])
def test_resampling_finds_the_same_place_of_the_world(axes: np.ndarray) -> None:
    """A ball of the world is where it was, whatever grid it is seen on (left-handed, oblique)."""
    centre = (4.0, -3.0, 6.0)
    fixed_affine = np.diag([1.5, 1.2, 1.0, 1])
    fixed_affine[:3, 3] = -20, -25, -12
    moving_affine = axes.astype(np.float64)
    moving_affine[3] = 0, 0, 0, 1
    moving_affine[:3, 3] = centre - moving_affine[:3, :3] @ np.array([14.2, 13.1, 15.7])
    moving = ball((30, 29, 31), moving_affine, centre)
    fixed = ball((31, 43, 37), fixed_affine, centre)
    prepared = images.prepare(moving, fixed, align="header")
    back = prepared.grid.unpad(prepared.moving)
    assert back.shape == fixed.data.shape
    # trilinear interpolation of a cone of slope 1/8 on voxels up to 1.7 mm wide
    assert np.abs(back - images.normalize(fixed.data)).max() < 0.15
    assert np.abs(back - images.normalize(fixed.data)).mean() < 0.005


def test_axes_in_another_order_are_moved_exactly() -> None:
    data = RNG.random((8, 9, 10)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    flipped = Image(data[::-1].transpose(2, 0, 1).copy(), np.zeros((4, 4)))
    flipped.affine = np.array([[0, -2, 0, 14], [0, 0, 2, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    back = images.resample(flipped, data.shape, affine)
    assert np.abs(back.data - data).max() < 1e-6


def test_centres_are_aligned_where_headers_do_not_help() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    fixed = ball((32, 32, 32), affine, (30, 32, 28))
    near, far = ball((32, 32, 32), affine, (40, 32, 28)), ball((32, 32, 32), affine, (30, 32, 28))
    far.affine = affine.copy()
    far.affine[:3, 3] = 100, -50, 30
    assert "header" in images.alignment_of(near, fixed)[1]
    alignment, step = images.alignment_of(far, fixed)
    assert np.abs(alignment[:3, 3] - (100, -50, 30)).max() < 1e-4
    assert "centre" in step and "that is far" in step
    prepared = images.prepare(far, fixed)
    assert np.abs(prepared.moving - prepared.fixed).max() < 1e-5
    near.has_affine = False
    assert "no affine" in images.alignment_of(near, fixed)[1]
    assert "centre" in images.alignment_of(near, fixed, "centre")[1]
    assert "header" in images.alignment_of(far, fixed, "header")[1]
    with pytest.raises(UserError, match="use auto, header or centre"):
        images.alignment_of(near, fixed, "best")
    with pytest.raises(UserError, match="do not overlap"):
        images.prepare(far, fixed, "header")


def test_images_end_in_0_1_and_crop_to_what_they_show() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    moving, fixed = (ball((50, 50, 50), affine, (50 + d, 50, 50)) for d in (0, 6))
    moving.data = moving.data * 300 - 20
    whole, cropped = (images.prepare(moving, fixed, crop=crop) for crop in (False, True))
    for prepared in (whole, cropped):
        for array in (prepared.moving, prepared.fixed):
            assert array.dtype == np.float32 and array.shape == prepared.grid.size
            assert (array.min(), array.max()) == (0, 1)
        assert np.array_equal(prepared.fixed_affine, affine)
    assert whole.grid.size == (64, 64, 64) and cropped.grid.size == (16, 16, 16)
    assert np.array_equal(whole.grid.unpad(whole.moving), cropped.grid.unpad(cropped.moving))


def test_resampling_through_a_warp() -> None:
    """resample(warp) at x is the image at x + warp(x): shifting by whole voxels is exact."""
    image = Image(volume((6, 7, 8)), OBLIQUE)
    warp = np.zeros((6, 7, 8, 3), np.float32)
    warp[..., 1] = 2
    moved = images.resample(image, (6, 7, 8), OBLIQUE, warp=warp).data
    # inverting the oblique affine leaves 1e-14 of a voxel, times intensities up to 200
    assert np.allclose(moved[:, :4], image.data[:, 2:6], atol=1e-4)
    image.data = image.data.astype(np.int32)
    moved = images.resample(image, (6, 7, 8), OBLIQUE, order=0, warp=warp + np.float32(0.3)).data
    assert moved.dtype == np.int32 and np.array_equal(moved[:5, :4], image.data[:5, 2:6])


def test_jacobian_of_known_maps() -> None:
    x = np.indices((6, 7, 8)).transpose(1, 2, 3, 0).astype(np.float64)
    scale = x @ np.diag([0.5, 0.1, -0.2])
    assert np.allclose(images.jacobian_determinant(scale), 1.5 * 1.1 * 0.8)
    assert np.allclose(images.jacobian_determinant(0 * x), 1)
    assert np.allclose(images.jacobian_determinant(x @ np.diag([-2.0, 0, 0])), -1)
    shear = x @ np.array([[0, 0.3, 0], [0.2, 0, 0], [0, 0, 0]])
    assert np.allclose(images.jacobian_determinant(shear), 1 - 0.3 * 0.2)
