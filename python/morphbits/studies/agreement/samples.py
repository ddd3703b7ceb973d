"""Native against Verrou: the same network on the same pair of images under both, n samples each.

Each arm is an experiment of its own below ``results/compare/``, with one subject; what is there is
not made again.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from morphbits import bids, images
from morphbits.bids import Subject
from morphbits.config import RegisterConfig
from morphbits.errors import UserError
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.samples import matrix, runner
from morphbits.samples.matrix import Unit

SIZE = 32  # voxels of the pair along each axis, of 4 mm: a cube inside the brain
_PAIR = Subject("pair")
_SPACE = "MNI152"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of computing: its name and, but for the seed, its configuration."""

    name: str
    config: RegisterConfig


def verrou_arm(framework: str, onednn: str) -> Arm:
    """A framework under Verrou."""
    config = RegisterConfig(framework=framework, engine="verrou", onednn=onednn)
    kernels = "" if framework == "torch" else f"-onednn-{onednn}"
    return Arm(f"verrou-{framework}{kernels}", config)


def native_arm(accumulation: str) -> Arm:
    """The native engine in one order of accumulation."""
    config = RegisterConfig(engine="native", accumulation=accumulation)
    return Arm(f"native-{accumulation.replace(':', '')}", config)


def all_orders(verrou: Arm) -> list[str]:
    """Orders of accumulation to compare with an arm under Verrou, the matching one first.

    Matching is what the kernels under Valgrind were found to do (notes/findings/verrou.md):
    TensorFlow with oneDNN adds one chain; torch's gemm cuts 432 products into 216 + 216 and 864
    into 256 + 256 + 176 + 176; TensorFlow without oneDNN cuts at 192.
    """
    matching = "blocked:216"
    if verrou.config.framework == "tensorflow":
        matching = "sequential" if verrou.config.onednn == "on" else "blocked:192"
    rest = ("sequential", "direct", "blocked:192", "blocked:216")
    return [matching, *(order for order in rest if order != matching)]


def small_case(folder: Path, data: Path, size: int = SIZE) -> tuple[Path, Path, Path]:
    """Moving and fixed image (the middle of a 4 mm phantom and of its template) and a network of
    16 features with untrained weights, written into ``folder`` where they are missing."""
    from morphbits.datasets import phantom

    moving, fixed, model = (folder / name for name in ("moving.nii.gz", "fixed.nii.gz", "m.h5"))
    if not (moving.exists() and fixed.exists()):
        dataset = phantom.make_dataset(data, 1, size="4mm")
        for source, target in (
            (dataset.moving(dataset.subjects()[0]), moving),
            (dataset.fixed(), fixed),
        ):
            image = images.load(source)
            middle = tuple(slice((n - size) // 2, (n + size) // 2) for n in image.data.shape)
            affine = image.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ [part.start for part in middle]
            folder.mkdir(parents=True, exist_ok=True)
            images.save(target, image.data[middle], affine)
    if not model.exists():
        architecture = Architecture((16,) * 4, (16,) * 6, 7)
        save_h5(model, architecture, init_weights(architecture, 1))
    return moving, fixed, model


def make(
    arms: Sequence[Arm], samples: int, case: tuple[Path, Path, Path], results: Path, jobs: int
) -> dict[str, list[Unit]]:
    """The units of every arm, made where missing; seeds are 1 to ``samples``."""
    moving, fixed, model = (path.resolve() for path in case)
    units = {
        arm.name: [
            Unit(
                sample=f"{seed:02d}",
                subject=_PAIR,
                config=dataclasses.replace(arm.config, seed=seed),
                moving=moving,
                fixed=fixed,
                model=model,
                space=_SPACE,
                folder=bids.sample_folder(results.resolve(), arm.name, f"{seed:02d}", _PAIR),
            )
            for seed in range(1, samples + 1)
        ]
        for arm in arms
    }
    every = [unit for of_arm in units.values() for unit in of_arm]
    outcome = runner.run(matrix.todo(every), jobs, len(every))
    problem = outcome.stopped or runner.describe_failures(outcome.failed)
    if problem:
        raise UserError(f"{problem}; what is finished is kept")
    return units


def load(units: Sequence[Unit]) -> dict[str, np.ndarray]:
    """Samples stacked first: ``image`` (S, X, Y, Z) and ``warp`` (S, X, Y, Z, V), float32."""
    stacks: dict[str, list[np.ndarray]] = {"image": [], "warp": []}
    for unit in units:
        files = matrix.unit_outputs(unit, unit.folder)
        stacks["image"].append(images.load(files["moved"]).data)
        stacks["warp"].append(images.load_warp(files["warp"]).data)
    return {name: np.stack(stack) for name, stack in stacks.items()}


def facts(units: Sequence[Unit]) -> tuple[float, int]:
    """Median seconds of the registration itself, without reading, writing and starting, and the
    perturbed operations of the first sample."""
    records = [json.loads(bids.sample_json(u.folder).read_text(encoding="utf-8")) for u in units]
    seconds = statistics.median(record["provenance"]["seconds"] for record in records)
    return seconds, int(records[0]["provenance"]["operations"])
