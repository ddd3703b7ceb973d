"""The study (Gonzalez Pepe et al. 2023, arXiv:2308.01939) as one plan: what it needs and costs.

CoRR, preprocessing, samples, and the comparison are done by their own modules; here they are put
in a row, and asked beforehand for what they lack.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from morphbits import bids, wording
from morphbits.config import EXPERIMENTS, ExecutionConfig, ExperimentConfig, from_toml
from morphbits.datasets import corr_install
from morphbits.datasets.corr_table import Scan
from morphbits.engines import verrou
from morphbits.errors import UserError
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.preprocessing import freesurfer, open_route, preprocess
from morphbits.samples import estimate, experiment, matrix

PUBLISHED = Architecture((256,) * 4, (256,) * 6, 5)  # of the study's weights
RAW_GB = 0.015  # a raw image; CoRR's have 8 to 20 MB
OPEN_HOURS = 0.02  # core-hours of the open route at 1 mm: notes/findings/preprocessing.md
FREESURFER_HOURS = 1.5  # core-hours of recon-all to -canorm: a guess, never measured here
SAMPLE_BYTES_PER_VOXEL = 16  # an image and three components of a warp, float32, before gzip


@dataclass(frozen=True)
class PaperPlan:
    """What is to be done. model: None for the published weights."""

    data: Path
    results: Path
    scans: Sequence[Scan]
    engine: str
    model: Path | None
    runs: int
    route: str
    size: str

    @property
    def name(self) -> str:
        """Of the experiment: each engine has its own."""
        return "paper" if self.engine == "verrou" else f"paper-{self.engine}"

    @property
    def dataset(self) -> bids.Dataset:
        """CoRR by the route that was chosen."""
        return bids.corr_dataset(self.data, self.route)

    def settings(self) -> ExperimentConfig:
        """`experiments/<name>.toml`, and what was chosen otherwise."""
        base = from_toml(ExperimentConfig, EXPERIMENTS / f"{self.name}.toml")
        model = self.model or self.data / base.model.relative_to("data")
        return replace(base, runs=self.runs, model=model, dataset=self.dataset.name)

    def missing(self) -> list[str]:
        """What is not here and cannot be fetched on the way, each with how to get it."""
        lines = []
        model = self.settings().model
        if not model.is_file():
            lines.append(f"weights: no {model}; make models downloads them, or name a MODEL=")
        if self.engine == "verrou" and verrou.found() is None:
            lines.append("Verrou: not on this machine; make docker builds it, or ENGINE=native")
        if self.route == "freesurfer":
            fixed = bids.study_fixed_image(self.data)
            if not fixed.is_file():
                lines.append(f"fixed image: no {fixed}; ask the study's authors, or ROUTE=open")
            try:
                freesurfer.FreeSurfer.found()
            except UserError as error:
                lines.append(f"FreeSurfer: {error}")
        if not all((bids.corr_raw(self.data) / scan.path).exists() for scan in self.scans):
            lines += [
                f"{tool}: not on this machine, and CoRR is not installed; make setup"
                for tool in ("datalad", "git-annex")
                if shutil.which(tool) is None
            ]
        return lines

    def cost(self) -> str:
        """Core-hours and GB, from a trial of the engine on this machine."""
        factor = open_route.SIZES[self.size] if self.route == "open" else 1
        voxels = 160 * 192 * 224 // factor**3
        subjects, units = len(self.scans), len(self.scans) * (self.runs + len(matrix.REFERENCES))
        raw = RAW_GB * subjects
        made = (units * SAMPLE_BYTES_PER_VOXEL + subjects * 8) * voxels / 1e9
        each = OPEN_HOURS / factor**2 if self.route == "open" else FREESURFER_HOURS
        try:
            hours, trial = self._sample_hours(voxels)
            samples = f"{hours:,.1f} core-hours ({trial})"
        except UserError as error:
            samples = f"not known here: {error}"
        return "\n".join(
            [
                f"subjects    {subjects}, {units} samples of {voxels:,} voxels",
                f"download    {raw:.1f} GB",
                f"preprocess  {each * subjects:.1f} core-hours ({self.route} route)",
                f"samples     {samples}",
                f"disk        at most {raw + made:.1f} GB",
            ]
        )

    def _sample_hours(self, voxels: int) -> tuple[float, str]:
        """Core-hours of all samples, by the estimate of `make inference` on phantoms of the same
        number of voxels; without the weights, on random ones of their architecture."""
        said: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            settings = self.settings()
            trial = "measured by a trial"
            if not settings.model.is_file():
                model = Path(folder) / "published-architecture.h5"
                save_h5(model, PUBLISHED, init_weights(PUBLISHED, 1))
                settings = replace(settings, model=model)
                trial += " with random weights of the published architecture"
            settings = replace(
                settings, dataset="phantom", size=self.size, subjects=len(self.scans)
            )
            execution = ExecutionConfig(
                "paper-cost", Path(folder), Path(folder), jobs=1, threads=1, dry_run=True
            )
            plan = replace(experiment.make_plan(settings, execution, said.append), voxels=voxels)
            hours = experiment.seconds_left(plan, said.append) / 3600
        return hours, f"{trial}, {wording.duration(3600 * hours / len(plan.todo))} each"

    def prepare(self, source: str, jobs: int | None) -> None:
        """Install and preprocess; UserError where an image is missing or none is ready."""
        jobs = jobs or estimate.cores()
        lost = corr_install.install(self.data, self.scans, source, min(jobs, 4))
        if lost:
            raise UserError("\n".join([*lost, "CoRR is not complete; run again to get the rest"]))
        preprocess(self.data, self.scans, self.route, self.size, jobs)
        mine = {scan.subject for scan in self.scans}
        others = [who.entities for who in self.dataset.subjects() if who not in mine]
        if others:
            raise UserError(
                f"{self.dataset.root} also holds {', '.join(others)}, which this run was not "
                "asked for: use another DATA folder"
            )
        if not self.dataset.subjects():
            raise UserError("every subject was left out by preprocessing: there is nothing to run")

    def inference(self) -> list[str]:
        """The options of `morphbits inference`."""
        return [
            f"--experiment={self.name}",
            f"--dataset={self.dataset.name}",
            f"--subjects={len(self.dataset.subjects())}",
            f"--runs={self.runs}",
            f"--model={self.settings().model}",
            f"--data={self.data}",
            f"--results={self.results}",
        ]
