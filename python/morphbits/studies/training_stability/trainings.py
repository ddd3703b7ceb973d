"""Is training stable? The same training again and again, with one thing varied, and its spread.

Arms of the study, RUNS trainings each:

- repeated: nothing is varied;
- initialization: other first weights, the same pairs in the same order;
- data: the same first weights, other pairs;
- rounding: weights and pairs the same, every rounding of the training random (native engine, or
  Verrou);

and one training of that engine with every rounding to nearest, to which `rounding` belongs.

A run is a folder, results/<experiment>/<arm>/run-NN: a training's files, the model after every
epoch, and `registrations.npz`, what the trained model makes of phantoms it never saw (computed
without perturbation). A run is done when that file is there. Everything else is derived.

Arrays: S runs, E epochs, N weights of a layer, X Y Z space, V warp component; float32.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from morphbits import assessment, bids, config
from morphbits.config import STOCHASTIC_MODES
from morphbits.datasets import phantom
from morphbits.engines.verrou import script_path
from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.images import NetworkGrid
from morphbits.models.weights import read_weights
from morphbits.parent import PARENT
from morphbits.provenance import file_sha256
from morphbits.stats.significance import quantiles, significant_bits
from morphbits.stats.variability import standard_deviation
from morphbits.synthesis.settings import Ranks
from morphbits.training import RunConfig, TrainConfig, estimate, loop
from morphbits.training.checkpoint import NAME as CHECKPOINT
from morphbits.training.checkpoint import differing, made_with
from morphbits.wording import duration, gigabytes

ARMS = ("repeated", "initialization", "data", "rounding")
NEAREST = "nearest"
HELD_OUT = range(1, 5)  # phantoms of seed 1, which no training draws
RUN_SECONDS = 20  # of one core, for all but the steps of a training: its start, and registering
KEPT = 12  # epochs, at most, of which the models are kept
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
    given = [n for n in ("init_seed", "rounding_seed") if getattr(recipe, n) is not None]
    if given:
        raise UserError(
            f"{' and '.join(given)}: the study varies it itself, from seed; leave it out"
        )
    if recipe.mode not in STOCHASTIC_MODES:
        raise UserError(
            f"mode {recipe.mode} rounds the same way each time, and nothing would spread: choose "
            f"{' or '.join(STOCHASTIC_MODES)}"
        )
    engine = "verrou" if recipe.engine == "verrou" else "native"
    perturbed = replace(
        config.with_engine(recipe, engine),
        threads=recipe.threads or 1,
        init_seed=recipe.seed,
        rounding_seed=recipe.seed,
    )
    recipe = config.with_engine(perturbed, "ieee")
    folder = bids.experiment_folder(results, experiment)
    planned = []
    for number in range(1, runs + 1):
        other = recipe.seed + number - 1  # the first of every arm is the recipe itself
        for arm, varied in (
            ("repeated", recipe),
            ("initialization", replace(recipe, init_seed=other)),
            ("data", replace(recipe, seed=other)),
            ("rounding", replace(perturbed, rounding_seed=other)),
        ):
            planned.append(Run(arm, number, varied, folder / arm / f"run-{number:02d}"))
    nearest = replace(perturbed, mode="nearest")
    planned.append(Run(NEAREST, 1, nearest, folder / NEAREST / "run-01"))
    return planned


def execute(run: Run, register: bool = True) -> None:
    """Train, or go on, and register the held-out phantoms."""
    path = run.folder / "model.h5"
    if run.recipe.engine != "verrou" or not register:
        resume = (run.folder / CHECKPOINT).exists()
        kept = RunConfig(resume=resume, keep_every=_every(run.recipe.epochs))
        path = loop.train(run.recipe, run.folder, kept)
    if not register:
        return
    outcomes, warps = [], []
    for index in HELD_OUT:
        subject = phantom.make_phantom(1, index, run.recipe.size)
        outcome, warp = assessment.register_phantom(path, subject, run.recipe.size)
        outcomes.append([*(after for _, after in outcome.dice.values()), outcome.error_mm[1]])
        warps.append(warp)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        warps=np.stack(warps),
        outcomes=np.array(outcomes, np.float64),
        identity=json.dumps(identity(run.recipe)),
        files=json.dumps({path.name: file_sha256(path) for path in _files(run)}),
    )
    write_atomically(run.folder / DONE, content.getbuffer())


def _files(run: Run) -> list[Path]:
    """What else is read of a run that is done."""
    return [run.folder / "log.csv", *kept_models(run).values()]


def _read(run: Run) -> dict[str, np.ndarray]:
    """What a run that is done has left, with its other files as they were then."""
    path = run.folder / DONE
    try:
        with np.load(path) as file:
            content = dict(file)
        digests = json.loads(str(content["files"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: is damaged ({error}); remove it, and the same command makes it again"
        ) from None
    for other in _files(run):
        if not other.is_file() or file_sha256(other) != digests[other.name]:
            raise UserError(
                f"{other}: is not what the training left here; remove the folder, and the same "
                "command trains again"
            )
    return content


def identity(recipe: TrainConfig) -> dict[str, Any]:
    """All that decides the bytes of a training: its recipe, and what computes."""
    made = {"recipe": config.to_mapping(recipe), "made": made_with(recipe)}
    return json.loads(json.dumps(made, default=str))  # type: ignore[no-any-return]


def _check_identity(run: Run, goes_on: bool) -> None:
    """Refuse a run that is done by another recipe, and where the study goes on, by other
    versions: they are not mixed."""
    then, now = json.loads(str(_read(run)["identity"])), identity(run.recipe)
    then["recipe"] = TrainConfig.recorded(then["recipe"])
    for what in ("recipe", "made") if goes_on else ("recipe",):
        if was := differing(then[what], now[what]):
            raise UserError(
                f"{run.folder}: was trained with {was}; give the options that it was trained "
                "with, another RESULTS (--results), or remove the folder"
            )


def describe(experiment: str, planned: Sequence[Run], jobs: int) -> str:
    """What is to be done, about how long it will take, and the memory, in a line."""
    recipe = planned[0].recipe
    shape = NetworkGrid.around(phantom.SIZES[recipe.size].voxels).size
    seconds = sum(
        RUN_SECONDS
        + sum(
            steps * estimate.seconds_per_step(run.recipe, at, Ranks())
            for steps, at in estimate.stages(run.recipe, shape)
        )
        for run in planned
        if not run.done
    )
    memory = jobs * max(estimate.process_bytes(run.recipe, shape) for run in planned)
    return (
        f"{experiment}: {len(planned)} trainings of {recipe.total_steps} steps, {jobs} at a time; "
        f"about {duration(seconds / jobs)}, {gigabytes(memory)} of memory"
    )


def execute_all(planned: Sequence[Run], jobs: int, program: Sequence[str]) -> None:
    """Every run that is not done, `jobs` at a time, each in a process of its own: `program` is
    called with --run-folder and the recipe's options; where Verrou perturbs a training, once under
    Verrou to train, and once without to register."""
    for run in planned:
        if run.done:
            _check_identity(run, goes_on=not all(other.done for other in planned))
    waiting = [(run, words) for run in planned if not run.done for words in commands(run, program)]
    running: dict[subprocess.Popen[bytes], Run] = {}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    finished = sum(run.done for run in planned)
    with tqdm(total=len(planned), initial=finished, unit="training") as bar:
        try:
            while waiting or running:
                for run, words in list(waiting):
                    if len(running) < jobs and run not in running.values():
                        running[_start(run, words)] = run
                        waiting.remove((run, words))
                for process in [p for p in running if p.poll() is not None]:
                    run = running.pop(process)
                    if process.returncode:
                        raise UserError(
                            f"the training in {run.folder} failed; {run.folder}/output.txt says "
                            "why; the same command continues"
                        )
                    bar.update(run.done)
                time.sleep(0.2)
        finally:
            for process in running:  # they save, and the next start goes on
                process.terminate()
            for process in running:
                process.wait()
            signal.signal(signal.SIGTERM, before)


def commands(run: Run, program: Sequence[str]) -> list[list[str]]:
    """What trains a run and registers with it, one after the other."""
    plain = [*program, "--run-folder", str(run.folder)]
    plain += config.to_arguments(run.recipe)
    if run.recipe.engine != "verrou":
        return [plain]
    verrou = [script_path("with_verrou.sh"), "--mode", run.recipe.mode, "--"]
    return [[*verrou, *plain, "--only-train"], plain]


def _start(run: Run, words: list[str]) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, PARENT: str(os.getpid())}
    with (run.folder / "output.txt").open("ab") as output:
        return subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)


# ---------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class StabilityTables:
    """The runs of a study and everything derived from them, rows of four tables."""

    experiment: str
    recipe: TrainConfig
    rounding: TrainConfig  # of the arm of that name
    runs: int
    loss: list[dict[str, Any]]  # arm, epoch, mean, std, min, max over runs
    weights: list[dict[str, Any]]  # arm, epoch, layer, mean and quantiles of bits
    registrations: list[dict[str, Any]]  # arm, phantom, bits of the warp, spread, Dice, error
    ensembles: list[dict[str, Any]]  # arm, single and ensemble accuracy
    identical: bool  # the repeated trainings have the same bytes


def analyse(planned: Sequence[Run], experiment: str) -> StabilityTables:
    """Derive the tables from the runs, which must all be done."""
    missing = [str(run.folder) for run in planned if not run.done]
    if missing:
        raise UserError(f"not trained yet: {', '.join(missing)}")
    by_arm = {arm: [run for run in planned if run.arm == arm] for arm in ARMS}
    recipes = planned[0].recipe, by_arm["rounding"][0].recipe
    study = StabilityTables(experiment, *recipes, len(by_arm[ARMS[0]]), [], [], [], [], True)
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


def kept_models(run: Run) -> dict[int, Path]:
    """The models of a run by their epochs, from 1: of every n-th, and of the last."""
    epochs = run.recipe.epochs
    kept = {
        n: run.folder / f"epoch-{n:04d}.h5" for n in range(1, epochs) if n % _every(epochs) == 0
    }
    return kept | {epochs: run.folder / "model.h5"}


def _every(epochs: int) -> int:
    return -(-epochs // KEPT)


def _weights(arm: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    kept = [kept_models(run) for run in runs]
    for epoch in kept[0]:
        models = [read_weights(paths[epoch]) for paths in kept]
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
    files = [_read(run) for run in runs]
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
        outcome = assessment.accuracy_of(subject, warp, size)
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
