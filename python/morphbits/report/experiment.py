"""What a results folder says, read once: tables and sample records, nothing else."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphbits import bids
from morphbits.bids import Subject
from morphbits.errors import UserError
from morphbits.stats.analysis import Row, read_table
from morphbits.stats.intervals import Interval, over_samples
from morphbits.stats.significance import CONFIDENCE, bits_held, general_probability
from morphbits.wording import numbers

STUDY_SAMPLES = 10  # of each subject, in the study

# keys of a sample's configuration that differ between samples of one experiment
_OF_THE_SAMPLE = ("seed", "moving", "hash")


@dataclass(frozen=True)
class Record:
    """One finished unit: its sample's name, its subject, and its sample.json."""

    sample: str
    subject: Subject
    configuration: dict[str, Any]
    provenance: dict[str, Any]
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A results folder; see `read`."""

    name: str
    results: Path
    settings: dict[str, Any]  # what was asked for (experiment.json)
    dataset: str
    records: list[Record]
    significance: list[Row]
    variability: list[Row]
    repeatability: list[Row]
    accuracy: list[Row]
    dataset_root: Path | None = None
    bits_over_n: list[Row] = field(default_factory=list)
    ratios: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # of the dataset, and why

    @property
    def perturbed(self) -> list[Record]:
        """The numbered samples."""
        return [record for record in self.records if record.sample.isdigit()]

    def of_sample(self, name: str) -> list[Record]:
        """Units of a reference sample: ieee, plain, again, threads."""
        return [record for record in self.records if record.sample == name]

    @property
    def configuration(self) -> dict[str, Any]:
        """What all perturbed samples share."""
        first = self.perturbed[0].configuration
        return {key: value for key, value in first.items() if key not in _OF_THE_SAMPLE}

    @property
    def model_checksums(self) -> dict[str, str]:
        """Of the model's file, under "", or of its parts: "weights", "code" (`Model.identity`)."""
        found = {
            key.replace("_", " ").removeprefix("model").strip(): value
            for key, value in self.configuration.items()
            if key in ("model", "model_code") or key.endswith("_weights")
        }
        return {part: value for part, value in found.items() if value.startswith("sha256:")}

    @property
    def perturbs(self) -> bool:
        """Whether anything was perturbed in the numbered samples."""
        configuration = self.configuration
        return configuration.get("engine") != "ieee" and configuration.get("mode") != "nearest"

    @property
    def bits_held(self) -> int:
        """How many bits the results hold."""
        return bits_held(self.configuration)

    @property
    def subjects(self) -> list[str]:
        """Subjects with significant bits (two samples or more)."""
        return list(dict.fromkeys(row["subject"] for row in self.significance))

    @property
    def space(self) -> str:
        """Name of the fixed image's space."""
        return bids.parse(self.records[0].outputs["moved"]["file"])["space"]

    def map_path(self, subject: str, quantity: str) -> Path:
        """NIfTI map of a subject's bits; quantity: image or warp."""
        parsed = Subject.parse(subject)
        return bids.map_path(self.results, self.name, parsed, self.space, quantity)

    def n_of(self, subject: str) -> int:
        """Perturbed samples behind a subject's bits."""
        return next(row["n"] for row in self.significance if row["subject"] == subject)

    def bits(
        self,
        quantity: str,
        tissue: str = "all",
        method: str = "general",
        reference: str = "mean",
    ) -> dict[str, Row]:
        """Rows of significance.csv by subject."""
        wanted = {
            "quantity": quantity,
            "tissue": tissue,
            "method": method,
            "reference": reference,
        }
        return {row["subject"]: row for row in select(self.significance, **wanted)}

    @property
    def counts(self) -> list[int]:
        """Numbers of samples that occur, in order."""
        return sorted({self.n_of(subject) for subject in self.subjects})

    def of_first(self, n: int, quantity: str) -> list[float]:
        """Mean bits of each subject's first n samples; of all that it has, where it has fewer."""
        whole = self.bits(quantity)
        values: list[float] = []
        for subject in self.subjects:
            rows = select(self.bits_over_n, quantity=quantity, subject=subject, n=n)
            values.append((rows[0] if rows else whole[subject])["mean"])
        return values

    def standard_error(self, quantity: str) -> float | None:
        """Of the mean over subjects, from the number of samples of each (their seeds differ, so
        their errors are independent); None where it is not known."""
        rows = select(self.bits_over_n, quantity=quantity)
        errors = [row["standard_error"] for row in rows if row["n"] == self.n_of(row["subject"])]
        if len(errors) < len(self.subjects) or any(error != error for error in errors):
            return None
        return math.hypot(*errors) / len(errors)

    def interval_over_samples(self, quantity: str) -> Interval | None:
        """95 %, of the mean over subjects."""
        mean_bits, error = self.mean_bits(quantity), self.standard_error(quantity)
        return None if mean_bits is None else over_samples(mean_bits, error, self.counts[0])

    def mean_bits(self, quantity: str, tissue: str = "all", **which: str) -> float | None:
        """Mean over subjects of their mean bits; None where there is none."""
        return mean(row["mean"] for row in self.bits(quantity, tissue, **which).values())

    @property
    def tissues(self) -> list[str]:
        """Tissues in the order of the table: all, brain, then the labels."""
        return list(dict.fromkeys(row["tissue"] for row in self.significance))


