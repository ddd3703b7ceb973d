"""Fetch the published SynthMorph models and the study's fixed image: what `make models` runs.

    morphbits models

The models are those of Hoffmann et al. 2022 (doi:10.1109/TMI.2021.3116879), and those of
FreeSurfer 8's mri_synthmorph (doi:10.1162/imag_a_00197; 3.6 GB); the image is the one that the
study (arXiv:2308.01939) registered to. Where no checksum is known, the sha256 of the first file
seen is recorded in SHA256SUMS next to it, and every later one must match.
"""

from __future__ import annotations

import http.client
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from morphbits import bids, config
from morphbits.errors import UserError
from morphbits.files import sha256

SUMS = "SHA256SUMS"
TIMEOUT = 30  # seconds without a byte after which a server counts as gone
MAGIC = {  # how such a file begins: HDF5, gzip, a function in JavaScript
    ".h5": b"\x89HDF\r\n\x1a\n",
    ".mgz": b"\x1f\x8b",
    ".js": b"(functio",
}


@dataclass(frozen=True)
class Published:
    """A published file. `url` is None where its address is not known: the user has to bring it."""

    name: str
    url: str | None
    what: str
    sha256: str = ""  # where it is known


_SITE = "https://surfer.nmr.mgh.harvard.edu/ftp/data/voxelmorph/synthmorph/"
_FREESURFER = "https://surfer.nmr.mgh.harvard.edu/docs/synthmorph/"
_SHAPES = "shapes-dice-vel-3-res-8-16-32-256f.h5"
_BRAINS = "brains-dice-vel-0.5-res-16-256f.h5"
PUBLISHED = (
    Published(_SHAPES, _SITE + _SHAPES, "SynthMorph trained on random shapes"),
    Published(_BRAINS, _SITE + _BRAINS, "SynthMorph trained on brain labels, the study's model"),
    Published(
        "synthmorph.affine.2.h5",
        _FREESURFER + "synthmorph.affine.2.h5",
        "FreeSurfer 8's affine network",
        "1ac5304b683036e5177f5b4ad38fa09fcbbe7883e742d6fa5bdaedd0e619ced6",
    ),
    Published(
        "synthmorph.rigid.1.h5",
        _FREESURFER + "synthmorph.rigid.1.h5",
        "FreeSurfer 8's rigid network",
        "284c145fce47e98ecf3fdeda2163f646ac3ebb0240e87dd50d71d879f4d5b3af",
    ),
    Published(
        "synthmorph.deform.3.h5",
        _FREESURFER + "synthmorph.deform.3.h5",
        "FreeSurfer 8's deformable network, 3.5 GB",
        "95b367cd30788cc647e4704b650642fc1d70d7e419c20c04f1ba1b2902bc6536",
    ),
    Published("norm-average_mni305.mgz", None, "the study's fixed image, from its authors"),
)


def read_sums(folder: Path) -> dict[str, str]:
    """File name → recorded sha256 (the format of sha256sum)."""
    path = folder / SUMS
    lines = path.read_text().splitlines() if path.is_file() else []
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def check(path: Path, published: Published, folder: Path) -> str:
    """Compare a file with the checksum that is known or recorded, or record it; say which."""
    name = published.name
    with path.open("rb") as file:
        start = file.read(8)
        if not start.startswith(MAGIC[Path(name).suffix]):
            raise UserError(f"{name} is not a {Path(name).suffix} file (a login page, perhaps?)")
    digest = sha256(path)
    if published.sha256 not in ("", digest):
        raise UserError(
            f"{name} has sha256 {digest}, the published file {published.sha256}: delete it and "
            "fetch it again"
        )
    recorded = read_sums(folder).get(name)
    if recorded is None:
        with (folder / SUMS).open("a") as sums:
            sums.write(f"{digest}  {name}\n")
        return f"sha256 {digest} recorded in {folder / SUMS}"
    if recorded != digest:
        raise UserError(
            f"{name} has sha256 {digest}, but {folder / SUMS} records {recorded}: delete that "
            "file and fetch it again, or that line if the file has really changed"
        )
    return "sha256 as recorded"


def fetch(published: Published, folder: Path) -> str:
    """Download one file; it gets its final name when it is whole and its checksum is right."""
    assert published.url is not None
    partial = folder / f"{published.name}.part"
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT) as answer:
            expected = int(answer.headers.get("Content-Length", -1))
            with (
                partial.open("wb") as file,
                tqdm(total=max(expected, 0), unit="B", unit_scale=True, disable=None) as bar,
            ):
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
                received = file.tell()
        if expected not in (-1, received):
            raise UserError(f"the connection ended after {received} of {expected} bytes")
        verdict = check(partial, published, folder)
        partial.rename(folder / published.name)
        return verdict
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(str(getattr(error, "reason", None) or error)) from error
    finally:
        partial.unlink(missing_ok=True)


def obtain(published: Published, folder: Path) -> str:
    """Have one file in `folder`, checked; UserError says why not and where to put it."""
    path = folder / published.name
    if path.exists():
        return check(path, published, folder)
    if published.url is None:
        return f"not here, and its address is not known: put it at {path} ({published.what})"
    try:
        return fetch(published, folder)
    except UserError as error:
        raise UserError(
            f"not downloaded: {error}; fetch {published.url} elsewhere and put it at {path}"
        ) from error


def main(files: tuple[Published, ...] = PUBLISHED) -> int:
    """Obtain every file, one line each; exit status 2 when one failed."""
    parser = config.parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder")
    folder = bids.models_folder(parser.parse_args().data)
    folder.mkdir(parents=True, exist_ok=True)
    status = 0
    for published in files:
        try:
            print(f"{published.name}: {obtain(published, folder)}", flush=True)
        except UserError as error:
            print(f"error: {published.name}: {error}", file=sys.stderr, flush=True)
            status = 2
    return status
