"""The study's route: FreeSurfer's recon-all up to -canorm, cropped as the study did.

FreeSurfer (Fischl 2012, doi:10.1016/j.neuroimage.2012.01.021) is not ours to distribute: a local
installation (FREESURFER_HOME) or a container is used, and its license file is checked first.

The study cropped the conformed 256³ to [40:200, 20:212, 20:244] and kept the affine of the whole
volume, so that its files lie 40, 20 and 20 voxels from where the brain was. Here the affine is
moved with the crop. The voxels are the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphbits import images
from morphbits.errors import UserError
from morphbits.files import locked, sha256
from morphbits.images import Image

FLAGS = (
    "-motioncor",
    "-talairach",
    "-nuintensitycor",
    "-normalization",
    "-skullstrip",
    "-gcareg",
    "-canorm",
)
IMAGE = "freesurfer/freesurfer:7.3.1"  # the study's version
CONFORMED = (256, 256, 256)
CROP = (slice(40, 200), slice(20, 212), slice(20, 244))
WIDEST = 256  # mm: recon-all stops at a wider field of view, unless -cw256 cuts it to this
UNFINISHED = "unfinished"  # recon-all works below it; a subject that is done gets its own place
RAW = "morphbits-raw.sha256"  # in a subject's folder: of the image that it was made from
# What recon-all says at its end of every failure, and what it says of one that is no image's.
_ALWAYS = re.compile(r"exited with ERRORS|see the log file|To report a problem|^\s*$")
_WRONG = re.compile(
    r"error[:!]|not found|cannot|could not|killed|segmentation fault|no space left", re.IGNORECASE
)
_MACHINE = re.compile(r"license|no space left|killed|cannot allocate|permission", re.IGNORECASE)


class Unready(UserError):
    """Nothing is wrong with the image: this machine, or what lies in a folder, is in the way."""


@dataclass(frozen=True)
class FreeSurfer:
    """How recon-all is started here: `container` is docker, podman, or empty for a local one."""

    container: str
    license: Path

    @classmethod
    def found(cls) -> FreeSurfer:
        """What this machine has; a UserError says what is missing and how to get it."""
        home = os.environ.get("FREESURFER_HOME")
        named = os.environ.get("FS_LICENSE")
        places = [Path(named)] if named else []
        places = [path / "license.txt" if path.is_dir() else path for path in places]
        places += [Path(home, name) for name in ("license.txt", ".license") if home]
        license = next((path for path in places if path.is_file()), None)
        if license is None:
            raise UserError(
                f"no FreeSurfer license in {', '.join(map(str, places)) or 'FS_LICENSE'}: "
                "get one (free) at https://surfer.nmr.mgh.harvard.edu/registration.html and name "
                "it in FS_LICENSE, or use ROUTE=open, which needs none"
            )
        if home and Path(home, "bin", "recon-all").is_file():
            return cls("", license)
        container = next((name for name in ("docker", "podman") if shutil.which(name)), None)
        if container is None:
            raise UserError(
                "neither FreeSurfer (FREESURFER_HOME) nor docker or podman is on this machine: "
                "install one (https://surfer.nmr.mgh.harvard.edu/fswiki/DownloadAndInstall), or "
                "use ROUTE=open, which needs neither"
            )
        return cls(container, license)

    def command(self, raw: Path, subject: str, folder: Path) -> list[str]:
        """The command that makes `folder/subject/mri/norm.mgz` of a raw image."""
        image = images.load(raw)
        extent_mm = image.data.shape * np.linalg.norm(image.affine[:3, :3], axis=0)
        flags = [*FLAGS, *(["-cw256"] if extent_mm.max() > WIDEST else [])]
        if not self.container:
            words = [str(Path(os.environ["FREESURFER_HOME"], "bin", "recon-all"))]
            return [*words, "-sd", str(folder), "-s", subject, "-i", str(raw), *flags]
        raw, folder, license = (p.resolve() for p in (raw, folder, self.license))
        return [
            self.container, "run", "--rm", "--network", "none",
            "--user", f"{os.getuid()}:{os.getgid()}",
            "-e", "FS_LICENSE=/license.txt", "-v", f"{license}:/license.txt:ro",
            "-v", f"{raw}:/raw/{raw.name}:ro", "-v", f"{folder}:/subjects",
            IMAGE, "recon-all", "-sd", "/subjects", "-s", subject,
            "-i", f"/raw/{raw.name}", *flags,
        ]  # fmt: skip

    def norm(self, raw: Path, subject: str, folder: Path) -> Path:
        """Run recon-all (about an hour); the path of norm.mgz.

        A subject's folder that is there is never changed: it may have been brought from elsewhere.
        """
        done, begun = folder / subject, folder / UNFINISHED / subject
        digest = sha256(raw)
        result = Path("mri", "norm.mgz")
        if done.exists():
            return _checked(done, result, raw, digest)
        with locked(
            begun.with_name(f"{subject}.lock"),
            "choose another DATA= folder",
            f"recon-all is at work on {subject} already; wait for it",
        ) as lock:
            if done.exists():  # by another process, a moment ago
                return _checked(done, result, raw, digest)
            shutil.rmtree(begun, ignore_errors=True)  # recon-all refuses a begun subject
            ended = subprocess.run(
                self.command(raw, subject, begun.parent), text=True, capture_output=True,
                env={**os.environ, "FS_LICENSE": str(self.license)}, check=False,
                stdin=subprocess.DEVNULL, pass_fds=(lock.fileno(),),
            )  # fmt: skip
            if ended.returncode != 0 or not (begun / result).is_file():
                raise _failure(ended, begun / "scripts" / "recon-all.log")
            (begun / RAW).write_text(f"{digest}\n")
            begun.rename(done)
        return done / result


def _checked(done: Path, result: Path, raw: Path, digest: str) -> Path:
    """The result in a finished subject's folder; Unready if it is not that of this image."""
    made_of = done / RAW
    if not (done / result).is_file():
        raise Unready(f"{done}: has no {result}; move it away, or let recon-all end there")
    if made_of.is_file() and made_of.read_text().strip() != digest:
        raise Unready(f"{done}: was made from another image than {raw}; move it away")
    return done / result