def read(results: Path, experiment: str) -> Experiment:
    """Read a results folder; a UserError says which step has not been run."""
    folder = bids.experiment_folder(results, experiment)
    if not folder.is_dir():
        raise UserError(
            f"there is no experiment {folder}; run make inference EXPERIMENT={experiment}"
        )
    records = [
        _read_record(bids.sample_json(bids.sample_folder(results, experiment, name, subject)))
        for name in bids.list_samples(results, experiment)
        for subject in bids.list_subjects(results, experiment, name)
    ]

    def table(name: str) -> list[Row]:
        return read_table(bids.experiment_file(results, experiment, f"{name}.csv"))

    asked_path = bids.experiment_file(results, experiment, "experiment.json")
    asked = _read_json(asked_path) if asked_path.is_file() else {}
    found = Experiment(
        name=experiment,
        results=results,
        settings=asked.get("settings", {}),
        dataset=asked.get("dataset", {}).get("name", "unknown"),
        left_out=asked.get("dataset", {}).get("left_out", {}),
        records=records,
        significance=table("significance"),
        bits_over_n=table("bits_over_n"),
        ratios=table("ratios"),
        variability=table("variability"),
        repeatability=table("repeatability"),
        accuracy=table("accuracy"),
        dataset_root=Path(asked["dataset"]["root"])
        if "root" in asked.get("dataset", {})
        else None,
    )
    if not found.significance:
        raise UserError(
            f"{folder} has no significance.csv with rows; run"
            f" morphbits significance --experiment {experiment} first"
        )
    _check_one_configuration(found)
    return found


def _check_one_configuration(experiment: Experiment) -> None:
    """Results of different configurations are never shown as one."""
    for record in experiment.perturbed:
        for key, value in experiment.configuration.items():
            if record.configuration.get(key) != value:
                raise UserError(
                    f"sample {record.sample} of {record.subject.entities} in"
                    f" {bids.experiment_folder(experiment.results, experiment.name)} was made with"
                    f" another {key}; keep experiments of different configurations apart"
                )


def _read_record(path: Path) -> Record:
    content = _read_json(path)
    try:
        return Record(
            sample=path.parent.parent.name.removeprefix("sample-"),
            subject=Subject.parse(content["outputs"]["moved"]["file"]),
            configuration=content["configuration"],
            provenance=content["provenance"],
            outputs=content["outputs"],
        )
    except KeyError as error:
        raise UserError(
            f"{path} has no {error}; remove its folder and run the sample again"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove its folder and run the sample again"
        ) from None


def support(counts: Iterable[int]) -> str:
    """`n = 10, probability 0.74 at 95 % confidence`: what numbers of samples support."""
    found = sorted(set(counts))
    ends = dict.fromkeys(f"{general_probability(n):.2f}" for n in (found[0], found[-1]))
    sure = f"probability {' to '.join(ends)} at {100 * CONFIDENCE:.0f} % confidence"
    return f"n = {numbers(found)}, {sure}"


def select(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Rows whose columns have these values."""
    for key, value in where.items():
        rows = [row for row in rows if row[key] == value]
    return list(rows)


def mean(values: Iterable[float]) -> float | None:
    """Mean of the numbers; None where there is none."""
    numbers = list(values)
    return statistics.fmean(numbers) if numbers else None


def study() -> list[Row]:
    """The study's published mean significant bits per subject (Gonzalez Pepe et al. 2023).

    Columns: subject, then {synthmorph, freesurfer}_{moved, warp}_bits, as published.
    """
    return read_table(Path(__file__).with_name("study_significant_bits.csv"))
