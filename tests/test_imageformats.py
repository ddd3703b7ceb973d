"""Odd headers, odd contents, odd numbers: read right, or refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from support.odd_images import OBLIQUE, RIGID, SHAPE, mgh, nifti, pair, patched, volume

from morphbits import images
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.provenance import file_sha256

DATA = volume()
FAR = RIGID.copy()
FAR[0, 3] += 40
PLAIN = nifti(DATA)
SIZES = np.array([1.5, 2, 1.25])  # of RIGID's voxels
# headers hold float32: a coordinate below 60 mm is a sum of four rounded terms
COORDINATES = 60 * 4 * 2.0**-24


def written(folder: Path, content: bytes, name: str = "a.nii.gz") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def in_unit(unit: int, mm: float) -> bytes:
    """The plain image with all its lengths in a unit of so many millimetres."""
    srow, offset = RIGID[:3] / mm, RIGID[:3, 3] / mm
    return nifti(DATA, units=unit, srow=srow, pixdim=SIZES / mm, offset=offset)


def marks(image: Image) -> np.ndarray:
    """Where the marked voxels are in the world, (4, 3) RAS mm."""
    voxels = np.array([np.argwhere(image.data == value)[0] for value in (200, 201, 202, 203)])
    return voxels @ image.affine[:3, :3].T + image.affine[:3, 3]


# ------------------------------------------------------------------------------ headers


@pytest.mark.parametrize(
    ("content", "says", "codes"),
    [
        (PLAIN, "", (1, 1)),
        (nifti(DATA, codes=(1, 0)), "", (1, 0)),
        (nifti(DATA, codes=(0, 1)), "", (0, 1)),
        (nifti(DATA, codes=(4, 1)), "", (4, 1)),
        (nifti(DATA, srow=np.zeros(12)), "sform cannot be inverted: its qform is used", (0, 1)),
        (nifti(DATA, np.diag([2, 2, 2, 1]), (0, 1), qfac=0), "", (0, 1)),
        (nifti(DATA, codes=(0, 1), quaternion=(0, 1.0000002384, 0)), "", (0, 1)),
        (nifti(DATA, codes=(0, 1), quaternion=(0.6, 0.80001, 0)), "", (0, 1)),
        (nifti(DATA, srow=FAR[:3]), "(scanner) place it up to 40 mm apart: the sform", (1, 1)),
        (in_unit(1, 1e3), "in metres, brought to millimetres", (1, 1)),
        (in_unit(3, 1e-3), "in micrometres, brought to millimetres", (1, 1)),
        (nifti(DATA, units=0), "", (1, 1)),
        (nifti(DATA, units=7), "", (1, 1)),
        (nifti(DATA, codes=(0, 1), qfac=-2), "", (0, 1)),
        (nifti(DATA, dim=(4, *SHAPE, 0, 0, 0, 0)), "", (1, 1)),
        (nibabel.Nifti1Image(DATA.astype(">i2"), RIGID).to_bytes(), "", (2, 0)),
    ],
)
def test_marked_voxels_lie_where_itk_has_them(
    tmp_path: Path, content: bytes, says: str, codes: tuple[int, int]
) -> None:
    path = written(tmp_path, content, "a.nii")
    image = images.load(path)
    assert image.has_affine and not image.guessed and image.codes == codes
    assert says in "; ".join(image.notes) and bool(says) == bool(image.notes)
    other = sitk.ReadImage(str(path))
    lps = [
        other.TransformIndexToPhysicalPoint([*map(int, np.argwhere(image.data == value)[0])])
        for value in (200, 201, 202, 203)
    ]
    assert np.abs(marks(image) - np.array(lps) * [-1, -1, 1]).max() < COORDINATES


def test_broken_headers(tmp_path: Path) -> None:
    nans = written(tmp_path, nifti(DATA, srow=np.full(12, np.nan)))
    assert np.abs(marks(images.load(nans)) - marks(Image(DATA, RIGID))).max() < COORDINATES
    turned = nifti(DATA, quaternion=(0.5, 1, 0))
    image = images.load(written(tmp_path, turned, "s.nii"))
    assert np.abs(image.affine - RIGID).max() < COORDINATES and "no rotation" in image.notes[0]
    boundless = nifti(DATA, codes=(0, 1), srow=np.full(12, np.inf))
    assert np.abs(images.load(written(tmp_path, boundless)).affine - RIGID).max() < COORDINATES
    flat = images.load(written(tmp_path, nifti(DATA, codes=(0, 1), pixdim=(1, 0, 1.25))))
    assert np.allclose(flat.voxel_sizes, (1, 1, 1.25), atol=1e-6)  # of a float32 rotation
    assert "1.0 × 0.0 × 1.25 in its header have no size" in flat.notes[0]
    for content, says in (
        (patched(turned, sform=0), "quaternion is no rotation"),
        (nifti(DATA, codes=(0, 1), pixdim=(1, np.nan, 1)), "voxels without a size"),
        (nifti(DATA, codes=(1, 0), srow=np.zeros(12)), "cannot be inverted"),
        (nifti(DATA, codes=(0, 1), pixdim=(-1.5, 2, 1.25)), "negative sizes are read in more"),
        (nifti(DATA, units=1), "1500.0 × 2000.0 × 1250.0 mm, as large as a head"),
        (nifti(DATA, OBLIQUE, (1, 0), magic=b"\0\0\0\0"), "no signature of a NIfTI file"),
    ):
        with pytest.raises(UserError, match=says):
            images.load(written(tmp_path, content))


@pytest.mark.parametrize("offset", [0, 100, -352, 348, float("nan")])
@pytest.mark.parametrize("extension", [b"", b"a comment in the header"])
def test_voxels_begin_behind_the_header(tmp_path: Path, offset: float, extension: bytes) -> None:
    image = nibabel.Nifti1Image(DATA, RIGID)
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", extension))
    path = written(tmp_path, patched(image.to_bytes(), vox_offset=offset))
    loaded = images.load(path)
    assert np.array_equal(loaded.data, DATA) and "inside of itself" in loaded.notes[0]


# -------------------------------------------------------------------------- orientation


def unoriented(kind: str, folder: Path) -> Path:
    """An image of voxels 1.5 × 2 × 1.25 mm that does not say how they lie."""
    if kind == "nifti":
        return written(folder, nifti(DATA, codes=(0, 0)))
    return pair(folder, nibabel.AnalyzeImage, DATA)


@pytest.mark.parametrize("kind", ["nifti", "analyze"])
def test_left_and_right_are_not_guessed(tmp_path: Path, kind: str) -> None:
    path = unoriented(kind, tmp_path)
    with pytest.raises(UserError, match="left and right would be a guess: give --orientation"):
        images.load(path)
    for axes in ("LAS", "RAS", "PIR"):
        image = images.load(path, orientation=axes)
        assert nibabel.aff2axcodes(image.affine) == tuple(axes) and not image.has_affine
        assert np.allclose(image.voxel_sizes, (1.5, 2, 1.25)) and np.array_equal(image.data, DATA)
        assert f"{axes}, as given" in image.notes[0]
        middle = image.affine @ [*(np.array(SHAPE) - 1) / 2, 1]
        assert np.abs(middle[:3]).max() < 1e-12  # exact but for the rounding of a product
    labels = images.load_labels(path)  # whose voxels are the same whichever way they lie
    assert labels.guessed and "left and right are unknown" in labels.notes[0]
    with pytest.raises(UserError, match="give --orientation"):
        images.known_axes(labels)
    assert not images.load_labels(path, "RAS").guessed


def test_an_orientation_is_not_for_images_that_have_one(tmp_path: Path) -> None:
    image = images.load(written(tmp_path, PLAIN), orientation="PIR")
    assert np.abs(image.affine - RIGID).max() < COORDINATES and not image.notes


def test_conventions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lia = [[-1, 0, 0, 5], [0, 0, 1, -4.5], [0, -1, 0, 6], [0, 0, 0, 1]]  # 10 × 12 × 9, centred
    np.save(tmp_path / "a.npy", DATA)
    np.savez(tmp_path / "a.npz", vol=DATA)
    for path, whose in (
        (written(tmp_path, gzip.compress(mgh(DATA, 0)), "a.mgz"), "FreeSurfer's"),
        (written(tmp_path, gzip.compress(mgh(DATA, -1)), "a.mgh.gz"), "FreeSurfer's"),
        (tmp_path / "a.npy", "voxelmorph's"),
        (tmp_path / "a.npz", "voxelmorph's"),
    ):
        for _ in range(2):
            image = images.load(path)
        assert image.affine.tolist() == lia and not image.has_affine
        assert np.array_equal(image.data, DATA)
        said = capsys.readouterr().err  # once, however often it is read
        assert said.count(str(path)) == 1 and f"{whose} convention" in said
        given = images.load(path, orientation="RAS")
        assert nibabel.aff2axcodes(given.affine) == ("R", "A", "S")


# ----------------------------------------------------------------------------- contents


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, lambda x: gzip.compress(gzip.compress(x))],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.img", "scan"])
def test_files_are_what_they_contain(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    for content in (PLAIN, *([] if name == "a.img" else [mgh(DATA, 0)])):
        path = written(tmp_path, compress(content), name)
        assert np.array_equal(images.load(path).data, DATA)


@pytest.mark.parametrize("named", [".hdr", ".img"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_pairs(tmp_path: Path, named: str, compressed: bool, kind: type) -> None:
    pair(tmp_path, kind, DATA, RIGID)
    suffix = ".gz" if compressed else ""
    for path in (tmp_path / "a.hdr", tmp_path / "a.img"):
        if compressed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    path = tmp_path / f"a{named}{suffix}"
    image = images.load(path)
    digest = file_sha256(path)
    both = {file_sha256(half) for half in tmp_path.iterdir()}
    assert both == {digest}  # whichever half is named
    for half in sorted(tmp_path.iterdir()):
        half.write_bytes(half.read_bytes() + b"more")
        assert file_sha256(path) not in both  # and each half counts
        both.add(file_sha256(path))
    assert np.array_equal(image.data, DATA) and np.abs(image.affine - RIGID).max() < COORDINATES


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.nii", content)
    return buffer.getvalue()


ANNEX = "/annex/objects/MD5E-s10485760--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (ANNEX.encode(), r"git-annex, its content was not fetched: datalad get .*a\.nii\.gz"),
        (f"../../.git{ANNEX}".encode(), "not fetched: datalad get"),
        (b"\n <!DOCTYPE html>\n<html>Log in</html>", "a web page"),
        (b'{"message": "Not Found"}', "text, .*it begins '{\"message"),
        (b"x,y,z\n1,2,3\n", "text, not what its name says"),
        (bytes(128) + b"DICM" + bytes(99), "a DICOM file.*dcm2niix"),
        (b"\x89HDF\r\n\x1a\n" + bytes(999), "MINC 2.*mnc2nii"),
        (b"CDF\x01" + bytes(999), "MINC 1.*mnc2nii"),
        (b"NRRD0004\ntype: float\n", "NRRD.*SimpleITK"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage.*SimpleITK"),
        (b"mrtrix image\ndim: 1,2,3\n", "MRtrix.*mrconvert"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "zstd"),
        (b"PK\x03\x04" + bytes(99), "damaged, cut short"),
        (zipped(PLAIN), "a zip archive of image.nii: unpack it"),
        (b"..\\.git\\annex\\objects\\Xk", "git-annex"),
        (b"\x08\x00\x05\x00CS" + bytes(99), "like a DICOM file without preamble"),
        (bytes(257) + b"ustar" + bytes(99), "tar archive.*unpack"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "picture"),
        (b"\x80" * 4 + b"\xfe" * 400, "no image of a kind that is known"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    for compressed in (content, gzip.compress(content)):
        path = written(tmp_path, compressed)
        with pytest.raises(UserError, match=says) as caught:
            images.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_places_without_an_image_are_named(tmp_path: Path) -> None:
    link = tmp_path / "link.nii.gz"
    link.symlink_to("../.git/annex/objects/Xk/7z/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    dangling = tmp_path / "dangling.nii.gz"
    dangling.symlink_to("nowhere.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    for path, says in (
        (link, "git-annex, its content was not fetched: datalad get"),
        (dangling, "a link to nowhere.nii.gz, which is not there"),
        (tmp_path / "pipe.nii.gz", "not a file that can be read again"),
        (tmp_path, "a folder: name one image.*dcm2niix"),
        (tmp_path / "missing.nii.gz", "there is no file"),
    ):
        with pytest.raises(UserError, match=says):
            images.load(path)


@pytest.mark.parametrize("reader", [images.load, images.load_labels])
def test_arrays_of_numpy_by_their_names(tmp_path: Path, reader: Callable[[Path], Image]) -> None:
    labels = DATA // 10
    for arrays, expected in (
        ({"vol_data": DATA}, DATA),
        ({"vol_data": DATA, "train_avg": labels}, DATA),
        ({"vol": DATA, "seg": labels}, DATA if reader is images.load else labels),
        ({"anything": DATA}, DATA),
        ({"anything": DATA, "affine": RIGID}, DATA),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        image = reader(tmp_path / "a.npz")
        assert np.array_equal(image.data, expected) and image.has_affine == ("affine" in arrays)
    np.savez(tmp_path / "a.npz", vol=DATA, affine=np.eye(3))
    with pytest.raises(UserError, match="affine of shape 3 × 3"):
        reader(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", a=DATA, b=DATA)
    with pytest.raises(UserError, match=r"holds \['a', 'b'\]; the image must be named"):
        reader(tmp_path / "a.npz")


# ------------------------------------------------------------------------------ numbers


def test_grey_levels_far_from_zero_are_kept(tmp_path: Path) -> None:
    """Around 10⁶ float32 is exact to 1/16: levels 1/64 apart would become one in four."""
    path = written(tmp_path, nifti(DATA, slope=1 / 64, inter=1e6))
    image = images.load(path)
    assert len(np.unique(image.data)) == len(np.unique(DATA))
    assert np.array_equal(image.data, (DATA.astype("f4") - DATA.min()) / 64)
    assert "too close to each other for float32" in image.notes[0]
    far = DATA.astype(np.float64) / 64 + 1e6
    assert np.array_equal(images.load(written(tmp_path, nifti(far))).data, image.data)
    for start in (-(2**62), 2**60, 2**31):  # whole numbers that float64 does not hold either
        large = nibabel.Nifti1Image(DATA.astype("i8") + start, RIGID, dtype="int64").to_bytes()
        found = images.load(written(tmp_path, large)).data
        assert np.array_equal(found, DATA.astype("f4") - DATA.min())
    whole = images.load(written(tmp_path, nifti(DATA, inter=1e6)))  # which float32 holds exactly
    assert np.array_equal(whole.data, DATA + np.float32(1e6)) and not whole.notes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_number(tmp_path: Path, value: float) -> None:
    data = DATA.astype("f4")
    data[2:4] = value
    path = written(tmp_path, nifti(data))
    for reader in (images.load, images.load_labels):
        with pytest.raises(UserError, match=r"216 voxels of 1080 that are not finite.*--nan 0"):
            reader(path)
        image = reader(path, nan=0)
        assert not image.data[2:4].any() and np.array_equal(image.data[4:], DATA[4:])
        assert "216 voxels of 1080 are not finite: they were set to 0" in image.notes[0]


def test_labels_that_went_through_scaling(tmp_path: Path) -> None:
    labels = DATA // 10
    for content in (
        nifti(labels, slope=65536 / 65535),
        nifti(labels * (1 - 2.3e-10)),
        nifti((labels + 0.0009).astype("f4")),
        nifti((labels + np.int16(2000)), slope=65536 / 65535),
    ):
        image = images.load_labels(written(tmp_path, content))
        assert np.array_equal(image.data % 2000, labels) and image.data.dtype == np.int32
        assert "off whole numbers: they were rounded" in image.notes[0]
    assert not images.load_labels(written(tmp_path, nifti(labels))).notes
    with pytest.raises(UserError, match="not label numbers"):
        images.load_labels(written(tmp_path, nifti(labels * 1.0011)))


def test_values_whose_differences_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    data = np.arange(512.0).reshape(8, 8, 8) * 1e-60
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "tiny.nii")
    with pytest.raises(UserError, match=r"up to 5\.11e-58, whose differences"):
        images.load(tmp_path / "tiny.nii")