def _failure(ended: subprocess.CompletedProcess[str], log: Path) -> UserError:
    """Why recon-all failed. Its last lines are the same for every failure; the reason is printed
    before them, in its log or, where there is no log yet, in its output."""
    logged = log.read_text(errors="replace") if log.is_file() else ""
    lines = (logged or f"{ended.stdout}\n{ended.stderr}").splitlines()
    lines = [line.strip() for line in lines if not _ALWAYS.search(line)]
    wrong = [line for line in lines[-50:] if _WRONG.search(line)]
    reason = (wrong or lines or ["it printed nothing"])[-1]
    where = f"; see {log}" if logged else ""
    of_machine = ended.returncode < 0 or ended.returncode > 128 or _MACHINE.search(reason)
    return (Unready if of_machine else UserError)(
        f"recon-all ended with {ended.returncode} ({reason}){where}"
    )


def crop(image: Image) -> Image:
    """The study's window of a conformed 256³ volume, its affine moved with it."""
    if image.data.shape != CONFORMED:
        raise UserError(
            f"{image.name} has {image.data.shape} voxels, not the conformed {CONFORMED}"
        )
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in CROP]
    return Image(np.ascontiguousarray(image.data[CROP]), affine, path=image.path)


def segmentation(path: Path) -> Image:
    """A label map of recon-all or SAMSEG in the study's window, (X, Y, Z) int32.

    On another grid (SAMSEG keeps that of its input) it is brought to that of norm.mgz beside it,
    where each voxel takes the label of the nearest.
    """
    labels, norm = images.load_labels(path), path.with_name("norm.mgz")
    if norm.is_file():
        conformed = images.load(norm)
        if not images.same_grid(labels, conformed):
            labels = images.resample(labels, conformed.data.shape, conformed.affine, order=0)
    return crop(labels)


def cropped_and_normalized(path: Path) -> Image:
    """Load, crop, min–max to [0, 1]: what the study gave to the network. An image that has the
    window's shape already is not cropped again."""
    image = images.load(path)
    if image.data.shape != tuple(side.stop - side.start for side in CROP):
        image = crop(image)
    return Image(images.normalize(image.data), image.affine, path=path)
