"""An experiment's volumes, to be looked through in its page by niivue (github.com/niivue/niivue).

niivue is not part of morphbits. It is fetched once, from the npm package of one version, checked
by its checksum, kept in the user's cache and copied into the page, which loads nothing.

Shape legend: X Y Z space.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits import files, images
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.models import download
from morphbits.models.download import Published
from morphbits.report import registrations
from morphbits.report.experiment import Experiment
from morphbits.report.figures import MAP_STEPS

VERSION = "0.69.0"
PACKAGE = f"@niivue/niivue@{VERSION}"
MEMBER = "dist/niivue.umd.js"
NIIVUE = Published(
    f"niivue-{VERSION}.umd.js",
    f"https://cdn.jsdelivr.net/npm/{PACKAGE}/{MEMBER}",
    "the viewer niivue",
    "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af",
)
NPM_TIMEOUT = 120  # seconds
LEVELS = 255  # of an image's brightness, above its minimum


def obtain() -> Path:
    """The viewer's file, fetched where it is not in the cache; UserError says why it cannot be had
    and where to put it."""
    path = files.user_cache("the viewer niivue") / NIIVUE.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() and shutil.which("npm"):
        _from_npm(path)
    download.obtain(NIIVUE, path.parent)
    return path


def _from_npm(path: Path) -> None:
    """Where npm cannot get it, nothing happens: it is then downloaded without npm."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", PACKAGE]
        try:
            subprocess.run(
                command, cwd=folder, capture_output=True, timeout=NPM_TIMEOUT, check=True
            )
            (packed,) = Path(folder).glob("*.tgz")
            with tarfile.open(packed) as package:
                member = package.extractfile(f"package/{MEMBER}")
                assert member is not None
                code = member.read()
        except (subprocess.SubprocessError, OSError, ValueError, KeyError, tarfile.TarError):
            return
    if hashlib.sha256(code).hexdigest() != NIIVUE.sha256:
        raise UserError(
            f"npm's package {PACKAGE} holds another {MEMBER} than was published: see which "
            "registry npm is set to"
        )
    files.write_atomically(path, code)


def content(experiment: Experiment, scale: tuple[int, int], number: int) -> dict[str, Any]:
    """What the page's viewer reads: niivue, and the volumes of the first subjects, as text."""
    subjects: dict[str, list[dict[str, Any]]] = {}
    for record in experiment.of_sample("ieee"):
        subject, paths = record.subject.entities, registrations.paths(experiment, record)
        if len(subjects) == number:
            break
        if subject in experiment.subjects and all(path.is_file() for path in paths.values()):
            subjects[subject] = _volumes(experiment, subject, paths, scale)
    if not subjects:
        raise UserError(
            "no volumes for the viewer: the unperturbed samples or the images that they were "
            "made of are gone"
        )
    return {
        "version": VERSION,
        "library": _text(gzip.compress(obtain().read_bytes(), mtime=0)),
        "subjects": subjects,
    }


def _volumes(
    experiment: Experiment, subject: str, paths: dict[str, Path], scale: tuple[int, int]
) -> list[dict[str, Any]]:
    """Fixed image, moved image, bits and displacements, of what is not background."""
    reading = experiment.settings.get("orientation", ""), experiment.settings.get("nan")
    fixed = images.load(paths["fixed"], *reading)
    moved, warp = images.load(paths["moved"]), images.load_warp(paths["warp"])
    inside = (fixed.data > fixed.data.min()) | (moved.data > moved.data.min())
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    corner = np.eye(4)
    corner[:3, 3] = [side.start for side in box]
    place = fixed.affine @ corner
    found = [
        _image("fixed image", fixed, box, place),
        _image("moved image, nothing perturbed", moved, box, place),
    ]
    for quantity in ("image", "warp"):
        path = experiment.map_path(subject, quantity)
        if path.is_file():
            bits_XYZ = nibabel.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)[box]
            name, step = f"significant bits of the {quantity}", 1 / MAP_STEPS
            found.append(_map(name, bits_XYZ, step, scale, "cividis", place))
    brain_XYZ = (fixed.data > fixed.data.min())[box]
    length_XYZ = np.where(brain_XYZ, registrations.displacement(warp, fixed)[box], np.nan)
    longest = float(np.nanmax(length_XYZ)) or 1.0
    step, colours = longest / (LEVELS - 1), registrations.COLOURS
    found.append(_map("displacement, mm", length_XYZ, step, (0, longest), colours, place))
    return found


def _image(
    name: str, image: Image, box: tuple[slice, ...], place: NDArray[np.floating]
) -> dict[str, Any]:
    """In LEVELS steps from its minimum to its brightest voxels."""
    low, white = float(image.data.min()), registrations.white(image)
    raw_XYZ = np.rint(np.clip((image.data[box] - low) / white, 0, 1) * LEVELS)
    colours = {"R": [0, 255], "G": [0, 255], "B": [0, 255], "A": [255, 255], "I": [0, 255]}
    return _volume(name, raw_XYZ, (white / LEVELS, low), (low, low + white), colours, place)


def _map(
    name: str,
    values_XYZ: NDArray[np.floating],
    step: float,
    scale: tuple[float, float],
    colours: str,
    place: NDArray[np.floating],
) -> dict[str, Any]:
    """In steps from 0 on; NaN is a step below 0 and transparent. scale: the values at the ends of
    the colours; smaller ones have the first."""
    raw_XYZ = np.rint(np.nan_to_num(values_XYZ / step, nan=-1)) + 1
    limits = -step, float(scale[1])
    first = max(1, round(255 * (scale[0] + step) / (limits[1] + step)))
    nodes = np.unique(np.rint([1, *np.linspace(first, 255, 16)]))
    rgb = matplotlib.colormaps[colours](np.clip((nodes - first) / (255 - first), 0, 1))[:, :3]
    table = {
        letter: [0, *np.rint(255 * channel).astype(int).tolist()]
        for letter, channel in zip("RGB", rgb.T, strict=True)
    }
    table |= {"A": [0, *[255] * len(nodes)], "I": [0, *nodes.astype(int).tolist()]}
    return _volume(name, raw_XYZ, (step, -step), limits, table, place) | {"none": -step}


def _volume(
    name: str,
    raw_XYZ: NDArray[np.floating],
    scaling: tuple[float, float],
    limits: tuple[float, float],
    colours: dict[str, list[int]],
    place: NDArray[np.floating],
) -> dict[str, Any]:
    """limits: values at the ends of the colours; colours: niivue's table, of nodes from 0 to 255;
    place: voxels to mm."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(raw_XYZ, np.uint8), place)
    image.header.set_slope_inter(*scaling)
    packed = gzip.compress(image.to_bytes(), mtime=0)
    return {"name": name, "limits": limits, "colours": colours, "nifti": _text(packed)}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
