"""An experiment from its options to its finished samples: resolve, say what will happen, run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from morphbits import bids, datasets, engines, images, provenance, wording
from morphbits.bids import Dataset, Subject
from morphbits.config import (
    EXPERIMENTS,
    ExecutionConfig,
    ExperimentConfig,
    engines_for,
    from_arguments,
    from_toml,
    name_words,
    to_mapping,
    to_toml,
)
from morphbits.datasets import derivative, selection
from morphbits.engines import verrou
from morphbits.errors import UserError
from morphbits.models.model import Model, open_model, word
from morphbits.samples import estimate, matrix, runner, slurm
from morphbits.samples.matrix import Unit


def from_options(arguments: argparse.Namespace) -> tuple[ExperimentConfig, ExecutionConfig]:
    """Defaults, then ``experiments/<name>.toml`` where the experiment's name has one, then the
    command line."""
    execution = from_arguments(ExecutionConfig, arguments)
    path = EXPERIMENTS / f"{execution.experiment}.toml"
    base = from_toml(ExperimentConfig, path) if execution.experiment and path.exists() else None
    return from_arguments(ExperimentConfig, arguments, base), execution


# ---------------------------------------------------------------------- what auto means


def resolve_engine(settings: ExperimentConfig) -> tuple[ExperimentConfig, str]:
    """The settings with the engine that ``auto`` means here, and why."""
    if settings.engine != "auto":
        return settings, "as asked"
    if len(known := engines_for(settings)) == 1:
        why = "auto: no other engine knows all options that were given"
        return dataclasses.replace(settings, engine=known[0]), why
    where = verrou.found()
    if where is None:
        chosen = dataclasses.replace(settings, engine="native")
        return chosen, "auto: Verrou is not here; 'make docker' builds it, then ENGINE=verrou"
    return (
        dataclasses.replace(settings, engine="verrou"),
        f"auto: Verrou is here ({where}); the other, hundreds of times faster: ENGINE=native",
    )


def recorded_dataset(results: Path, name: str) -> Dataset:
    """The dataset that an experiment was run on, from its ``experiment.json``."""
    path = bids.experiment_file(results, name, "experiment.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        root, settings = Path(record["dataset"]["root"]), record.get("settings", {})
        fixed = settings.get("fixed") and Path(settings["fixed"])
        bids_filter = settings.get("bids_filter", "")
    except FileNotFoundError:
        raise UserError(f"there is no {path}; run make inference EXPERIMENT={name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); run the experiment again") from None
    return datasets.at(root, fixed, bids_filter)


def default_name(settings: ExperimentConfig, dataset: Dataset) -> str:
    """``native-random-phantom-2mm-demo``: engine, mode, dataset, model, and every other
    option that is not at its default, so that different experiments have different names."""
    words = [
        settings.engine,
        *([] if settings.engine == "ieee" else [settings.mode]),
        dataset.name,
        word(settings.model),
        *name_words(settings),
    ]
    return bids.experiment_name(words)


# ---------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class ExperimentPlan:
    """All that is decided before the first sample."""

    settings: ExperimentConfig
    dataset: Dataset
    name: str
    results: Path
    units: list[Unit]
    todo: list[Unit]
    jobs: int  # samples at a time
    voxels: int  # of the network's grid
    identity: dict[str, Any]
    execution: ExecutionConfig

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return bids.experiment_folder(self.results, self.name)


def make_plan(
    settings: ExperimentConfig, execution: ExecutionConfig, say: Callable[[str], None]
) -> ExperimentPlan:
    """Decide everything, and say what was chosen, why, and how to choose otherwise. Writes nothing
    but a phantom dataset that is not there yet, and that not in a dry run."""
    settings, why_engine = resolve_engine(settings)
    engine = engines.get(settings.engine)
    dataset, why_dataset = datasets.resolve(
        settings.dataset, execution.data, settings.size, settings.fixed, settings.bids_filter
    )
    name = execution.experiment or default_name(settings, dataset)
    mode = "" if settings.engine == "ieee" else f", mode {settings.mode}"
    say(f"engine   {settings.engine}{mode}, on {settings.framework} ({why_engine})")
    say(f"order    {engine.order(settings)}")
    say(f"dataset  {dataset.name} ({why_dataset})")
    for line in selection.in_words(dataset.left_out):
        say(f"not used {line}")
    model = open_model(settings.model, settings)
    say(f"model    {model.in_words()}")

    subjects, shape = _subjects(settings, dataset, execution)
    voxels = model.voxels(shape)
    for line in _doubts(model, settings, dataset, execution, subjects):
        say(line)
    work = len(subjects) * (settings.runs + len(matrix.REFERENCES))
    if execution.executor == "slurm":
        if not execution.dry_run:
            slurm.check()
        jobs, cores = execution.jobs or work, 1
        where = f"workers  tasks of Slurm, {execution.jobs or 'as many as it starts'} at a time"
    else:
        jobs = execution.jobs or estimate.default_jobs(model, voxels, work)
        cores = max(1, estimate.cores() // jobs)
        where = f"workers  {jobs}"
    threads = execution.threads or (1 if settings.engine == "verrou" else cores)
    units = matrix.expand(settings, dataset, subjects, execution.results, name, threads)
    folder = bids.experiment_folder(execution.results, name)
    identity = _identity(settings, dataset)
    if identity:
        runner.check_identity(folder, identity)
    todo = matrix.todo(units)
    say(
        f"samples  {len(units)}: {len(subjects)} subjects x ({settings.runs} perturbed + "
        f"{len(matrix.REFERENCES)} references); {len(units) - len(todo)} are done"
    )
    say(f"{where} x {threads} threads (JOBS= and THREADS= change it)")
    say(f"results  {folder}")
    return ExperimentPlan(
        settings,
        dataset,
        name,
        execution.results,
        units,
        todo,
        jobs,
        voxels,
        identity,
        execution,
    )


def seconds_left(plan: ExperimentPlan, say: Callable[[str], None]) -> float:
    """How long the plan's samples, their statistics and the report will take, also said."""
    local, runs = plan.execution.executor == "local", plan.settings.runs
    subjects = len({unit.subject for unit in plan.units})
    after = estimate.analysing(subjects, runs, plan.voxels, plan.jobs)
    if not plan.todo:
        return after
    found = _costs(plan)
    seconds = estimate.sampling(plan.todo, found, plan.jobs, local) + after
    say(f"time     about {wording.duration(seconds)} for {len(plan.todo)} samples and the report")
    if not local:
        say(f"slurm    {slurm.request(plan.todo, _each(found), plan.voxels, plan.execution)}")
    return seconds


