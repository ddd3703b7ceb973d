"""One function per table: an experiment in, cells as text out, for the page and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphbits.config import FREESURFER_MODELS, ExperimentConfig, labelled
from morphbits.report.experiment import (
    STUDY_SAMPLES,
    Experiment,
    Record,
    mean,
    select,
    study,
    support,
)
from morphbits.stats.analysis import Row
from morphbits.stats.intervals import over_subjects
from morphbits.stats.significance import FLOAT32_BITS, general_probability
from morphbits.wording import gigabytes, measured_duration

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text. `groups` are headings over several columns: (text, columns)."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    foot: list[list[str]] = field(default_factory=list)
    groups: list[tuple[str, int]] = field(default_factory=list)
    text_columns: int = 1  # the first columns are words, the others numbers


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals, thousands apart; a dash for none."""
    if value is None or value != value:
        return MISSING
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def small(value: float | None) -> str:
    """A number of any size with two significant digits, 1.2 × 10⁻⁵ where it is tiny."""
    if value is None or value != value:
        return MISSING
    if math.isinf(value):
        return "∞"
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:.2g}"
    if 10 <= abs(value) < 1e6:
        return number(value, 0)
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """mean ± standard deviation over subjects; the mean alone for one."""
    if not values:
        return MISSING
    text = number(statistics.fmean(values), digits)
    return text if len(values) < 2 else f"{text} ± {number(statistics.stdev(values), digits)}"


def per_subject(experiment: Experiment) -> Table:
    """Bits of each subject, image and warp, by both references and both methods."""
    columns = [
        (quantity, which)
        for quantity in ("image", "warp")
        for which in (
            {},
            {"reference": "ieee"},
            {"method": "cnh"},
            {"method": "cnh", "reference": "ieee"},
        )
    ]
    found = [experiment.bits(quantity, **which) for quantity, which in columns]
    excluded = experiment.bits("image")

    def line(subject: str) -> list[str]:
        cells = [number(rows[subject]["mean"]) if subject in rows else MISSING for rows in found]
        background = number(excluded[subject]["background_excluded"], 0)
        return [subject, str(experiment.n_of(subject)), *cells, background]

    means = [spread([row["mean"] for row in rows.values()]) for rows in found]
    names = ["general, mean", "general, IEEE", "CNH, mean", "CNH, IEEE"]
    return Table(
        caption="Mean significant bits over all voxels of a subject, by method and reference",
        header=["subject", "n", *names, *names, "excluded"],
        rows=[line(subject) for subject in experiment.subjects],
        foot=[["all subjects", "", *means, ""]],
        groups=[("", 2), ("image", 4), ("warp (mean of x, y, z)", 4), ("background", 1)],
    )


def over_n(experiment: Experiment) -> Table:
    """Mean bits of the first n samples, over the subjects that have as many."""
    rows = []
    for n in sorted({row["n"] for row in experiment.bits_over_n}):
        cells = [str(n)]
        for quantity in ("image", "warp"):
            found = select(experiment.bits_over_n, quantity=quantity, n=n)
            means = [row["mean"] for row in found]
            ends = over_subjects(means)
            cells += [spread(means), " to ".join(map(number, ends)) if ends else MISSING]
        rows.append([*cells, str(len(found)), number(general_probability(n))])
    return Table(
        caption="Mean significant bits of the first n samples (general, mean of samples;"
        " ± standard deviation over subjects; 95 % interval of the mean over subjects)",
        header=["n", "image", "interval", "warp", "interval", "subjects", "probability"],
        rows=rows if len(rows) > 1 else [],
    )


def components(experiment: Experiment) -> Table:
    """Bits of the three components of the warp."""
    names = ["warp_x", "warp_y", "warp_z", "warp"]
    columns = [experiment.bits(name) for name in names]
    rows = [
        [subject, *(number(rows[subject]["mean"]) for rows in columns)]
        for subject in experiment.subjects
    ]
    foot = ["all subjects", *(spread([r["mean"] for r in rows.values()]) for rows in columns)]
    return Table(
        caption="Mean significant bits of the warp by component (general, mean)",
        header=["subject", "x", "y", "z", "mean of x, y, z"],
        rows=rows,
        foot=[foot],
    )


