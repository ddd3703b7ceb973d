"""Samples of another program as a method: a folder with its warps, laid out as samples are.

    FOLDER/sample-01/sub-001/warp.nii.gz    from the fixed to the moving image, on the fixed grid
                             moved.nii.gz   the program's moved image, on the fixed grid
                             verrou.log     Verrou's log: mode, perturbed operations
    FOLDER/sample-ieee/sub-001/...          the same with nothing perturbed

The warp is in any format that is read (`transforms`). Without a moved image, the moving image is
interpolated through the warp; without a log, nothing is known of the perturbation; without
sample-ieee, there is no Dice. The folder becomes an experiment somewhere else, which is analysed
and read as the suite's own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from morphbits import bids, images, provenance
from morphbits.bids import Dataset, Subject
from morphbits.engines.verrou.counters import last_table
from morphbits.errors import UserError
from morphbits.files import write_json
from morphbits.images import Image
from morphbits.report import experiment as reading
from morphbits.report.experiment import Experiment
from morphbits.stats.analysis import analyse

PROGRAM = "program"  # engine of samples of which no more is known
_MODE = re.compile(r"simulating (\w+) rounding mode")


def read(folder: Path, dataset: Dataset, subjects: list[str], work: Path) -> Experiment:
    """The experiment that is made of a folder in `work`, with these subjects of a dataset."""
    name = folder.resolve().name
    samples = sorted(path.name.removeprefix("sample-") for path in folder.glob("sample-*"))
    if not samples:
        raise UserError(f"{folder}: holds no folders sample-01, sample-02, … (notes/methods.md)")
    units = [f"sub-{Subject.parse(subject).label}" for subject in subjects]
    if twice := sorted({unit for unit in units if units.count(unit) > 1}):
        raise UserError(
            f"{folder}: {', '.join(twice)} has several sessions or runs, which a program's folder "
            "cannot tell apart; make the experiment of one of them, by BIDS_FILTER"
        )
    fixed = images.load(dataset.fixed())
    for sample in samples:
        for subject in map(Subject.parse, subjects):
            unit = folder / f"sample-{sample}" / f"sub-{subject.label}"
            _adopt(unit, bids.sample_folder(work, name, sample, subject), dataset, subject, fixed)
    settings = {"dataset": {"name": dataset.name, "root": str(dataset.root)}}
    write_json(bids.experiment_file(work, name, "experiment.json"), settings | {"settings": {}})
    analyse(work, name, dataset)
    return reading.read(work, name)


def _adopt(unit: Path, to: Path, dataset: Dataset, subject: Subject, fixed: Image) -> None:
    """Write one unit in this suite's formats."""
    if not (unit / "warp.nii.gz").is_file():
        raise UserError(f"{unit}: holds no warp.nii.gz; have the program make this sample as well")
    moving_path = dataset.moving(subject)
    moving = images.load(moving_path)
    warp = images.load_warp(unit / "warp.nii.gz", moving=moving)
    moved_path = unit / "moved.nii.gz"
    moved = images.load(moved_path) if moved_path.is_file() else images.move(moving, warp)
    for what, image in (("warp", warp), ("moved image", moved)):
        if not images.same_grid(image, fixed):
            raise UserError(f"{unit}: the {what} is not on the grid of {fixed.name}")
    outputs = {
        "moved": bids.moved_path(to, subject, dataset.space),
        "warp": bids.warp_path(to, subject, dataset.space),
    }
    images.save(outputs["moved"], moved.data, fixed.affine, fixed.codes)
    shift = np.zeros(3) if warp.shift is None else warp.shift
    images.save_warp(outputs["warp"], warp.data, fixed.affine, shift, fixed.codes)
    log = unit / "verrou.log"
    configuration: dict[str, Any] = {
        **(_of_log(log) if log.is_file() else {"engine": PROGRAM}),
        "fixed": provenance.file_sha256(dataset.fixed()),
        "moving": provenance.file_sha256(moving_path),
    }
    operations = configuration.pop("operations", None)
    record = {
        "configuration": configuration,
        "provenance": {"files": {"model": to.parents[1].name}, "operations": operations},
        "outputs": {key: {"file": path.name} for key, path in outputs.items()},
    }
    write_json(bids.sample_json(to), record)


def _of_log(log: Path) -> dict[str, Any]:
    """Mode and perturbed operations, as Verrou's log says them."""
    text = log.read_text(encoding="utf-8", errors="replace")
    mode = _MODE.search(text)
    try:
        operations = last_table(text).total
    except ValueError:
        operations = 0
    if mode is None or not operations:
        raise UserError(f"{log}: is not a complete log of Verrou; make this sample again")
    name = {"average": "nearness"}.get(mode[1].lower(), mode[1].lower())
    return {"engine": "verrou", "mode": name, "operations": operations}