def _costs(plan: ExperimentPlan) -> dict[str, estimate.EngineCost]:
    left = set(plan.todo)
    done = [unit for unit in plan.units if unit not in left]
    return estimate.costs(plan.todo, done, plan.voxels)


def _each(found: Mapping[str, estimate.EngineCost]) -> dict[str, float]:
    return {engine: cost.each for engine, cost in found.items()}


def _subjects(
    settings: ExperimentConfig, dataset: Dataset, execution: ExecutionConfig
) -> tuple[Sequence[Subject], tuple[int, ...]]:
    """The subjects and the shape of the fixed image; makes phantoms that are not there yet."""
    if dataset == bids.phantom_dataset(execution.data, settings.size):
        from morphbits.datasets import phantom

        if execution.dry_run:
            subjects = [phantom.subject(k) for k in range(1, settings.subjects + 1)]
            return subjects, phantom.SIZES[settings.size].voxels
        _make_phantoms(settings, execution.data)
    subjects = dataset.subjects()[: settings.subjects]
    if len(subjects) < settings.subjects:
        if not subjects:
            inside = next((path.parent for path in dataset.root.glob("*/sub-*/")), None)
            hint = f", but {inside} has: name that" if inside else ""
            reason = next(iter(dataset.left_out.values()), f"it has no folder sub-*{hint}")
            raise UserError(f"{dataset.root}: no subject has a T1w image to take: {reason}")
        raise UserError(
            f"{dataset.root}: there are images to take of {len(subjects)} subjects, not of "
            f"{settings.subjects}: give SUBJECTS={len(subjects)}"
        )
    fixed = images.load(dataset.fixed(), settings.orientation, settings.nan)
    return subjects, fixed.data.shape


def notes(plan: ExperimentPlan) -> list[str]:
    """What was decided in reading the images and what looks wrong with them, a line each, from the
    records of the samples that are there."""
    lines = []
    for path in (bids.sample_json(unit.folder) for unit in plan.units if unit.sample == "ieee"):
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))["provenance"]
            for step in facts.get("steps", []):
                if step.startswith(images.NOTE):
                    role, _, text = step.removeprefix(images.NOTE).partition(" image: ")
                    lines.append(f"note: {facts['files'][role]}: {text}")
    return list(dict.fromkeys(lines))


