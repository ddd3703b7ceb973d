"""Raw CoRR to a dataset ready to register: what `make preprocess` runs.

Every image is a function of its raw file and the route. A subject's files appear one by one and
whole, its image last: where it is, the subject is done. A brain that does not lie on the template
well enough (`THRESHOLDS`) is measured, reported and left out: no image, only its quality file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import morphbits
from morphbits import bids, config, images
from morphbits.bids import Dataset
from morphbits.config import Reading
from morphbits.datasets.corr_table import Scan
from morphbits.errors import UserError
from morphbits.files import Busy, sha256, write_atomically, write_json
from morphbits.parent import end_with_parent
from morphbits.preprocessing import freesurfer, open_route, picture

ROUTES = ("open", "freesurfer")
READ_PLAINLY = Reading()
RECIPE = 2  # raised whenever the bytes of a preprocessed image change
# Below any of these, a registration counts as failed; notes/findings/preprocessing.md has the
# measurements from which the limits were chosen.
THRESHOLDS = {"correlation": 0.75, "dice": 0.85, "border": 0.5}
_MEASURED = {
    "correlation": "correlation with the template",
    "dice": "dice with the template",
    "border": "share of dark voxels just beyond the mask (it may lack cortex)",
}


@dataclass(frozen=True)
class QualityCheck:
    """What became of a subject: its line in the table of quality, and why it is left out (empty
    where it is not)."""

    scan: Scan
    quality: dict[str, float]
    excluded: str


def preprocess(
    data: Path,
    scans: Sequence[Scan],
    route: str = "open",
    size: str = "1mm",
    jobs: int = 1,
    say: Callable[[str], None] = print,
    reading: Reading = READ_PLAINLY,
) -> list[QualityCheck]:
    """Preprocess these images of `data/corr`, where not done yet; says each exclusion.

    reading: of the open route's raw images.
    """
    if route == "freesurfer" and reading != READ_PLAINLY:
        raise UserError(
            "FreeSurfer reads its images itself: orientation and nan are for ROUTE=open"
        )
    absent = [s for s in scans if not (bids.corr_raw(data) / s.path).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(scans)} raw images are not in {bids.corr_raw(data)}, the "
            f"first is {absent[0].path}: make corr"
        )
    dataset = bids.corr_dataset(data, route)
    tool = freesurfer.FreeSurfer.found() if route == "freesurfer" else None
    _describe(dataset, route, size, reading)
    _write_fixed(dataset, data, route, size)
    work = partial(_one, dataset, data, size, tool, reading)
    outcomes = []
    with (
        ProcessPoolExecutor(jobs, None, end_with_parent, (os.getpid(), SIGKILL)) as pool,
        tqdm(total=len(scans), desc="preprocess", unit="image", disable=None) as bar,
    ):
        try:
            for outcome in pool.map(work, scans):
                outcomes.append(outcome)
                bar.update()
                if outcome.excluded:
                    bar.clear()
                    say(f"{outcome.scan.subject.entities} is left out: {outcome.excluded}")
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, often because memory ran out: run again to continue, with "
                "a smaller JOBS"
            ) from None
    _write_table(dataset)
    return outcomes


def failure(quality: dict[str, float]) -> str:
    """Why a registration counts as failed, empty where it does not."""
    low = [
        f"{_MEASURED[name]} {quality[name]:.2f}, below {limit}"
        for name, limit in THRESHOLDS.items()
        if name in quality and not quality[name] >= limit
    ]
    return "; ".join(low)


def _one(
    dataset: Dataset,
    data: Path,
    size: str,
    tool: freesurfer.FreeSurfer | None,
    reading: Reading,
    scan: Scan,
) -> QualityCheck:
    """One subject, unless it has been done from the same raw file."""
    raw = bids.corr_raw(data) / scan.path
    assert dataset.truth is not None
    record_path = bids.quality_json(dataset.truth, scan.subject)
    digest = f"sha256:{sha256(raw)}"
    record = _read_json(record_path)
    image_path = dataset.moving(scan.subject)
    if record.get("raw") == digest and (record["excluded"] or image_path.is_file()):
        if tool is not None:
            _keep_segmentation(dataset, data, scan)
        return QualityCheck(scan, record["quality"], record["excluded"])
    if image_path.exists() and not record_path.exists():
        raise UserError(
            f"{image_path}: was not made by 'make preprocess' ({record_path} is not there); move "
            "it away, or use another data folder"
        )
    image_path.unlink(missing_ok=True)  # made from another raw image
    brain: Preprocessed | None = None
    try:  # what is wrong with an image leaves it out; what is wrong with the disk ends the run
        brain = _brain(raw, data, size, tool, reading, scan)
        excluded = failure(brain.quality)
    except (freesurfer.Unready, Busy):
        raise
    except UserError as error:
        excluded = str(error)
    quality = brain.quality if brain else {}
    if brain and brain.labels is not None:
        images.save(bids.labels_in(dataset.truth, scan.subject), brain.labels, brain.affine)
    if brain and brain.picture:
        write_atomically(bids.quality_picture(dataset.truth, scan.subject), brain.picture)
    write_json(record_path, {"raw": digest, "quality": quality, "excluded": excluded})
    if brain and not excluded:
        if tool is not None:
            _keep_segmentation(dataset, data, scan)
        images.save(image_path, brain.image, brain.affine)
    return QualityCheck(scan, quality, excluded)


@dataclass(frozen=True)
class Preprocessed:
    """What a route makes of a head, all on one grid: image (X, Y, Z) float32 in [0, 1], its affine
    (4, 4), measures of quality; labels (X, Y, Z) int32 and a PNG where the route makes them."""

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    quality: dict[str, float]
    labels: NDArray[np.int32] | None = None
    picture: bytes = b""


def _brain(
    raw: Path,
    data: Path,
    size: str,
    tool: freesurfer.FreeSurfer | None,
    reading: Reading,
    scan: Scan,
) -> Preprocessed:
    """The head by one of the routes; UserError where that cannot be."""
    if tool is not None:
        norm = tool.norm(raw, scan.subject.entities, bids.recon_all_folder(data))
        cropped = freesurfer.cropped_and_normalized(norm)
        return Preprocessed(cropped.data, cropped.affine, {})
    try:
        head = images.load(raw, reading.orientation, reading.nan)
        found = open_route.extract(head, size, scan.orientation_uncertain)
    except RuntimeError as error:  # ITK's
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{raw} cannot be registered ({reason}); look at the image") from None
    goal = open_route.target(size)
    shown = picture.png(found.image, found.labels, goal.image, goal.brain, goal.affine)
    return Preprocessed(found.image, goal.affine, found.quality, found.labels, shown)


def _keep_segmentation(dataset: Dataset, data: Path, scan: Scan) -> None:
    """FreeSurfer's label map on the image's grid, once there is one: the study's recon-all ends
    before it, SAMSEG or the rest of recon-all may have been run since."""
    assert dataset.truth is not None
    target = bids.labels_in(dataset.truth, scan.subject)
    found = bids.segmentation_in(bids.recon_all_folder(data) / scan.subject.entities / "mri")
    if found and not target.is_file():
        labels = freesurfer.segmentation(found)
        images.save(target, labels.data, labels.affine)


def _write_fixed(dataset: Dataset, data: Path, route: str, size: str) -> None:
    """The fixed image on its grid, and its tissues where they are known."""
    assert dataset.truth is not None
    if route == "open":
        goal = open_route.target(size)
        labels = bids.template_in(dataset.truth, dataset.space, "dseg")
        images.save(labels, goal.labels, goal.affine)
        images.save(dataset.fixed(), goal.image, goal.affine)
        return
    source = bids.study_fixed_image(data)
    if not source.is_file():
        raise UserError(
            f"the study's fixed image is not here: put norm-average_mni305.mgz, which its authors "
            f"have, at {source}, or use ROUTE=open, whose fixed image is the MNI152 template"
        )
    fixed = freesurfer.cropped_and_normalized(source)
    images.save(dataset.fixed(), fixed.data, fixed.affine)


def _describe(dataset: Dataset, route: str, size: str, reading: Reading) -> None:
    """Describe a new folder; refuse one that was made otherwise."""
    path = dataset.root / "dataset_description.json"
    recipe = {"route": route, "size": size, "recipe": RECIPE, **config.hashed(reading)}
    if path.is_file():
        made = _read_json(path).get("GeneratedBy", [{}])[0].get("Parameters")
        if made != recipe:
            raise UserError(
                f"{dataset.root} was made with {made}, not {recipe}: move that folder away, or "
                "use another data folder"
            )
        return
    made_by = {"Name": "morphbits", "Version": morphbits.__version__, "Parameters": recipe}
    content = {
        "Name": f"CoRR, preprocessed ({route})",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }
    write_json(path, content)


def _write_table(dataset: Dataset) -> None:
    """`quality.tsv`: a line for each subject that was ever preprocessed here."""
    assert dataset.truth is not None
    lines = ["\t".join(["participant_id", *THRESHOLDS, "excluded"])]
    for path in sorted(dataset.truth.glob("sub-*/ses-*/anat/*_desc-quality_T1w.json")):
        record = _read_json(path)
        values = [f"{record['quality'].get(name, float('nan')):.3f}" for name in THRESHOLDS]
        subject = bids.Subject.parse(path).entities
        lines.append("\t".join([subject, *values, record["excluded"] or "n/a"]))
    write_atomically(dataset.truth / "quality.tsv", ("\n".join(lines) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
