"""Reading, refusing, saving files of images."""

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
from support.random_images import OBLIQUE, RNG, SHAPE, volume

from morphbits import images
from morphbits.errors import UserError


def nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


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
    elif kind == "half a pair":
        path = folder / "scan.img"
        path.write_bytes(data.tobytes())
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
        ("half a pair", "the file of its header, scan.hdr, is missing"),
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
        for code, says in ((2006, "FSL"), (1006, "1006, but"), (1007, "1007, but"), (2, "code 2")):
            codes[says] = raw[:68] + code.to_bytes(2, "little") + raw[70:], says
    for content, says in codes.values():
        path.write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match=f"{says}.*(none of the formats|without the moving)"):
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