def _make_phantoms(settings: ExperimentConfig, data: Path) -> None:
    from morphbits.datasets import phantom

    with tqdm(total=0, unit="phantom", desc="phantoms", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        phantom.make_dataset(data, settings.subjects, size=settings.size, progress=progress)


def _doubts(
    model: Model,
    settings: ExperimentConfig,
    dataset: Dataset,
    execution: ExecutionConfig,
    subjects: Sequence[Subject],
) -> Iterator[str]:
    """Of the first subject and the fixed image; phantoms are brains."""
    if dataset == bids.phantom_dataset(execution.data, settings.size):
        return
    for path in (dataset.moving(subjects[0]), dataset.fixed()):
        try:
            image = images.load(path, settings.orientation, settings.nan)
        except UserError:
            continue  # its samples fail with this reason, and the others' are made
        if doubt := model.doubt(image):
            yield f"{path}: {doubt}"


def _identity(settings: ExperimentConfig, dataset: Dataset) -> dict[str, Any]:
    """All that the samples of the experiment share and that can change a byte; empty while the
    dataset has not been made (a dry run)."""
    if not dataset.fixed().is_file():
        return {}
    inputs = {
        **provenance.inputs({"fixed": dataset.fixed()}, settings.model, settings),
        "dataset": dataset.name,
        **({"bids_filter": settings.bids_filter} if settings.bids_filter else {}),
    }
    return provenance.configuration(settings.registration(), inputs)


def listing(plan: ExperimentPlan) -> str:
    """What a dry run prints: the samples of each subject that would be made, and the settings."""
    by_subject: dict[str, list[str]] = {}
    for unit in plan.todo:
        by_subject.setdefault(unit.subject.entities, []).append(unit.sample)
    lines = [f"{subject}: {' '.join(samples)}" for subject, samples in by_subject.items()]
    return "\n".join([*lines, "", to_toml(plan.settings).strip()])


# ---------------------------------------------------------------------- the run


def run(plan: ExperimentPlan) -> str:
    """Make what is missing. Returns a text about samples that failed, empty where none did;
    UserError where the run had to end before its last sample.

    With the executor slurm and without waiting it returns when Slurm has the samples.
    """
    record = {
        "settings": to_mapping(plan.settings),
        "dataset": {
            "name": plan.dataset.name,
            "root": str(plan.dataset.root),
            "left_out": dict(plan.dataset.left_out),
        },
        "subjects": list(dict.fromkeys(unit.subject.entities for unit in plan.units)),
    }
    array, by_slurm = slurm.at_work(plan.folder), plan.execution.executor == "slurm"
    if array and not by_slurm:
        raise UserError(
            f"{plan.folder}: Slurm's array {array} is working here; EXECUTOR=slurm waits for it, "
            f"'scancel {array}' ends it"
        )
    with runner.opened(plan.folder, plan.identity, record, sweep=not array):
        if by_slurm:
            outcome = slurm.run(
                plan.folder,
                lambda todo: slurm.request(todo, _each(_costs(plan)), plan.voxels, plan.execution),
                plan.todo,
                len(plan.units),
                plan.execution,
            )
            if not plan.execution.wait:
                return ""
        else:
            try:
                outcome = runner.run(plan.todo, plan.jobs, len(plan.units))
            finally:
                runner.remove_leftovers(plan.folder)
    kept = len(plan.units) - len(plan.todo) + outcome.finished
    count = f"{kept} of {len(plan.units)} samples are finished and kept"
    failures = runner.describe_failures(outcome.failed)
    if outcome.stopped:
        raise UserError(
            "\n".join(
                filter(None, [f"{outcome.stopped}. {count}; run again to continue", failures])
            )
        )
    if failures:
        return f"{count}; these failed:\n{failures}"
    _describe(plan)
    return ""


def _describe(plan: ExperimentPlan) -> None:
    """Make each sample's folder a BIDS derivative."""
    for sample in dict.fromkeys(unit.sample for unit in plan.units):
        folder = plan.folder / f"sample-{sample}"
        if folder.is_dir():
            name = f"Sample {sample} of the experiment {plan.name}"
            derivative.describe(folder, name, plan.dataset)
