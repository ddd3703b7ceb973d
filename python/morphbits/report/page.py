"""The one page: everything an experiment has to say, in a single file that opens offline."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import statistics
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphbits import bids, config, datasets
from morphbits.config import DEMO_MODEL, Arithmetic, ExecutionConfig, ExperimentConfig
from morphbits.datasets import corr
from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.report import experiment as reading
from morphbits.report import (
    figures,
    html,
    methods_text,
    references,
    registrations,
    tables,
    viewer,
)
from morphbits.report.experiment import Experiment, mean, select
from morphbits.report.figures import Figure
from morphbits.stats.intervals import Interval, over_subjects
from morphbits.stats.significance import (
    CNH_PROBABILITY,
    CONFIDENCE,
    FLOAT32_BITS,
    general_probability,
)
from morphbits.wording import measured_duration

SUBJECTS_SHOWN = 6  # whose images are open when the page is; the others unfold
EMBEDDED = 2_000_000  # bytes of the largest table that is copied into the page
TABLES = (
    "significance.csv",
    "bits_over_n.csv",
    "variability.csv",
    "repeatability.csv",
    "accuracy.csv",
    "measures.csv",
    "ratios.csv",
)


def build(experiment: Experiment, subjects: int = 0) -> list[Path]:
    """Write `report.html` into the experiment's folder, its figures as files into `figures/`
    there and, for `subjects` > 0, `report-viewer.html`: the same page with a viewer of the volumes
    of the first so many. Returns the paths of the pages. An earlier `report-viewer.html` is
    deleted, since its numbers may differ."""
    drawn = draw(experiment)
    folder = bids.experiment_folder(experiment.results, experiment.name)
    light, whole = folder / "report.html", folder / "report-viewer.html"
    write_atomically(light, render(experiment, drawn).encode())
    whole.unlink(missing_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        write_atomically(folder / "figures" / f"{name}{figure.extension}", figure.content)
    if not subjects:
        return [light]
    volumes = viewer.content(experiment, figures.map_scale(experiment), subjects)
    write_atomically(whole, render(experiment, drawn, volumes).encode())
    return [light, whole]


def draw(experiment: Experiment) -> dict[str, Figure]:
    """The figures by name, those that there are data for; a subject's are named `maps_<subject>`
    and `registration_<subject>`."""
    scale = figures.map_scale(experiment)
    seen = registrations.read(experiment)
    limit = registrations.limit(seen.values())
    # images are read and compressed, which takes longer, while the other figures are drawn
    with ThreadPoolExecutor(figures.at_once()) as pool:
        maps = pool.map(lambda one: figures.maps(experiment, one, scale), experiment.subjects)
        pictures = pool.map(lambda name: registrations.picture(name, seen[name], limit), seen)
        drawn = {
            "box-plots": figures.box_plots(experiment),
            "bits-over-n": figures.over_n(experiment),
            "beside-the-study": figures.beside_the_study(experiment),
            "by-tissue": figures.by_tissue(experiment),
            "accuracy": figures.accuracy(experiment),
            "map-colours": figures.map_colours(scale),
            **{f"maps_{name}": one for name, one in zip(experiment.subjects, maps, strict=True)},
            "displacement-colours": registrations.colours(limit) if seen else None,
            **{f"registration_{name}": one for name, one in zip(seen, pictures, strict=True)},
        }
    return {name: figure for name, figure in drawn.items() if figure}


def render(
    experiment: Experiment, drawn: dict[str, Figure], volumes: dict[str, Any] | None = None
) -> str:
    """The page as HTML, with everything that it shows inside it. volumes: see `viewer.content`."""
    seen = [
        subject
        for subject in experiment.subjects
        if {f"maps_{subject}", f"registration_{subject}"} & set(drawn)
    ]
    folder = bids.experiment_folder(experiment.results, experiment.name)
    return html.render(
        "report/page.html",
        experiment=experiment,
        figures=drawn,
        tables=tables,
        headlines=[headline(experiment, quantity) for quantity in ("image", "warp")],
        bits=FLOAT32_BITS,
        held=experiment.bits_held,
        support=reading.support(experiment.counts),
        study_samples=reading.STUDY_SAMPLES,
        flattery={q: flattery(experiment, q) for q in ("image", "warp")},
        rounding=methods_text.ROUNDING[experiment.configuration.get("mode", "nearest")],
        facts=facts(experiment),
        seen=seen,
        shown=SUBJECTS_SHOWN,
        viewer=volumes,
        map_scale=figures.map_scale(experiment),
        method=method(experiment),
        model=model_card(experiment),
        command=command(experiment),
        unfinished=unfinished(experiment),
        downloads=downloads(folder),
        methods=methods_text.write(experiment),
        references=references.ALL,
    )


@dataclass(frozen=True)
class Headline:
    """The number at the top, for image or warp."""

    quantity: str
    colour: str
    mean: float
    q05: float
    q95: float
    digits: float  # decimal
    deviation: float | None  # standard deviation over subjects
    error: float | None  # standard error of the mean, from the number of samples
    over_samples: Interval | None  # 95 %
    over_subjects: Interval | None


def downloads(folder: Path) -> dict[str, str]:
    """Where the link of each table leads: a copy inside the page; to the file if it is large."""
    found = {}
    for path in (folder / name for name in TABLES):
        if path.is_file():
            small = path.stat().st_size <= EMBEDDED
            found[path.name] = html.data_uri(path.read_bytes(), "csv") if small else path.name
    return found


def headline(experiment: Experiment, quantity: str) -> Headline:
    """Mean bits over subjects of all voxels: general method, reference mean of samples."""
    rows = list(experiment.bits(quantity).values())
    value = mean(row["mean"] for row in rows) or 0.0
    return Headline(
        quantity=quantity,
        colour=figures.COLOURS[quantity],
        mean=value,
        q05=mean(row["q05"] for row in rows) or 0.0,
        q95=mean(row["q95"] for row in rows) or 0.0,
        digits=value * math.log10(2),
        deviation=statistics.stdev(row["mean"] for row in rows) if len(rows) > 1 else None,
        error=experiment.standard_error(quantity),
        over_samples=experiment.interval_over_samples(quantity),
        over_subjects=over_subjects([row["mean"] for row in rows]),
    )


def flattery(experiment: Experiment, quantity: str) -> float | None:
    """By how much Z in float32 raises the mean over subjects, against Z in float64."""
    rows = select(experiment.bits_over_n, quantity=quantity)
    pairs = [(row["mean"], row["mean_float64_z"]) for row in rows]
    return mean(narrow - wide for narrow, wide in pairs if wide == wide)


def facts(experiment: Experiment) -> dict[str, Any]:
    """Numbers that the page's sentences name; None where they are not known."""
    spread_mm = select(experiment.variability, quantity="warp", unit="mm", tissue="brain")
    again = [row for row in experiment.repeatability if row["comparison"] in ("again", "threads")]

    def time(records: list[reading.Record]) -> str:
        """Median time and number of threads in words; empty where there is no record."""
        seconds = tables.median_of(records, "seconds")
        threads = sorted({record.provenance["threads"] for record in records})
        words = " or ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")
        return "" if seconds is None else f"{measured_duration(seconds)} ({words})"

    return {
        "warp_std_mm": mean(row["mean"] for row in spread_mm),
        "warp_largest_mm": max((row["max"] for row in spread_mm), default=None),
        "rerun_same": bool(again) and all(row["differing"] == 0 for row in again),
        "rerun_known": bool(again),
        "rerun_voxels": max(
            (row["max_absolute"] for row in select(again, quantity="warp")), default=None
        ),
        "dice": {
            tissue: [
                mean(
                    row[when] for row in select(experiment.accuracy, measure="dice", tissue=tissue)
                )
                for when in ("before", "after")
            ]
            for tissue in dict.fromkeys(
                row["tissue"] for row in select(experiment.accuracy, measure="dice")
            )
        },
        "time": {
            "perturbed": time(experiment.perturbed),
            "ieee": time(experiment.of_sample("ieee")),
            "plain": time(experiment.of_sample("plain")),
        },
        "without_a_bit": sum(row["without_a_bit"] for row in experiment.bits("image").values()),
    }


