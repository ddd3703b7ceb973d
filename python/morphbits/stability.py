"""Is training stable? The same training again and again, with one thing varied, and its spread.

Arms of the study, RUNS trainings each:

- repeated: nothing is varied;
- initialization: other first weights, the same pairs in the same order;
- data: the same first weights, other pairs;
- rounding: weights and pairs the same, every rounding of the training random (native engine);

and one training of the native engine with every rounding to nearest, to which `rounding` belongs.

A run is a folder, results/<experiment>/<arm>/run-NN: a training's files, the model after every
epoch, and `registrations.npz`, what the trained model makes of phantoms it never saw (computed
without perturbation). A run is done when that file is there. Everything else is derived.

Arrays: S runs, E epochs, N weights of a layer, X Y Z space, V warp component; float32.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from morphbits import assessment, bids, config
from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.models.weights import read_weights
from morphbits.stats.significance import quantiles, significant_bits
from morphbits.stats.variability import standard_deviation
from morphbits.training import RunConfig, TrainConfig, loop
from morphbits.training.checkpoint import NAME as CHECKPOINT

ARMS = ("repeated", "initialization", "data", "rounding")
NEAREST = "nearest"
HELD_OUT = range(1, 5)  # phantoms of seed 1, which no training draws
DONE = "registrations.npz"


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    arm: str
    number: int  # from 1
    recipe: TrainConfig
    folder: Path

    @property
    def done(self) -> bool:
        """Trained, and its model has registered the held-out phantoms."""
        return (self.folder / DONE).is_file()


def plan(results: Path, experiment: str, recipe: TrainConfig, runs: int) -> list[Run]:
    """All trainings of the study, `runs` of each arm."""
    if runs < 2:
        raise UserError("a spread needs two trainings or more: RUNS=2")
    recipe = replace(
        recipe,
        engine="ieee",
        threads=recipe.threads or 1,
        init_seed=recipe.seed,
        rounding_seed=recipe.seed,
    )
    folder = bids.experiment_folder(results, experiment)
    planned = []
    for number in range(1, runs + 1):
        other = recipe.seed + number - 1  # the first of every arm is the recipe itself
        for arm, varied in (
            ("repeated", recipe),
            ("initialization", replace(recipe, init_seed=other)),
            ("data", replace(recipe, seed=other)),
            ("rounding", replace(recipe, engine="native", rounding_seed=other)),
        ):
            planned.append(Run(arm, number, varied, folder / arm / f"run-{number:02d}"))
    nearest = replace(recipe, engine="native", mode="nearest")
    planned.append(Run(NEAREST, 1, nearest, folder / NEAREST / "run-01"))
    return planned


def execute(run: Run) -> None:
    """Train, or go on, and register the held-out phantoms."""
    resume = (run.folder / CHECKPOINT).exists()
    path = loop.train(run.recipe, run.folder, RunConfig(resume=resume, keep_every=1))
    model = SynthMorph.load(path)
    outcomes, warps = [], []
    for index in HELD_OUT:
        outcome, warp = assessment.register_phantom(model, 1, index, run.recipe.size)
        outcomes.append([*(after for _, after in outcome.dice.values()), outcome.error_mm[1]])
        warps.append(warp)
    partial = run.folder / f".{DONE}"
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            warps=np.stack(warps),
            outcomes=np.array(outcomes, np.float64),
            recipe=config.to_json(run.recipe),
        )
    partial.rename(run.folder / DONE)


def execute_all(planned: Sequence[Run], jobs: int, script: Path) -> None:
    """Every run that is not done, `jobs` at a time, each in a process of its own: `script` is
    called with --run-folder and the recipe's options."""
    for run in planned:
        if run.done and str(np.load(run.folder / DONE)["recipe"]) != config.to_json(run.recipe):
            raise UserError(
                f"{run.folder}: was trained by another recipe; give the options that it was "
                "trained with, another --results, or remove the folder"
            )
    waiting = [run for run in planned if not run.done]
    running: dict[subprocess.Popen[bytes], Run] = {}
    with tqdm(total=len(planned), initial=len(planned) - len(waiting), unit="training") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    run.folder.mkdir(parents=True, exist_ok=True)
                    words = [str(script), "--run-folder", str(run.folder)]
                    words += config.to_arguments(run.recipe)
                    with (run.folder / "output.txt").open("wb") as output:
                        process = subprocess.Popen(
                            [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT
                        )
                    running[process] = run
                for process in [p for p in running if p.poll() is not None]:
                    run = running.pop(process)
                    if process.returncode:
                        raise UserError(
                            f"the training in {run.folder} failed; {run.folder}/output.txt says "
                            "why, and the same command goes on"
                        )
                    bar.update()
                time.sleep(0.2)
        finally:
            for process in running:  # they save, and the next start goes on
                process.terminate()
            for process in running:
                process.wait()


# ---------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Study:
    """The runs of a study and everything derived from them, rows of four tables."""

    experiment: str
    recipe: TrainConfig
    runs: int
    loss: list[dict[str, Any]]  # arm, epoch, mean, std, min, max over runs
    weights: list[dict[str, Any]]  # arm, epoch, layer, mean and quantiles of bits
    registrations: list[dict[str, Any]]  # arm, phantom, bits of the warp, spread, Dice, error
    ensembles: list[dict[str, Any]]  # arm, single and ensemble accuracy
    identical: bool  # the repeated trainings have the same bytes


def analyse(planned: Sequence[Run], experiment: str) -> Study:
    """Derive the tables from the runs, which must all be done."""
    missing = [str(run.folder) for run in planned if not run.done]
    if missing:
        raise UserError(f"not trained yet: {', '.join(missing)}")
    by_arm = {arm: [run for run in planned if run.arm == arm] for arm in ARMS}
    study = Study(experiment, planned[0].recipe, len(by_arm[ARMS[0]]), [], [], [], [], True)
    for arm, runs in by_arm.items():
        study.loss.extend(_loss(arm, runs))
        study.weights.extend(_weights(arm, runs))
        rows, ensemble = _registrations(arm, runs)
        study.registrations.extend(rows)
        study.ensembles.append(ensemble)
    models = {(run.folder / "model.h5").read_bytes() for run in by_arm["repeated"]}
    return replace(study, identical=len(models) == 1)


def _loss(arm: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    means_SE = []
    for run in runs:
        with (run.folder / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses = np.array([float(row["loss"]) for row in rows])
        means_SE.append(losses.reshape(-1, run.recipe.steps).mean(1))
    for epoch, values_S in enumerate(np.stack(means_SE).T, 1):
        yield {
            "arm": arm,
            "epoch": epoch,
            "mean": float(values_S.mean()),
            "std": float((values_S - values_S[0]).std(ddof=1)),  # of equal values: 0
            "min": float(values_S.min()),
            "max": float(values_S.max()),
        }


def _weights(arm: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for epoch in range(1, runs[0].recipe.epochs + 1):
        models = [read_weights(run.folder / f"epoch-{epoch:04d}.h5") for run in runs]
        for name in models[0]:
            if not name.endswith("/kernel"):
                continue
            samples_SN = np.stack([model[name].reshape(-1) for model in models])
            layer = name.removesuffix("/kernel").removeprefix("vxm_dense_").removeprefix("unet_")
            bits = quantiles(significant_bits(samples_SN[:, None, None], None))
            yield {"arm": arm, "epoch": epoch, "layer": layer, **bits}


def _registrations(arm: str, runs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    size = runs[0].recipe.size
    base = phantom.template(size)
    brain = base.labels > 0
    voxel = float(np.linalg.norm(base.affine[:3, 0]))
    files = [np.load(run.folder / DONE) for run in runs]
    warps_SPXYZV = np.stack([file["warps"] for file in files])
    outcomes_SPQ = np.stack([file["outcomes"] for file in files])
    rows, ensembles = [], []
    for place, index in enumerate(HELD_OUT):
        warps_SXYZV = warps_SPXYZV[:, place]
        bits = quantiles(significant_bits(warps_SXYZV, None)[brain])
        spread = standard_deviation(warps_SXYZV)[brain] * voxel
        outcomes_SQ = outcomes_SPQ[:, place]
        rows.append(
            {"arm": arm, "phantom": index}
            | {f"bits_{name}": value for name, value in bits.items()}
            | {"warp_std_mm": float(spread.mean()), "warp_largest_std_mm": float(spread.max())}
            | _named("mean", outcomes_SQ.mean(0))
            | _named("std", (outcomes_SQ - outcomes_SQ[0]).std(0, ddof=1))
        )
        subject = phantom.make_phantom(1, index, size)
        warp = warps_SXYZV.mean(0, dtype=np.float64).astype(np.float32)
        outcome = assessment.judge(subject, warp, size)
        ensembles.append([*(after for _, after in outcome.dice.values()), outcome.error_mm[1]])
    ensemble = (
        {"arm": arm, "runs": len(runs)}
        | _named("single", outcomes_SPQ.mean((0, 1)))
        | _named("best", _best(outcomes_SPQ))
        | _named("ensemble", np.mean(ensembles, 0))
        | {f"runs_{name}": values for name, values in _per_run(outcomes_SPQ).items()}
    )
    return rows, ensemble


def _best(outcomes_SPQ: np.ndarray) -> np.ndarray:
    """Of the runs' means over phantoms: the highest Dice of each tissue, the smallest error."""
    means_SQ = outcomes_SPQ.mean(1)
    return np.append(means_SQ[:, :-1].max(0), means_SQ[:, -1].min())


def _per_run(outcomes_SPQ: np.ndarray) -> dict[str, list[float]]:
    """Each run's means over phantoms."""
    return {
        "dice_gm": outcomes_SPQ[:, :, 1].mean(1).tolist(),
        "error_mm": outcomes_SPQ[:, :, -1].mean(1).tolist(),
    }


def _named(what: str, values: np.ndarray) -> dict[str, float]:
    names = [*(f"dice_{tissue}" for tissue in assessment.TISSUES.values()), "error_mm"]
    return {f"{what}_{name}": float(value) for name, value in zip(names, values, strict=True)}