def by_tissue(experiment: Experiment) -> Table:
    """Bits and spread of each tissue, over subjects."""
    rows = []
    for tissue in experiment.tissues:
        cells = [tissue]
        for quantity, unit in (("image", "intensity"), ("warp", "mm")):
            bits = experiment.bits(quantity, tissue).values()
            stds = select(experiment.variability, tissue=tissue, quantity=quantity, unit=unit)
            cells += [
                spread([row["mean"] for row in bits if row["voxels"]]),
                small(mean(row["mean"] for row in stds)),
                small(max((row["max"] for row in stds), default=None)),
            ]
        rows.append(cells)
    names = ["bits", "std, mean", "std, largest"]
    return Table(
        caption="By tissue: bits (mean ± standard deviation over subjects), and the standard"
        " deviation over samples, of intensities in [0, 1] and of displacements in mm",
        header=["tissue", *names, *names],
        rows=rows,
        groups=[("", 1), ("image", 3), ("warp", 3)],
    )


def beside_the_study(experiment: Experiment) -> Table:
    """The study's published means and ours, counted both ways."""
    published = study()
    rows = []
    sources = [
        (
            "study, SynthMorph",
            [row["synthmorph_moved_bits"] for row in published],
            [row["synthmorph_warp_bits"] for row in published],
            -1,
        ),
        (
            "study, FreeSurfer recon-all (libm only)",
            [row["freesurfer_moved_bits"] for row in published],
            [row["freesurfer_warp_bits"] for row in published],
            -1,
        ),
    ]
    counts = experiment.counts
    here = (
        "this experiment",
        experiment.of_first(STUDY_SAMPLES, "image"),
        experiment.of_first(STUDY_SAMPLES, "warp"),
        1,
    )
    fewer = counts[0] < STUDY_SAMPLES
    numbers = " or ".join(dict.fromkeys(str(min(n, STUDY_SAMPLES)) for n in counts))
    for name, image, warp, offset in (*sources, here):
        other = [f"{number(statistics.fmean(values) + offset)}" for values in (image, warp)]
        given = [spread(image), spread(warp)]
        published_way, formula_way = (given, other) if offset < 0 else (other, given)
        ours = offset > 0
        marked = f"{name} (fewer samples: not comparable)" if ours and fewer else name
        n = numbers if ours else str(STUDY_SAMPLES)
        rows.append([marked, str(len(image)), n, *formula_way, *published_way])
    return Table(
        caption="The study's published significant bits and those of this experiment's first"
        f" {STUDY_SAMPLES} samples (mean ± standard deviation over subjects)",
        header=["", "subjects", "n", "image", "warp", "image", "warp"],
        rows=rows,
        groups=[("", 3), ("by the formula", 2), ("with the study's probable extra bit", 2)],
    )


def matched_with_the_study(experiment: Experiment) -> Table:
    """Subjects that the study measured too, side by side; no rows where none is shared."""
    published = {row["subject"]: row for row in study()}
    rows = []
    here = {q: experiment.of_first(STUDY_SAMPLES, q) for q in ("image", "warp")}
    for index, subject in enumerate(experiment.subjects):
        theirs = published.get(subject.split("_")[0])
        if theirs is None:
            continue
        cells = [subject, str(min(experiment.n_of(subject), STUDY_SAMPLES))]
        for quantity, column in (
            ("image", "synthmorph_moved_bits"),
            ("warp", "synthmorph_warp_bits"),
        ):
            cells += [
                number(here[quantity][index]),
                number(theirs[column] - 1),
                number(theirs[column]),
            ]
        rows.append(cells)
    names = ["here", "study, by the formula", "study, as published"]
    return Table(
        caption=f"Subjects that the study measured too, in {STUDY_SAMPLES} samples; n: those here",
        header=["subject", "n", *names, *names],
        rows=rows,
        groups=[("", 2), ("image", 3), ("warp", 3)],
    )


