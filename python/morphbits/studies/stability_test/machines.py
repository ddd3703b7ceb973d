"""What moves a result on this machine: the same registration by every kernel that it can run.

Each way of computing is a process of its own with nothing perturbed, for kernels are chosen when a
library is loaded: torch's by ATEN_CPU_CAPABILITY, oneDNN's by ONEDNN_MAX_CPU_ISA (in torch and in
TensorFlow), the native engine's by MORPHBITS_VARIANT. Distances are to the first way, torch as it
is installed on one thread, and next to those of the experiment's perturbed samples.

The orders in which torch's kernels add here are written into a file (`orders.recorded`). On
another machine the native engine can follow it, and so compute torch's results of this one.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from morphbits import bids, images, machine, provenance
from morphbits.bids import Dataset, Subject
from morphbits.config import ExperimentConfig, RegisterConfig, from_mapping, to_arguments
from morphbits.engines.native.kernels.library import VARIANTS, available_variants
from morphbits.engines.native.orders import recorded
from morphbits.engines.native.orders.store import PROVEN
from morphbits.errors import UserError
from morphbits.models.model import located
from morphbits.report import notes
from morphbits.report.tables import MISSING, Table, number, small
from morphbits.samples.experiment import recorded_dataset
from morphbits.stats.analysis import Row
from morphbits.studies.stability_test.results import Compared, compare_subject, dice, millimetres
from morphbits.studies.stability_test.verdict import MINIMUM

PACKAGE = Path(__file__).parents[3]
ORDERS = "orders.json.gz"  # the file of this machine's orders
WITHOUT_ONEDNN = "import torch; torch.backends.mkldnn.set_flags(False); "
# (name, variant of this engine's kernels that shows that it can run here, torch's name, oneDNN's)
INSTRUCTIONS = (
    ("AVX-512", "avx512", "avx512", "AVX512_CORE"),
    ("AVX2", "avx2", "avx2", "AVX2"),
    ("portable", "portable", "default", "SSE41"),
)


@dataclass(frozen=True)
class Way:
    """One way of computing the registration: options of `RegisterConfig`, and its environment."""

    computes: str
    how: str
    options: Mapping[str, object]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: str = ""  # Python that runs first
    files: Mapping[str, Path] = field(default_factory=dict)  # more of register's options


def ways(other: Path, made: Sequence[Path], orders: Path | None = None) -> Iterator[Way]:
    """All ways of this machine, torch as it is installed first. other: another moving image, for
    a batch; made: where this machine's orders are written, of one image and of a batch; orders:
    those of another machine."""
    torch = {"engine": "ieee", "framework": "torch", "threads": 1}
    native = {"engine": "native", "framework": "torch", "mode": "nearest", "threads": 1}
    here = [row for row in INSTRUCTIONS if row[1] in available_variants()]
    yield Way("torch", "as installed", torch)
    yield Way("torch", "2 threads", torch | {"threads": 2})
    batch = {"batch-with": other}
    yield Way("torch", "in a batch of two", torch, files=batch)
    for name, _, aten, onednn in here:
        environment = {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn}
        yield Way("torch", f"{name} at most", torch, environment)
    yield Way("torch", "without oneDNN", torch, before=WITHOUT_ONEDNN)
    tf = {"engine": "ieee", "framework": "tensorflow", "threads": 1, "plain": True}
    yield Way("TensorFlow", "with oneDNN", tf)
    yield Way("TensorFlow", "with oneDNN, 2 threads", tf | {"threads": 2})
    yield Way("TensorFlow", "with oneDNN, in a batch of two", tf, files=batch)
    for name, _, _, onednn in here[1:]:
        yield Way("TensorFlow", f"oneDNN, {name} at most", tf, {"ONEDNN_MAX_CPU_ISA": onednn})
    yield Way("TensorFlow", "without oneDNN", tf | {"onednn": "off"})
    for name, variant, _, _ in here:
        yield Way("native, nearest", name, native, {"MORPHBITS_VARIANT": variant})
    yield Way("native, nearest", "2 threads", native | {"threads": 2})
    yield Way("native, nearest", "in a batch of two", native, files=batch)
    probe = native | {"accumulation": "probe"}
    there = f"torch's orders on {recorded.read(orders).words}" if orders else ""
    for file, among, more in zip(made, ("", ", in a batch of two"), ({}, batch), strict=True):
        files = {"record-orders": file, **more}
        yield Way("native, nearest", f"torch's orders here{among}", probe, files=files)
        if orders:
            files = {"orders": orders, **more}
            yield Way("native, nearest", f"{there}{among}", probe, files=files)


def settings_of(results: Path, experiment: str) -> ExperimentConfig:
    """The settings with which the experiment was run."""
    record = bids.experiment_file(results, experiment, "experiment.json")
    written = json.loads(record.read_text(encoding="utf-8"))["settings"]
    return from_mapping(ExperimentConfig, written, str(record))


def measure(
    results: Path,
    experiment: str,
    number_of_subject: int,
    folder: Path,
    orders: Path | None,
    say: Callable[[str], None],
) -> list[Row]:
    """A row for each way, and one for pairs of perturbed samples, on one subject of an experiment.
    This machine's orders are written into `folder`; `orders`: those of another machine.

    rms_mm, max_mm: distance of the warps; bits: in which images and warps agree in the mean; dice:
    smallest of the moved labels; ratio: distance over that of two samples (`verdict`); same_as:
    the first way with the same bytes; orders: how many were read and proven.
    """
    dataset, settings = recorded_dataset(results, experiment), settings_of(results, experiment)
    subjects = dataset.subjects()
    if number_of_subject > len(subjects):
        raise UserError(
            f"{dataset.root}: has {len(subjects)} subjects, no number {number_of_subject}"
        )
    subject = subjects[number_of_subject - 1]
    # another subject, or, where there is none, the fixed image
    following = subjects[number_of_subject % len(subjects)]
    other = dataset.moving(following) if len(subjects) > 1 else dataset.fixed()
    samples = _samples(results, experiment, subject, dataset)
    if len(samples) < MINIMUM:
        raise UserError(
            f"{results / experiment}: has {len(samples)} perturbed samples of {subject.entities}; "
            f"{MINIMUM} are needed to compare with (make inference RUNS=10)"
        )
    rows: list[Row] = []
    seen: dict[tuple[str, ...], str] = {}
    with tempfile.TemporaryDirectory(prefix="morphbits-machines-") as temporary:
        first: tuple[Path, Path] | None = None
        made = [Path(temporary) / name for name in ("alone.json.gz", "batch.json.gz")]
        for k, way in enumerate(ways(other, made, orders)):
            row: Row = {"computes": way.computes, "how": way.how}
            # named as the samples' files, which label maps and reports go by
            given = tuple(Path(temporary) / f"{k}" / path.name for path in samples[0])
            failed = _register(way, settings, dataset, subject, given)
            if failed:
                rows.append(row | {"failed": failed})
                say(f"{way.computes}, {way.how}: failed: {failed}")
                continue
            images_of = (given[0], given[1])
            first = first or images_of
            key = tuple(provenance.data_sha256(_data(path)) for path in images_of)
            name = f"{way.computes}, {way.how}"
            row["same_as"] = seen.setdefault(key, name)
            row |= _distances(first, images_of, samples, dataset)
            if found := _orders(given[0].with_name("sample.json")):
                proven = sum(words.endswith(PROVEN) for words in found.values())
                row["orders"] = f"{proven} of {len(found)}"
            rows.append(row)
            say(f"{name}: {row['rms_mm']:.3g} mm, {row['ratio']:.3g} times two samples")
        if all(file.is_file() for file in made):
            recorded.merge(made, folder / ORDERS)
    pairs = [
        _distances(one, other, samples, dataset)
        for one, other in itertools.islice(itertools.combinations(samples, 2), 10)
    ]
    middle = {
        key: float(np.median([pair[key] for pair in pairs if pair[key] is not None] or [np.nan]))
        for key in pairs[0]
    }
    middle["ratio"] = 1.0  # by its definition; these pairs are not outside of their own spread
    rows.append({"computes": "two perturbed samples", "how": settings.mode, **middle})
    return rows


def _samples(
    results: Path, experiment: str, subject: Subject, dataset: Dataset
) -> list[tuple[Path, Path]]:
    """Image and warp of each perturbed sample."""
    units = [
        bids.sample_folder(results, experiment, name, subject)
        for name in bids.list_samples(results, experiment)
        if name.isdigit()
    ]
    return [
        (bids.moved_path(u, subject, dataset.space), bids.warp_path(u, subject, dataset.space))
        for u in units
        if bids.sample_json(u).is_file()
    ]


def _register(
    way: Way,
    settings: ExperimentConfig,
    dataset: Dataset,
    subject: Subject,
    given: tuple[Path, ...],
) -> str:
    """Make image and warp; returns why it failed, or nothing."""
    chosen: RegisterConfig = settings.registration(**way.options)
    words = ["register", "--moving", str(dataset.moving(subject)), "--fixed", str(dataset.fixed())]
    words += ["--model", str(located(settings.model))]
    words += ["--moved", str(given[0]), "--warp", str(given[1]), *to_arguments(chosen)]
    words += [word for name, path in way.files.items() for word in (f"--{name}", str(path))]
    code = f"{way.before}from morphbits.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), **way.environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    *_, last = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return last.removeprefix("error: ") if done.returncode else ""


def _orders(sample: Path) -> dict[str, str]:
    """By layer, the orders of additions that a registration followed, in words."""
    found: dict[str, str] = json.loads(sample.read_text())["provenance"].get("orders", {})
    return found


def _data(path: Path) -> np.ndarray:
    return np.ascontiguousarray(images.load_warp(path).data if "_xfm" in path.name
                                else images.load(path).data)  # fmt: skip


def _distances(
    one: tuple[Path, Path],
    other: tuple[Path, Path],
    samples: list[tuple[Path, Path]],
    dataset: Dataset,
) -> Row:
    """How far two results are apart, each an image and a warp."""
    files = [
        Compared(Path(a.name), a, b, [sample[k] for sample in samples])
        for k, (a, b) in enumerate(zip(one, other, strict=True))
    ]
    found = compare_subject("subject", files)
    apart = millimetres(files[1])
    overlap = dice(files[1], dataset)
    return {
        "image_bits": found.files[0].bits,
        "warp_bits": found.files[1].bits,
        "rms_mm": apart.root_mean_square,
        "max_mm": apart.largest,
        "dice": min(overlap.values()) if overlap else None,
        "ratio": found.distance / found.usual,
    }


def _how(row: Row) -> str:
    return row["how"] + (f" ({row['orders']} proven)" if row.get("orders") else "")


def table(rows: list[Row], first: str) -> Table:
    """For page and note."""

    def cells(row: Row) -> list[str]:
        if "failed" in row:
            return [MISSING] * 6 + [f"failed: {row['failed']}"]
        return [
            number(row["image_bits"]), number(row["warp_bits"]), small(row["rms_mm"]),
            small(row["max_mm"]), number(row["dice"], 5), number(row["ratio"]),
            row.get("same_as", ""),
        ]  # fmt: skip

    return Table(
        caption=f"Distance to “{first}”",
        header=[
            "computed by", "how", "image: bits that agree", "warp: bits", "warp: RMS, mm",
            "largest, mm", "smallest Dice", "times two samples", "same bytes as",
        ],
        rows=[[row["computes"], _how(row), *cells(row)] for row in rows],
        text_columns=2,
    )  # fmt: skip


def in_markdown(kernels: Table, experiment: str, settings: ExperimentConfig) -> str:
    """The table as a page for notes/benchmarks/, with commands, commit, processor and versions."""
    versions = provenance.versions("torch") | provenance.versions("tensorflow")
    computing = [f"{x} {versions[x]}" for x in ("torch", "tensorflow-cpu") if x in versions]
    options = f"EXPERIMENT={experiment} SIZE={settings.size} SUBJECTS={settings.subjects}"
    commit = str(provenance.code_revision()["revision"])[:10]
    lines = [
        f"# What moves a result, {date.today().isoformat()}",
        "",
        f"`make inference {options} RUNS={settings.runs}` and `make machines "
        f"EXPERIMENT={experiment} NOTES=1` at commit {commit}, "
        f"on {machine.cpu()['name']}; {', '.join(computing)}. Samples: engine {settings.engine}, "
        f"mode {settings.mode}, accumulation {settings.accumulation}.",
        "",
        *notes.lines(kernels),
    ]
    return "\n".join(lines) + "\n"


# avx512_ifma: avx512, but for mode nearness
assert {row[1] for row in INSTRUCTIONS} == set(VARIANTS) - {"avx512_ifma"}
