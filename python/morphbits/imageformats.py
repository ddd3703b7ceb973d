"""Formats of image files: from bytes to an `Image` as it is stored.

A format is told by a file's content; its name only says where the other half of a pair (.hdr and
.img) lies. What a file is not (a pointer to content that was not fetched, a web page, DICOM) is
said by name, with what to do. Where a header can be read in two ways, the choice is that of
NIfTI's and FreeSurfer's own libraries, and `Image.notes` says it.

NIfTI: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h. MGH:
https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder
from numpy.typing import NDArray

from morphbits.errors import UserError

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".npz")
CODES = (2, 0)  # of sform ("aligned") and qform ("unknown") where an image brings none of its own
WARP_NAME = "morphbits warp"  # the intent's name of a warp in voxels, as `save_warp` writes it
MGH_INTENT = 65536  # added to the intent codes of MGH files, which are not NIfTI's
HEADER = 540  # bytes of NIfTI-2's, the longer one
QUATERNION = 1e-4  # by how much the length of b, c, d may exceed 1: float32 matrices made them
FLAT = 1e-6  # of the product of a voxel's edges: a volume below it is no volume in float32

_COMPRESSIONS = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_SUFFIXES = (".gz", ".bz2", ".xz")
_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}  # NIfTI's codes, and how many mm
_WORLDS = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI152", 5: "template"}
_WITH_SIMPLEITK = "convert it to .nii.gz, e.g. by SimpleITK's ReadImage and WriteImage"
# what else a file may be: where its signature lies, the signature, its name, and what to do
_OTHERS = (
    (0, b"version https://git-lfs.github.com/spec", "a pointer of git-lfs", "git lfs pull"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it (zstd -d)"),
    (0, b"\x1f\x9d", "compressed by compress", "decompress it (uncompress)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and name one image"),
    (0, b"Rar!", "a RAR archive", "unpack it and name one image"),
    (257, b"ustar", "a tar archive", "unpack it and name one image"),
    (128, b"DICM", "a DICOM file", "convert its whole folder by dcm2niix"),
    (0, b"\x08\x00", "like a DICOM file without preamble", "convert its whole folder by dcm2niix"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as MINC 2", "convert MINC by mnc2nii"),
    (0, b"CDF\x01", "a NetCDF file, as MINC 1", "convert MINC by mnc2nii"),
    (0, b"CDF\x02", "a NetCDF file, as MINC 1", "convert MINC by mnc2nii"),
    (0, b"NRRD000", "an NRRD file", _WITH_SIMPLEITK),
    (0, b"ObjectType", "a MetaImage file", _WITH_SIMPLEITK),
    (0, b"NDims", "a MetaImage file", _WITH_SIMPLEITK),
    (0, b"mrtrix image", "an MRtrix file", "convert it by mrconvert"),
    (0, b"MATLAB 5.0", "a MATLAB file", "save its volume as NIfTI (niftiwrite)"),
    (0, b"MATRIX7", "an ECAT file", "convert it to .nii.gz, e.g. by nibabel"),
    (0, b"\x89PNG", "a PNG picture", "name the volume that it shows"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "name the volume that it shows"),
    (0, b"II*\x00", "a TIFF picture", _WITH_SIMPLEITK),
    (0, b"MM\x00*", "a TIFF picture", _WITH_SIMPLEITK),
    (0, b"%PDF", "a PDF document", "name an image"),
)


@dataclass
class Image:
    """A volume and where it lies.

    data: (X, Y, Z) float32, or int32 for labels, or (X, Y, Z, 3) float32 for a warp.
    affine: (4, 4) float64, voxel indices to RAS millimetres.
    has_affine: False where the file says nothing about the world and the affine is a convention.
    guessed: no convention says either which way the axes point: left and right are unknown.
    codes: NIfTI's sform_code and qform_code, of which world the affine is; `save` takes them.
    intent: NIfTI's (or, above 65536, MGH's) code of what the values mean; 0 says nothing.
    intent_name: NIfTI's, of the same.
    header_sizes: (3,) voxel sizes of a NIfTI header, in its unit, whatever its affine says.
    shift: of a warp, (3,) RAS mm that are added in the world after it; None: nobody says.
    notes: what was decided in reading, a sentence each.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    has_affine: bool = True
    path: Path | None = None
    guessed: bool = False
    codes: tuple[int, int] = CODES
    intent: int = 0
    intent_name: str = ""
    header_sizes: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def voxel_sizes(self) -> NDArray[np.float64]:
        """Edge lengths of a voxel, (3,) in millimetres."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return str(self.path) if self.path else "the image"


def decode(path: Path, names: Sequence[str], orientation: str = "") -> Image:
    """The image in a file, values as stored (scaling applied) in the file's own type and axes.

    names: which array of an npz file is meant, in order of preference. orientation: how the axes
    lie where the file does not say (see `oriented`).
    """
    raw = _read(path)
    try:
        raw = _decompressed(raw)
        image = _decoded(path, raw, names)
    except UserError:
        raise
    except Exception as error:  # nibabel, numpy and zlib have a dozen for damaged files
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} cannot be read: it is damaged, cut short, or not what its name says "
            f"({type(error).__name__}: {reason}); get it again"
        ) from error
    image.path = path
    if orientation and not image.has_affine:
        image.affine = oriented(orientation, image.data.shape, image.voxel_sizes)
        image.guessed = False
        image.notes.append(f"the file does not say how its axes lie: {orientation}, as given")
    elif image.guessed:
        image.notes.append("the file does not say how its axes lie: left and right are unknown")
    return image


# ------------------------------------------------------------------------------- bytes


def _read(path: Path) -> bytes:
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        if "annex/objects" in target:
            raise UserError(_not_fetched(path, "a link of git-annex", f"datalad get {path}"))
        raise UserError(f"{path} is a link to {target}, which is not there: check the name")
    if not path.exists():
        raise UserError(f"there is no file {path}: check the name")
    if path.is_dir():
        raise UserError(
            f"{path} is not a file but a folder: name one image (a folder of DICOM files: convert "
            "it by dcm2niix)"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a file that can be read again and again: name one image")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check who may") from error
    if not raw:
        raise UserError(f"{path} is empty: it is damaged, cut short to nothing; get it again")
    return raw


def _not_fetched(path: Path, what: str, command: str) -> str:
    return f"{path} is {what}, its content was not fetched: {command}"


def _decompressed(raw: bytes) -> bytes:
    """Decompressed to the end, so that every cut or damaged file is noticed (CRC), and again where
    a file was compressed twice."""
    for _ in range(3):
        for signature, decompress in _COMPRESSIONS.items():
            if raw.startswith(signature):
                raw = decompress(raw)
                break
    return raw


def _decoded(path: Path, raw: bytes, names: Sequence[str]) -> Image:
    other = _half(path, raw)
    if other is not None:
        header, voxels = other
        if not _is_nifti(header):
            raise UserError(_what_else(path.with_suffix(".hdr"), header))
        return _nifti(path, header, voxels)
    if _is_nifti(raw):
        return _nifti(path, raw, None)
    if raw[:1] == b"\x00" and raw[3:4] == b"\x01":
        return _mgh(raw)
    if raw.startswith(b"\x93NUMPY"):
        return _bare(np.load(io.BytesIO(raw), allow_pickle=False))
    if raw.startswith(b"PK\x03\x04"):
        return _npz(path, raw, names)
    raise UserError(_what_else(path, raw))


def _what_else(path: Path, raw: bytes) -> str:
    """What a file is that is no image of a known kind, and what to do."""
    for start, signature, what, remedy in _OTHERS:
        if raw[start:].startswith(signature):
            if "pointer" in what:
                return _not_fetched(path, what, remedy)
            return f"{path} is {what}, which is not read here: {remedy}"
    begin = raw[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"annex/objects/" in begin.split(b"\n")[0].replace(b"\\", b"/"):
        return _not_fetched(path, "a pointer of git-annex", f"datalad get {path}")
    if begin.lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            f"{path} is a web page, not what its name says: the server sent it instead of the "
            "image; download the image again, logged in where that is needed"
        )
    if begin.startswith(b"<?xml") and b"GIFTI" in raw[:1024]:
        return f"{path} is a surface (GIFTI), not what its name says: name a volume"
    if _is_text(begin):
        words = " ".join(begin.decode("utf-8", errors="ignore").split())[:40]
        return f"{path} is text, not what its name says (it begins {words!r}): name an image"
    return (
        f"{path} is no image of a kind that is known, or its beginning is damaged: use one of "
        f"{', '.join(EXTENSIONS)}"
    )


def _is_text(begin: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(begin)  # may end within a letter
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


# ------------------------------------------------------------------------------- NIfTI


def _is_nifti(raw: bytes) -> bool:
    """Whether it begins with a header of NIfTI-1, NIfTI-2 or Analyze 7.5, of either byte order."""
    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}  # type: ignore[arg-type]
    return len(raw) >= 348 and bool(sizes & {348, 540})


def _half(path: Path, raw: bytes) -> tuple[bytes, bytes] | None:
    """Header and voxels of a pair of files, .hdr and .img, of which one is named."""
    if _is_nifti(raw) and (raw[344:346] == b"n+" or raw[4:6] == b"n+"):
        return None
    stem, extension = _stem(path)
    if extension not in (".hdr", ".img"):
        return None
    found = other_half(path)
    if found is None:
        what = ("voxels", ".img") if extension == ".hdr" else ("header", ".hdr")
        raise UserError(
            f"{path} is one of a pair: the file of its {what[0]}, {stem}{what[1]}, is missing"
        )
    other = _decompressed(_read(found))
    return (raw, other) if extension == ".hdr" else (other, raw)


def other_half(path: Path) -> Path | None:
    """Of a pair of files, .hdr and .img, the one that is not named; None where there is none."""
    stem, extension = _stem(path)
    wanted = {".hdr": ".img", ".img": ".hdr"}.get(extension)
    if wanted is None:
        return None
    names = [wanted, *(wanted + suffix for suffix in _SUFFIXES)]
    for candidate in sorted(path.parent.iterdir()):
        if candidate.name.startswith(stem) and candidate.name[len(stem) :].lower() in names:
            return candidate
    return None


def _stem(path: Path) -> tuple[str, str]:
    """The name without its extension, and that in small letters, compressed or not."""
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    stem, extension = os.path.splitext(name)
    return stem, extension.lower()


def _nifti(path: Path, raw: bytes, voxels: bytes | None) -> Image:
    """NIfTI-1, NIfTI-2 or Analyze 7.5: one file, or a header and its voxels."""
    order = "<" if int.from_bytes(raw[:4], "little") in (348, 540) else ">"
    second = struct.unpack(f"{order}i", raw[:4])[0] == 540
    magic = raw[4:7] if second else raw[344:347]
    notes: list[str] = []
    raw, codes = _without_codes(raw, order, second)
    if voxels is None:
        if magic not in (b"n+1", b"n+2"):
            raise UserError(
                f"{path} has no signature of a NIfTI file (n+1): if it is a header in the format "
                "Analyze, name it .hdr and its voxels .img; else get it again"
            )
        raw, notes = _with_offset(raw, order, second)
        image: Any = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(raw)
    else:
        kind: Any = nibabel.Spm99AnalyzeImage  # Analyze 7.5, with the scaling that SPM put into it
        if magic in (b"ni1", b"ni2"):
            kind = nibabel.Nifti2Pair if second else nibabel.Nifti1Pair
        halves = {"header": raw, "image": voxels, "mat": b""}
        files = {half: FileHolder(fileobj=io.BytesIO(content)) for half, content in halves.items()}
        image = kind.from_file_map(files)
    header, array = image.header, np.asanyarray(image.dataobj)
    qfac, *stored = struct.unpack_from(
        order + ("4d" if second else "4f"), raw, 104 if second else 76
    )
    header["pixdim"][0] = -1 if qfac < 0 else 1
    sizes = np.abs(np.float64(header["pixdim"][1:4]))
    if "sform_code" not in header:  # Analyze
        return Image(array, oriented("LAS", array.shape, sizes), False, guessed=True)
    unit, factor = _UNITS.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))
    if factor != 1:
        notes.append(f"its lengths are in {unit}, brought to millimetres")
    affine, codes, said = _world(path, header, codes, factor, array.shape)
    intent, notes = int(header["intent_code"]), notes + said
    if min(stored) <= 0 and (affine is None or codes[0] <= 0):
        if min(stored) < 0:  # an axis turned round, for some programs and not for others
            raise UserError(
                f"{path} has voxels of {by(tuple(stored))} mm in its header: negative sizes are "
                "read in more than one way; repair the header"
            )
        notes.append(
            f"voxels of {by(tuple(stored))} in its header have no size: read as {by(tuple(sizes))}"
        )
    if affine is None:
        affine = oriented("LAS", array.shape, factor * sizes)
        return Image(array, affine, False, guessed=True, intent=intent, notes=notes)
    found = Image(array, affine, codes=codes, intent=intent, header_sizes=sizes, notes=notes)
    found.intent_name = header["intent_name"].item().decode("latin-1")
    if found.intent_name == WARP_NAME:
        found.shift = np.array([header[f"intent_p{k}"] for k in (1, 2, 3)], np.float64)
    return found


def _without_codes(raw: bytes, order: str, second: bool) -> tuple[bytes, tuple[int, int]]:
    """The codes of sform and qform, and the file with both at 0: nibabel does not read a file
    whose affine it cannot make. Axes beyond the third that have no length get 1, as in NIfTI's
    library."""
    if raw[344:345] != b"n" and not second:  # Analyze, which has other things there
        return raw, CODES
    place, kind = (344, "ii") if second else (252, "hh")
    qform, sform = struct.unpack_from(order + kind, raw, place)
    patched, voxels = bytearray(raw[:HEADER]), memoryview(raw)[HEADER:]
    struct.pack_into(order + kind, patched, place, 0, 0)
    place, kind = (16, "8q") if second else (40, "8h")
    count, *lengths = struct.unpack_from(order + kind, raw, place)
    lengths[3:] = [max(length, 1) for length in lengths[3:]]
    struct.pack_into(order + kind, patched, place, count, *lengths)
    return b"".join([patched, voxels]), (sform, qform)


def _with_offset(raw: bytes, order: str, second: bool) -> tuple[bytes, list[str]]:
    """A file of one piece whose header says where its voxels begin: behind the header and its
    extensions at the earliest."""
    place, kind, begin = (168, "q", 544) if second else (108, "f", 352)
    offset = struct.unpack_from(order + kind, raw, place)[0]
    if raw[begin - 4 : begin - 3] not in (b"", b"\x00"):  # extensions, each with its own length
        while begin + 8 <= len(raw) and (not offset >= begin or begin < offset):
            size = struct.unpack_from(f"{order}i", raw, begin)[0]
            if size < 16 or size % 16:
                break
            begin += size
    if offset >= begin:
        return raw, []
    patched, voxels = bytearray(raw[:HEADER]), memoryview(raw)[HEADER:]
    struct.pack_into(order + kind, patched, place, begin)
    note = (
        f"its header lets the voxels begin at byte {offset:g}, inside of itself: read from {begin}"
    )
    return b"".join([patched, voxels]), [note]


def _world(
    path: Path, header: Any, codes: tuple[int, int], factor: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64] | None, tuple[int, int], list[str]]:
    """Affine, codes and what there is to say: the sform where its code is set and it can be
    inverted, else the qform; None where neither code is set. factor: its unit in millimetres."""
    scale = np.diag([factor] * 3 + [1.0])
    qform = _qform(header)
    with np.errstate(invalid="ignore"):  # of a header's infinities
        sform = scale @ header.get_sform()
        qform = None if qform is None else scale @ qform
    notes = []
    if codes[0] > 0 and _is_affine(sform):
        if codes[1] > 0 and qform is None:
            notes.append("the quaternion of its qform is no rotation: its sform is used")
        elif codes[1] > 0 and qform is not None:
            corners = np.indices((2, 2, 2)).reshape(3, -1).T * (_three(shape) - 1)
            apart = corners @ (sform - qform)[:3, :3].T + (sform - qform)[:3, 3]
            distance = float(np.sqrt((apart**2).sum(axis=1)).max())
            if not distance <= np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).max():
                worlds = [_WORLDS.get(code, f"code {code}") for code in codes]
                notes.append(
                    f"its sform ({worlds[0]}) and qform ({worlds[1]}) place it up to "
                    f"{distance:.0f} mm apart: the sform is used"
                )
        return sform, codes, notes
    if codes[1] > 0 and qform is not None and _is_affine(qform):
        if codes[0] > 0:
            notes.append("its sform cannot be inverted: its qform is used")
        return qform, (0, codes[1]), notes
    if codes[1] > 0 and qform is None:
        raise UserError(
            f"{path} has a qform whose quaternion is no rotation, or voxels without a size; "
            "repair the header"
        )
    if max(codes) > 0:
        raise UserError(f"{path} has a header whose affine cannot be inverted; repair the header")
    return None, CODES, notes


def _is_affine(matrix: NDArray[np.float64]) -> bool:
    edges = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0)).prod()
    return bool(np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) > FLAT * edges)


def _qform(header: Any) -> NDArray[np.float64] | None:
    """The affine of quaternion, offset and voxel sizes; None where the quaternion is no rotation.

    As NIfTI's library: a quaternion that float32 made a bit too long is shortened.
    """
    header = header.copy()
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = np.sqrt(sum(np.float64(header[name]) ** 2 for name in names))
    if not length <= 1 + QUATERNION or not (header["pixdim"][1:4] > 0).all():
        return None
    if length > 1:
        for name in names:
            header[name] = header[name] / length
    return np.asarray(header.get_qform(), np.float64)


def oriented(
    orientation: str, shape: tuple[int, ...], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The affine (4, 4) of axes that point to these sides, as LAS (left, anterior, superior), with
    voxels of these sizes (mm), 0 in the middle of the volume."""
    axes = nibabel.orientations.axcodes2ornt(tuple(orientation))
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(axes):
        affine[int(world), axis] = sign * sizes[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((_three(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine


# --------------------------------------------------------------------------- FreeSurfer


def _mgh(raw: bytes) -> Image:
    # the version's upper bytes are the intent, since FreeSurfer 7.3; nibabel knows none
    intent = int.from_bytes(raw[1:3], "big")
    mgh = nibabel.MGHImage.from_bytes(raw[:1] + bytes(2) + raw[3:])
    array = np.asanyarray(mgh.dataobj)
    code = MGH_INTENT + intent if intent else 0
    if int.from_bytes(raw[28:30], "big", signed=True) > 0:
        return Image(array, np.asarray(mgh.affine, np.float64), intent=code)
    note = "its goodRASFlag is 0: axes LIA and 1 mm are assumed, FreeSurfer's convention"
    return Image(array, conformed_affine(array.shape), False, intent=code, notes=[note])


# -------------------------------------------------------------------------------- numpy


def _npz(path: Path, raw: bytes, names: Sequence[str]) -> Image:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        held = [name for name in archive if name not in ("affine", "shift")]
        chosen = next((name for name in names if name in held), held[0] if len(held) == 1 else "")
        if not chosen:
            raise UserError(
                f"{path} holds {held or 'nothing'}; the image must be named {names[0]!r}"
            )
        if not isinstance(archive[chosen], np.ndarray):
            raise UserError(f"{path} is a zip archive of {chosen}: unpack it and name one image")
        if "affine" in archive:
            shift = np.asarray(archive["shift"], np.float64) if "shift" in archive else None
            return Image(archive[chosen], np.asarray(archive["affine"], np.float64), shift=shift)
        return _bare(archive[chosen])


def _bare(array: NDArray[Any]) -> Image:
    note = "it has no affine: axes LIA and 1 mm are assumed, voxelmorph's convention"
    return Image(array, conformed_affine(array.shape), False, notes=[note])


def conformed_affine(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of an image without one: FreeSurfer's conformed axes (LIA), 1 mm, centred.

    FreeSurfer's convention where goodRASFlag is 0, and voxelmorph's for npz files
    (`voxelmorph.py.utils.save_volfile`).
    """
    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
    affine[:3, 3] = -affine[:3, :3] @ (_three(shape) / 2)
    return affine


def by(shape: tuple[float, ...]) -> str:
    """A shape or sizes as they are said: 160 × 192 × 224."""
    return " × ".join(map(str, shape)) or "of a single number"


def _three(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array((*shape, 1, 1, 1)[:3])