_COMPARISONS = {
    "again": "plain, run again",
    "threads": "plain, with another number of threads",
    "plain": "plain, against sample-ieee",
}


def repeatability(experiment: Experiment) -> Table:
    """What differs when nothing is perturbed, worst over subjects."""
    rows = []
    for comparison, words in _COMPARISONS.items():
        for quantity in ("image", "warp"):
            found = select(experiment.repeatability, comparison=comparison, quantity=quantity)
            if not found:
                continue
            share = mean(row["differing"] / row["elements"] for row in found) or 0
            rows.append(
                [
                    words,
                    quantity,
                    str(len(found)),
                    f"{small(100 * share)} %" if share else "none: same bytes",
                    number(max(row["median_ulps"] for row in found), 0),
                    small(max(row["max_absolute"] for row in found)),
                ]
            )
    return Table(
        caption="Differences with nothing perturbed (image in [0, 1], warp in voxels)",
        header=["", "", "subjects", "values that differ", "median, ulps", "largest difference"],
        rows=rows,
        text_columns=2,
    )


_MEASURES = {
    "dice": ("Dice {tissue}", 3),
    "surface": ("distance of surfaces, mm ({tissue})", 2),
    "surface_p95": ("distance of surfaces, mm, 95 % ({tissue})", 2),
    "warp_error": ("distance to the true warp, mm ({tissue})", 2),
    "warp_error_p95": ("distance to the true warp, mm, 95 % ({tissue})", 2),
    "folding": ("folding, % of voxels ({tissue})", 3),
}


def accuracy(experiment: Experiment) -> Table:
    """Accuracy of the IEEE registration over subjects, before (identity) and after."""
    rows = []
    keys = dict.fromkeys((row["measure"], row["tissue"]) for row in experiment.accuracy)
    for measure, tissue in keys:
        found = select(experiment.accuracy, measure=measure, tissue=tissue)
        words, digits = _MEASURES[measure]
        before = [row["before"] for row in found if isinstance(row["before"], int | float)]
        after = [row["after"] for row in found]
        rows.append(
            [
                words.format(tissue=tissue),
                str(len(found)),
                spread(before, digits),
                spread(after, digits),
                f"{number(min(after), digits)} – {number(max(after), digits)}",
            ]
        )
    return Table(
        caption="Accuracy of sample-ieee (mean ± standard deviation over subjects)",
        header=["", "subjects", "before", "after", "range after"],
        rows=rows,
    )


_RATIO_ROWS = 40  # a label map of a whole brain has some hundred; the others are in ratios.csv
_MEASURED = {
    "volume": ("volume, mm³", 0),
    "dice": ("Dice", 4),
    "displacement": ("displacement, mm", 4),
    "jacobian": ("Jacobian determinant", 4),
    "dice_ieee": ("Dice with the unperturbed result", 4),
    "fd_power": ("framewise displacement (Power), mm", None),
    "fd_jenkinson": ("framewise displacement (Jenkinson), mm", None),
}


