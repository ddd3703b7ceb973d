"""A process that makes samples: ``python -m morphbits.samples.worker``.

Reads one task per line of standard input (JSON) and answers with one line on standard output:
``{"done": …}`` or ``{"failed": "user" | "disk" | "unexpected", "message": …}``. It imports and
loads once and runs many samples, each from its own key. When standard input ends (its parent has
finished, or was killed) it ends at once, also in the middle of a sample.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from morphbits import bids, images, machine, provenance
from morphbits.bids import Subject
from morphbits.config import RegisterConfig, from_mapping, to_mapping
from morphbits.errors import UserError, disk_full
from morphbits.files import write_json
from morphbits.registration import prepare, register
from morphbits.samples.matrix import Unit, unit_outputs
from morphbits.samples.outputs import save_result, staging

PATHS = ("moving", "fixed", "model", "folder")  # of a unit


def to_task(unit: Unit) -> dict[str, Any]:
    """A unit as JSON, with paths that also hold where the worker runs in another folder."""
    return {
        "sample": unit.sample,
        "subject": unit.subject.entities,
        "config": to_mapping(unit.config),
        "space": unit.space,
        **{name: str(getattr(unit, name).absolute()) for name in PATHS},
    }


def from_task(task: dict[str, Any]) -> Unit:
    """The unit that `to_task` wrote."""
    return Unit(
        sample=task["sample"],
        subject=Subject.parse(task["subject"]),
        config=from_mapping(RegisterConfig, task["config"], "task"),
        space=task["space"],
        **{name: Path(task[name]) for name in PATHS},
    )


def run_unit(unit: Unit) -> dict[str, Any]:
    """Make one unit: computed, written into a temporary folder, ``sample.json`` last, renamed."""
    started = provenance.Start()
    machine.reset_peak_memory()
    configuration = unit.configuration()
    experiment_folder = unit.folder.parent.parent
    with staging(experiment_folder) as partial:
        prepared = _prepare(unit.moving, unit.fixed, unit.model, _preparing(unit.config))
        result = register(prepared, unit.model, unit.config)
        folder = partial / "unit"
        paths = unit_outputs(unit, folder)
        outputs = save_result(result, paths["moved"], paths["warp"])
        facts = provenance.provenance(unit.config, started, result.record)
        files = {name: str(getattr(unit, name)) for name in ("moving", "fixed", "model")}
        record = {
            "sample": unit.sample,
            "subject": unit.subject.entities,
            "configuration": configuration,
            "provenance": facts | {"files": files},
            "outputs": outputs,
        }
        write_json(bids.sample_json(folder), record)
        unit.folder.parent.mkdir(exist_ok=True)
        if unit.folder.exists():  # damaged; it may hold what nobody can make again
            prefix = f"damaged-{unit.sample}-{unit.subject.entities}-"
            unit.folder.rename(tempfile.mkdtemp(prefix=prefix, dir=experiment_folder))
        folder.rename(unit.folder)
    return {"seconds": facts["seconds"], "seconds_total": facts["seconds_total"]}


@functools.lru_cache(maxsize=2)
def _load(path: Path, orientation: str, nan: float | None) -> images.Image:
    return images.load(path, orientation, nan)


@functools.lru_cache(maxsize=1)
def _prepare(moving: Path, fixed: Path, model: Path, config: RegisterConfig) -> images.Prepared:
    pair = [_load(path, config.orientation, config.nan) for path in (moving, fixed)]
    return prepare(pair[0], pair[1], model, config)


def _preparing(config: RegisterConfig) -> RegisterConfig:
    """What matters of it before the network runs: the same for all samples of a pair."""
    return RegisterConfig(
        align=config.align,
        crop=config.crop,
        extent=config.extent,
        regularization=config.regularization,
        model_orientation=config.model_orientation,
        orientation=config.orientation,
        nan=config.nan,
    )


def probe(unit: Unit, size: int) -> None:
    """Make and forget such a unit on random images of ``size`` voxels along each axis."""
    with tempfile.TemporaryDirectory(prefix="morphbits-probe-") as name:
        paths = [Path(name, f"{role}.nii.gz") for role in ("moving", "fixed")]
        random = np.random.default_rng(0)
        for path in paths:
            volume = random.random((size, size, size), dtype=np.float32)
            images.save(path, volume, np.eye(4))
        small = {"moving": paths[0], "fixed": paths[1], "folder": Path(name, "s", "u")}
        run_unit(Unit(**{**vars(unit), **small}))


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task; an error becomes an answer."""
    try:
        unit = from_task(task)
        if "probe" in task:
            probe(unit, task["probe"])
            return {"done": {}}  # how long it took, the parent measures
        return {"done": run_unit(unit)}
    except Exception as error:
        if disk_full(error):
            return {"failed": "disk", "message": str(error)}
        if isinstance(error, UserError):
            return {"failed": "user", "message": str(error)}
        return {"failed": "unexpected", "message": traceback.format_exc()}


def main() -> None:
    # libraries may print: only answers go to the pipe that was standard output
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            tasks.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        reply = answer(json.loads(tasks.get()))
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
