"""The matrix of an experiment: which samples of which subjects, with which arithmetic and seed.

Each subject has RUNS perturbed samples, named 01, 02, …, and four references:

- ``ieee``: the same computation with nothing perturbed (the engine's own mode ``nearest``);
- ``plain``: what the unmodified framework gives;
- ``again``: plain once more; ``threads``: plain with another number of threads. What these two
  differ by from plain is what re-running alone does (``repeatability.csv``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphbits import bids, provenance
from morphbits.bids import Dataset, Subject
from morphbits.config import ExperimentConfig, RegisterConfig
from morphbits.errors import UserError
from morphbits.models.model import located

REFERENCES = ("ieee", "plain", "again", "threads")
# What the framework itself computes can depend on its number of threads, so that number is fixed
# here and part of the configuration; the native engine's bytes do not depend on it.
PLAIN_THREADS = 1
OTHER_THREADS = 2


def sample_seed(seed: int, subject: Subject, run: int) -> int:
    """The seed of one perturbed sample: 31 bits (Verrou's seeds have 32), the same however many
    subjects and runs the experiment has.

    numpy's SeedSequence over (experiment's seed, first 8 bytes of the sha256 of the subject's
    entities, run).
    """
    entities = hashlib.sha256(subject.entities.encode()).digest()[:8]
    sequence = np.random.SeedSequence([seed, int.from_bytes(entities, "big"), run])
    return int(sequence.generate_state(1, np.uint32)[0] >> 1)


@dataclass(frozen=True)
class Unit:
    """One sample of one subject: what is computed, from which files, into which folder."""

    sample: str
    subject: Subject
    config: RegisterConfig
    moving: Path
    fixed: Path
    model: Path
    space: str
    folder: Path

    def __str__(self) -> str:
        return f"sample-{self.sample}/{self.subject.entities}"

    def configuration(self) -> dict[str, Any]:
        """All that can change a byte of this unit, with its hash; reads the inputs' checksums."""
        files = {"moving": self.moving, "fixed": self.fixed}
        inputs = provenance.inputs(files, self.model, self.config)
        return provenance.configuration(self.config, inputs)


def expand(
    experiment: ExperimentConfig,
    dataset: Dataset,
    subjects: Sequence[Subject],
    results: Path,
    name: str,
    threads: int,
) -> list[Unit]:
    """All units of an experiment, one subject after the other.

    ``threads`` is for the perturbing engine; what the framework computes has its own, see above.
    """
    labels = [subject.label for subject in subjects]
    for subject in subjects:
        if labels.count(subject.label) > 1:
            raise UserError(
                f"{dataset.root}: subject {subject.label} has more than one session; an "
                "experiment takes one image of each subject"
            )
    runs = {f"{run:02d}": run for run in range(1, experiment.runs + 1)}
    return [
        Unit(
            sample=sample,
            subject=subject,
            config=_arithmetic(experiment, sample, subject, runs.get(sample), threads),
            moving=dataset.moving(subject),
            fixed=dataset.fixed(),
            model=located(experiment.model),
            space=dataset.space,
            folder=bids.sample_folder(results, name, sample, subject),
        )
        for subject in subjects
        for sample in (*runs, *REFERENCES)
    ]


def _arithmetic(
    experiment: ExperimentConfig, sample: str, subject: Subject, run: int | None, threads: int
) -> RegisterConfig:
    if sample not in ("plain", "again", "threads"):
        mode = "nearest" if sample == "ieee" else experiment.mode
        seed = experiment.seed if run is None else sample_seed(experiment.seed, subject, run)
        threads = PLAIN_THREADS if experiment.engine == "ieee" else threads
        return experiment.registration(mode=mode, seed=seed, threads=threads)
    threads = OTHER_THREADS if sample == "threads" else PLAIN_THREADS
    plain = experiment.framework == "tensorflow"
    return experiment.registration(engine="ieee", threads=threads, plain=plain)


# ---------------------------------------------------------------------- state, from files alone


@dataclass(frozen=True)
class UnitState:
    """Of one unit: ``missing``, ``done``, ``damaged`` (to be made again) or ``foreign`` (made
    with another configuration), and why."""

    kind: str
    reason: str = ""


def read_state(unit: Unit) -> UnitState:
    """What the unit's folder says. Whole is: ``sample.json`` can be read, its hash is that of its
    own configuration, and its outputs are there with the sizes it states."""
    path = bids.sample_json(unit.folder)
    if not path.exists():
        return (
            UnitState("damaged", "no sample.json")
            if unit.folder.exists()
            else UnitState("missing")
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        configuration, outputs = record["configuration"], record["outputs"]
        sizes = {name: int(output["bytes"]) for name, output in outputs.items()}
        recorded_hash = configuration["hash"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        return UnitState("damaged", "sample.json is not whole")
    if recorded_hash != provenance.configuration_hash(configuration):
        return UnitState("damaged", "sample.json's hash is not that of its configuration")
    expected = unit.configuration()
    if recorded_hash != expected["hash"]:
        keys = provenance.differing_keys(configuration, expected)
        return UnitState("foreign", ", ".join(keys))
    for name, output in unit_outputs(unit, unit.folder).items():
        if name not in sizes or not output.is_file() or output.stat().st_size != sizes[name]:
            return UnitState("damaged", f"{output.name} is missing or has another size")
    return UnitState("done")


def unit_outputs(unit: Unit, folder: Path) -> dict[str, Path]:
    """The images of a unit when it lies in ``folder``."""
    return {
        "moved": bids.moved_path(folder, unit.subject, unit.space),
        "warp": bids.warp_path(folder, unit.subject, unit.space),
    }


def todo(units: Sequence[Unit]) -> list[Unit]:
    """The units that are not done; refuses a folder that holds units of another configuration."""
    states = {unit: read_state(unit) for unit in units}
    for unit, state in states.items():
        if state.kind == "foreign":
            raise UserError(
                f"{unit.folder}: was made with another configuration; what differs: "
                f"{state.reason}. Results of different configurations are never mixed: give "
                "EXPERIMENT=another-name, or move this folder away"
            )
    return [unit for unit, state in states.items() if state.kind != "done"]