def measures(experiment: Experiment) -> Table:
    """Measures of regions: their spread over samples, relative to that over subjects."""
    rows = experiment.ratios
    left = len(rows) - _RATIO_ROWS
    more = f"; {left} more rows are in ratios.csv" if left > 0 else ""

    def average(row: Row) -> str:
        digits = _MEASURED[row["measure"]][1]
        return small(row["mean"]) if digits is None else number(row["mean"], digits)

    def npvr(row: Row) -> str:
        if row["npvr"] != row["npvr"]:
            return MISSING
        low, high = small(row["npvr_low"]), small(row["npvr_high"])
        return f"{small(row['npvr'])} ({low} to {high})"

    return Table(
        caption="Measures of each region: mean, standard deviation over samples (σ num) and over"
        " subjects (σ anat), their ratios (NPVR with its 95 % interval), and the group differences"
        f" that are lost in rounding{more}",
        header=[
            *("measure", "region", "subjects", "n", "mean", "σ num", "σ anat"),
            *("NPVR", "NAVR", "Cohen's d", "difference"),
        ],
        rows=[
            [
                _MEASURED[row["measure"]][0],
                row["tissue"],
                str(row["subjects"]),
                str(row["n"]),
                average(row),
                small(row["sigma_num"]),
                small(row["sigma_anat"]),
                npvr(row),
                small(row["navr"]),
                small(row["d_deviation"]),
                small(row["drowned"]),
            ]
            for row in rows[:_RATIO_ROWS]
        ],
        groups=[("", 7), ("σ num relative to σ pop, σ anat", 2), ("lost below", 2)],
        text_columns=2,
    )


def median_of(records: list[Record], key: str) -> float | None:
    """Median over samples of a number of their provenance; None where none has it."""
    values = [r.provenance[key] for r in records if r.provenance.get(key) is not None]
    return statistics.median(values) if values else None


def cost(experiment: Experiment) -> Table:
    """Time and memory of one sample, and slowdown against the unperturbed ones."""
    numbered = "perturbed" if experiment.perturbs else "numbered (nothing perturbed)"
    kinds = {
        numbered: experiment.perturbed,
        "ieee (same computation, nothing perturbed)": experiment.of_sample("ieee"),
        "plain (the unmodified framework)": experiment.of_sample("plain"),
    }

    perturbed = median_of(kinds[numbered], "seconds")
    rows = []
    for name, records in kinds.items():
        seconds = median_of(records, "seconds")
        memory = median_of(records, "peak_memory_bytes")
        slowdown = perturbed / seconds if perturbed and seconds else None
        threads = sorted({record.provenance["threads"] for record in records})
        rows.append(
            [
                name,
                str(len(records)),
                ", ".join(map(str, threads)) or MISSING,
                MISSING if seconds is None else measured_duration(seconds),
                f"{number(slowdown, 1)}×" if records and name != numbered else MISSING,
                gigabytes(memory) if memory else MISSING,
            ]
        )
    return Table(
        caption="Cost of one registration, median over samples",
        header=["sample", "count", "threads", "time", "perturbed is slower by", "peak memory"],
        rows=rows,
    )


def operators(experiment: Experiment) -> Table:
    """Perturbed elementary operations of one sample, by operator."""
    facts = experiment.perturbed[0].provenance
    total = facts.get("operations", 0)
    counts = sorted(facts.get("operators", {}).items(), key=lambda item: -item[1])
    return Table(
        caption="Perturbed elementary operations in one sample, by operator",
        header=["operator", "operations", "share"],
        rows=[[name, number(n, 0), f"{100 * n / total:.2f} %"] for name, n in counts if n],
        foot=[["all", number(total, 0), ""]] if counts else [],
    )


def what_was_run(experiment: Experiment) -> Table:
    """Configuration shared by all perturbed samples, inputs and machine."""
    configuration, facts = experiment.configuration, experiment.perturbed[0].provenance
    counts = experiment.counts
    hosts = {record.provenance.get("host") for record in experiment.perturbed}
    code = facts.get("code") or {}
    revision = (code.get("revision") or "not a git clone")[:12]
    files = facts.get("files", {})
    rows = [
        ["experiment", experiment.name],
        ["dataset", experiment.dataset],
        ["subjects", str(len(experiment.subjects))],
        ["samples per subject", " to ".join(map(str, {counts[0]: 0, counts[-1]: 0}))],
        ["model", _model(Path(files.get("model", MISSING)).name, experiment.model_checksums)],
        *_options(configuration | {"seed": experiment.settings.get("seed", MISSING)}),
        ["order of operations", facts.get("order", MISSING)],
        ["operations per sample", number(facts.get("operations"), 0)],
        ["versions", ", ".join(f"{k} {v}" for k, v in configuration.get("versions", {}).items())],
        ["kernel", str(configuration.get("kernel", MISSING))],
        ["code", revision + (" with local changes" if code.get("dirty") else "")],
        ["machine", f"{facts.get('cpu', {}).get('name', MISSING)}, {facts.get('system', '')}"],
        ["hosts", str(len(hosts))],
    ]
    return Table(
        caption="What all numbered samples share", header=["", ""], rows=rows, text_columns=2
    )