def method(experiment: Experiment) -> list[dict[str, Any]]:
    """For each number of samples that occurs: what probability it supports."""
    return [
        {
            "n": n,
            "probability": general_probability(n),
            "confidence": CONFIDENCE,
            "cnh_probability": CNH_PROBABILITY,
        }
        for n in experiment.counts
    ]


def model_card(experiment: Experiment) -> dict[str, Any]:
    """What the model's own TOML file beside its weights says of it; empty where there is none."""
    weights = experiment.perturbed[0].provenance.get("files", {}).get("model")
    path = Path(weights).with_suffix(".toml") if weights else None
    if path is None or not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}); put it back or move it away") from None


def unfinished(experiment: Experiment) -> list[str]:
    """What is missing for the experiment that was asked for, in sentences."""
    wanted = experiment.settings.get("runs")
    counts = {subject: experiment.n_of(subject) for subject in experiment.subjects}
    most = wanted if isinstance(wanted, int) else max(counts.values())
    sentences = [
        f"{subject} has {n} of {most} samples." for subject, n in counts.items() if n < most
    ]
    started = {record.subject.entities for record in experiment.perturbed}
    sentences += [
        f"{subject} has fewer than two samples and is left out."
        for subject in sorted(started - set(counts))
    ]
    subjects = experiment.settings.get("subjects")
    if isinstance(subjects, int) and len(counts) < subjects:
        sentences.append(f"{len(counts)} of {subjects} subjects have samples.")
    return sentences