def _options(values: dict[str, Any]) -> list[list[str]]:
    """A row for each option that has a value."""
    words = {"precision": _precision, "crop": lambda value: "yes" if value else "no"}
    rows = labelled(ExperimentConfig, values)
    return [
        [label, words.get(name, str)(value)]
        for name, (label, value) in rows.items()
        if value not in (None, "")
    ]


def _precision(option: str) -> str:
    if option == "24":
        return "float32, 24 bits"
    return f"each result in {option} bits" if option.isdigit() else f"{option}, emulated"


def _model(name: str, checksums: dict[str, str]) -> str:
    """Its name, and checksums of its file or its parts."""
    name = f"{name} of FreeSurfer 8's mri_synthmorph" if name in FREESURFER_MODELS else name
    parts = ", ".join(f"{part} {value[:19]}…".strip() for part, value in checksums.items())
    return f"{name} ({parts})" if parts else name


def left_out(experiment: Experiment) -> Table:
    """What of the dataset was not used, and why."""
    rows = [list(pair) for pair in experiment.left_out.items()]
    return Table(caption="Images and folders that were not used", header=["", ""], rows=rows)


def model_card(card: dict[str, Any]) -> Table:
    """What a model's TOML file says of it, a row for each entry; tables inside it with a comma."""
    rows: list[list[str]] = []

    def add(entries: dict[str, Any], prefix: str) -> None:
        for key, value in entries.items():
            if key == "caution":
                continue  # which the page says at its top
            if isinstance(value, dict):
                add(value, f"{prefix}{key.replace('_', ' ')}, ")
            else:
                words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                rows.append([prefix + key.replace("_", " "), words])

    add(card, "")
    return Table(caption="From the file next to its weights", header=["", ""], rows=rows)


def summary(experiment: Experiment) -> Table:
    """What the terminal shows at the end: bits per subject, and the mean of all."""
    columns = [
        experiment.bits("image"),
        experiment.bits("image", reference="ieee"),
        experiment.bits("image", method="cnh"),
        experiment.bits("warp"),
        experiment.bits("warp", reference="ieee"),
        experiment.bits("warp", method="cnh"),
    ]
    rows = [
        [
            subject,
            str(experiment.n_of(subject)),
            *(number(c[subject]["mean"]) if subject in c else MISSING for c in columns),
        ]
        for subject in experiment.subjects
    ]
    means = [[row["mean"] for row in column.values()] for column in columns]
    foot = [["mean", "", *(number(mean(values)) for values in means)]]
    if len(rows) > 1:
        deviations = [statistics.stdev(v) if len(v) > 1 else None for v in means]
        foot.append(["± subjects", "", *map(number, deviations)])
    errors = [experiment.standard_error(quantity) for quantity in ("image", "warp")]
    if None not in errors:
        foot.append(["± samples", "", number(errors[0], 3), "", "", number(errors[1], 3)])
        foot[-1] += [""] * (2 + len(columns) - len(foot[-1]))
    names = ["general", "vs IEEE", "CNH"]
    held = experiment.bits_held
    what = f"of {held}" if held == FLOAT32_BITS else f"of the {held} that results hold"
    caption = f"significant bits ({what}), mean over voxels; general: {support(experiment.counts)}"
    if not experiment.perturbs:
        caption += "\nnothing was perturbed: this is how well the computation repeats"
    return Table(
        caption=caption,
        header=["subject", "n", *names, *names],
        rows=rows,
        foot=foot,
        groups=[("", 2), ("image", 3), ("warp", 3)],
    )