def command(experiment: Experiment) -> str:
    """The make command that makes the samples of this experiment again, byte for byte."""
    shared = {field.name for field in dataclasses.fields(Arithmetic)} - {"seed"}
    values = {k: v for k, v in experiment.configuration.items() if k in shared}
    values |= {
        "subjects": len(experiment.subjects),
        "runs": max(experiment.n_of(subject) for subject in experiment.subjects),
        **experiment.settings,
    }
    if values.get("dataset", "auto") == "auto":
        values["dataset"] = datasets.option_of(experiment.dataset)
    model = Path(values.get("model", DEMO_MODEL))
    if model.parts[-3:] == DEMO_MODEL.parts[-3:]:  # of any checkout
        values["model"] = None
    where = {"experiment": experiment.name, "results": experiment.results}
    root = experiment.dataset_root
    if root and values["dataset"] in ("phantom", *corr.ROUTES):
        where["data"] = root.parent
    defaults = ExecutionConfig()
    where = {k: v for k, v in where.items() if v != getattr(defaults, k)}
    variables = config.to_variables(ExperimentConfig, values)
    variables |= {name.upper(): str(value) for name, value in where.items()}
    extent = {name: variables.pop(name) for name in ("SUBJECTS", "RUNS")}  # come first
    # make expands $, the shell takes the quotes away
    quoted = {n: shlex.quote(v.replace("$", "$$")) for n, v in (extent | variables).items()}
    words = (f"{name}={value}" for name, value in quoted.items())
    return "make inference " + " ".join(words)


def summarize(experiment: Experiment) -> str:
    """The table that a run prints at its end: significant bits per subject."""
    table = tables.summary(experiment)
    lines = [table.header, *table.rows, *table.foot]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]

    def text(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = (cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([first, *others]).rstrip()

    heads, start = [], 0
    for words, columns in table.groups:
        width = sum(widths[start : start + columns]) + 2 * (columns - 1)
        heads.append(words.center(width))
        start += columns
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return os.linesep.join(
        [
            table.caption,
            "  ".join(heads).rstrip(),
            text(table.header),
            rule,
            *map(text, table.rows),
            rule,
            *map(text, table.foot),
        ]
    )
