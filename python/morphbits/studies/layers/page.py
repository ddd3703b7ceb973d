"""The page and the note about where the bits go: stages, activations, precision, order of sums.

Read from the tables beside it; a study whose table is not there is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure as Canvas

from morphbits import bids
from morphbits.config import ExecutionConfig
from morphbits.files import write_atomically
from morphbits.machine import cpu
from morphbits.models.model import word
from morphbits.report import html
from morphbits.report import notes as benchmark_notes
from morphbits.report.figures import COLOURS, GREY, STYLE, Figure, svg
from morphbits.report.tables import Table, number, small
from morphbits.stats.analysis import Row, read_table
from morphbits.stats.significance import FLOAT32_BITS
from morphbits.studies.layers import one_run_page
from morphbits.studies.layers.computation import Case

TABLES = (
    *("stages", "activations", "precision", "orders", "schemes", "found"),
    *("one_run", "counters", "decisions", "flips"),
)
# a registration counts as broken by a precision when rounding to nearest in it costs more than
DICE_LOST = 0.01
MM_LOST = 0.05


def folder(execution: ExecutionConfig, case: Case) -> Path:
    """Where the tables and the page go: ``layers/`` in the experiment's folder."""
    words = "layers", case.dataset.name, word(case.settings.model)
    name = execution.experiment or bids.experiment_name(words)
    path = bids.experiment_folder(execution.results, name) / "layers"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(where: Path, case: Case, notes: bool = False) -> str:
    """Write ``layers.html`` from the tables that are there (and, for ``notes``, the tables as
    Markdown); returns the paths, a line each."""
    rows = {name: read_table(where / f"{name}.csv") for name in TABLES}
    page = where / "layers.html"
    write_atomically(page, render(where, case, rows).encode())
    written = [page]
    if notes:
        processor = cpu()["name"]
        written.append(benchmark_notes.file("layers", processor))
        write_atomically(written[-1], markdown(case, rows, processor).encode())
    return "\n".join(map(str, written))


def render(where: Path, case: Case, rows: dict[str, list[Row]]) -> str:
    """The page as HTML."""
    return html.render(
        "studies/layers/page.html",
        name=where.parent.name,
        subject=case.subject.entities,
        dataset=case.dataset.name,
        model=case.settings.model.name,
        settings=case.settings,
        figures={name: make(rows[name]) if rows[name] else None for name, make in FIGURES.items()}
        | {name: make(where) for name, make in MAPS.items()},
        tables={name: make(rows) for name, make in TABLE_MAKERS.items()},
        words={name: make(rows) for name, make in WORDS.items()},
        downloads=[f"{name}.csv" for name in TABLES if rows[name]],
        **{
            name: bool(rows[name])
            for name in ("stages", "precision", "orders", "one_run", "flips")
        },
    )


def markdown(case: Case, rows: dict[str, list[Row]], cpu: str) -> str:
    """The tables, for the notes."""
    settings = case.settings
    lines = [
        f"# Where the bits go, {cpu}, {date.today().isoformat()}",
        "",
        "`make layers`, `make precision`, `make orders`, `make one-run`, `make flips`, with "
        "`NOTES=1`: "
        f"{case.subject.entities} of {case.dataset.name}, {settings.model.name}, native engine, "
        f"mode {settings.mode}, accumulation {settings.accumulation}.",
    ]
    for make in TABLE_MAKERS.values():
        table = make(rows)
        if table.rows:
            lines += ["", *benchmark_notes.lines(table)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- stages


def _leaves(rows: Sequence[Row]) -> list[Row]:
    """The stages that hold no other."""
    outer = {row["within"] for row in rows}
    return [row for row in rows if row["stage"] != "all" and row["stage"] not in outer]


def stages_table(rows: dict[str, list[Row]]) -> Table:
    """Bits by stage, perturbed alone and left out alone, and shares of the variance."""
    lines = [
        [
            f"{row['stage']}" + (f" (in {row['within']})" if row["within"] else ""),
            number(row["image_only"]),
            number(row["warp_only"]),
            number(row["image_except"]),
            number(row["warp_except"]),
            _percent(row["image_share"]),
            _percent(row["warp_share"]),
            number(row["operations"] / 1e6, 1),
        ]
        for row in rows["stages"]
    ]
    runs = rows["stages"][0]["runs"] if rows["stages"] else 0
    return Table(
        caption=f"Significant bits by stage, {runs} samples each; shares are of the variance of"
        " everything perturbed",
        header=["stage", *["image", "warp"] * 3, "million operations"],
        rows=lines,
        groups=[
            ("", 1),
            ("only this stage", 2),
            ("all but this stage", 2),
            ("share", 2),
            ("", 1),
        ],
    )


def _percent(share: float) -> str:
    return number(100 * share, 1) + " %" if share == share else "–"


def stages_words(rows: dict[str, list[Row]]) -> str:
    """What the table of stages says."""
    if not rows["stages"]:
        return ""
    whole, leaves = rows["stages"][0], _leaves(rows["stages"])
    outer = [row for row in rows["stages"] if row["stage"] != "all" and not row["within"]]
    first = max(outer, key=lambda row: row["warp_share"])
    inner = [row for row in leaves if row["within"] == first["stage"]]
    within = ""
    if inner:
        largest = max(inner, key=lambda row: row["warp_share"])
        share = _percent(largest["warp_share"])
        within = f"; within it {largest['stage']}’s is the largest, {share}"
    total = sum(row["warp_share"] for row in leaves)
    more = (
        ": more than 100 %, since what follows a perturbed stage, itself to nearest, rounds other "
        "numbers in each sample and adds its own errors"
        if total > 1
        else ""
    )
    gained = max(leaves, key=lambda row: row["warp_except"])
    return (
        f"Everything perturbed leaves {number(whole['image_only'])} bits of the image and "
        f"{number(whole['warp_only'])} of the warp. The largest share of the warp’s variance is "
        f"{first['stage']}’s: {_percent(first['warp_share'])}{within}. The shares of the single "
        f"stages add up to {_percent(total)}{more}. Computing "
        f"{gained['stage']} without error would give back "
        f"{number(gained['warp_except'] - whole['warp_only'])} bits of the warp, and no other "
        "single stage more."
    )


def stages_figure(rows: Sequence[Row]) -> Figure:
    """Bits of each stage alone, and its share in the variance."""
    whole, parts = rows[0], [row for row in rows if row["stage"] != "all"]
    outer = {row["within"] for row in rows}
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        canvas = Canvas(figsize=(9.6, 0.32 * len(parts) + 1.2), layout="constrained")
        left, right = canvas.subplots(1, 2, sharey=True)
        for quantity, offset in (("image", -0.16), ("warp", 0.16)):
            colour = COLOURS[quantity]
            places = [place + offset for place in range(len(parts))]
            left.plot(
                [row[f"{quantity}_only"] for row in parts],
                places,
                "o",
                color=colour,
                label=quantity,
                markersize=5.5,
            )
            left.axvline(whole[f"{quantity}_only"], color=colour, linewidth=1, linestyle="--")
            shares = [100 * row[f"{quantity}_share"] for row in parts]
            right.barh(places, shares, 0.3, color=colour)
        left.set_yticks(range(len(parts)), [row["stage"] for row in parts])
        for label, row in zip(left.get_yticklabels(), parts, strict=True):
            inner = bool(row["within"]) and row["stage"] not in outer
            label.set_color(GREY if inner else "#111827")
        left.invert_yaxis()
        left.set_xlabel("significant bits, only this stage perturbed")
        right.set_xlabel("share in the variance, %")
        left.legend(frameon=False, loc="best", fontsize=9.5)
        for ax in (left, right):
            ax.tick_params(axis="y", length=0)
        alt = "Significant bits of image and warp where only one stage is perturbed: " + ", ".join(
            f"{row['stage']} {row['image_only']:.1f} and {row['warp_only']:.1f}" for row in parts
        )
        return svg(canvas, alt)


# ---------------------------------------------------------------------- activations


def activations_table(rows: dict[str, list[Row]]) -> Table:
    """Bits of what each stage hands on."""
    names = ("mean", "q05", "median", "q95")
    return Table(
        caption="Significant bits of each stage’s result, everything perturbed",
        header=["result of", "shape", "mean", "5 %", "median", "95 %"],
        rows=[
            [row["stage"], str(row["shape"]), *(number(row[name]) for name in names)]
            for row in rows["activations"]
        ],
        text_columns=2,
    )


def activations_words(rows: dict[str, list[Row]]) -> str:
    """What the table of activations says."""
    found = rows["activations"]
    if not found:
        return ""
    worst = min(found, key=lambda row: row["mean"])
    return (
        f"From {number(found[0]['mean'])} bits after {found[0]['stage']}, the fewest are "
        f"{number(worst['mean'])} after {worst['stage']}; {found[-1]['stage']} has "
        f"{number(found[-1]['mean'])}. A number near zero among large ones has few significant "
        "bits, but little weight in the sampling that follows."
    )


def activations_figure(rows: Sequence[Row]) -> Figure:
    """Mean bits of each stage's result, with the range of most of its numbers."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(9.6, 3.4), layout="constrained")
        ax = canvas.subplots()
        places = range(len(rows))
        ax.vlines(
            places,
            [r["q05"] for r in rows],
            [r["q95"] for r in rows],
            color="#9ca3af",
            linewidth=2,
        )
        ax.plot(places, [row["mean"] for row in rows], "-o", color="#00664b", markersize=5)
        ax.set_xticks(places, [row["stage"] for row in rows], rotation=60, ha="right")
        ax.set_ylabel("significant bits")
        alt = "Mean significant bits of each stage's result: " + ", ".join(
            f"{row['stage']} {row['mean']:.1f}" for row in rows
        )
        return svg(canvas, alt)


# ---------------------------------------------------------------------- precision


def _sweep(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if str(row["precision"]).isdigit()]


def _holds(row: Row, reference: Row) -> bool:
    """Whether rounding to nearest in this precision leaves the registration as good."""
    if reference["dice"] == reference["dice"]:
        return bool(
            row["dice"] >= reference["dice"] - DICE_LOST
            and row["error_mm"] <= reference["error_mm"] + MM_LOST
        )
    return bool(row["moved_mm"] <= MM_LOST)


def fewest_bits(rows: Sequence[Row]) -> int | None:
    """The least precision from which on, upwards, every one measured holds."""
    least = None
    sweep = sorted(_sweep(rows), key=lambda row: -int(row["precision"]))
    for row in sweep:
        if not _holds(row, sweep[0]):
            break
        least = int(row["precision"])
    return least


def _precision_cells(row: Row) -> list[str]:
    return [
        number(row["image"]),
        number(row["warp"]),
        number(row["dice"], 3),
        number(row["error_mm"], 3),
        small(row["moved_mm"]),
        small(row["moved_p95_mm"]),
        number(row["folded_percent"], 2),
    ]


_PRECISION_HEADER = ["image", "warp", "Dice", "mm, mean", "mm, mean", "mm, 95 %", "folded, %"]
_PRECISION_GROUPS = [
    ("", 1),
    ("bits left by random rounding", 2),
    ("to nearest: against the truth", 2),
    ("from 24 bits", 2),
    ("", 1),
]


def precision_table(rows: dict[str, list[Row]]) -> Table:
    """The sweep: a row for each number of bits."""
    return Table(
        caption="Every elementary result in p bits",
        header=["p", *_PRECISION_HEADER],
        rows=[
            [str(row["precision"]), *_precision_cells(row)] for row in _sweep(rows["precision"])
        ],
        groups=_PRECISION_GROUPS,
    )


def formats_table(rows: dict[str, list[Row]]) -> Table:
    """float16, bfloat16, tf32, for all of the registration or its network alone."""
    lines = []
    for row in rows["precision"]:
        if str(row["precision"]).isdigit() and str(row["precision"]) != str(FLOAT32_BITS):
            continue
        where = "" if row["perturb"] == "all" else f", {row['perturb'].removeprefix('only:')}"
        name = "float32" if str(row["precision"]).isdigit() else str(row["precision"])
        lines.append([name + where, *_precision_cells(row)])
    return Table(
        caption="Formats for storage and for convolutions, emulated",
        header=["format", *_PRECISION_HEADER],
        rows=lines,
        groups=_PRECISION_GROUPS,
    )


def precision_words(rows: dict[str, list[Row]]) -> str:
    """What the sweep says."""
    sweep = _sweep(rows["precision"])
    if not sweep:
        return ""
    least, first = fewest_bits(rows["precision"]), sweep[0]
    known = first["dice"] == first["dice"]
    measure = (
        f"Dice is within {DICE_LOST} and the distance to the true warp within {MM_LOST} mm of "
        f"those in {first['precision']} bits"
        if known
        else f"the warp is within {MM_LOST} mm of that in {first['precision']} bits"
    )
    return (
        f"Rounded to nearest, {measure} down to {least} bits of each result; below, the "
        "registration breaks. Significant bits fall one for each bit of precision: what random "
        "rounding takes, about "
        f"{number(float(sweep[0]['precision']) - sweep[0]['warp'], 1)} bits of the warp, it takes "
        "at every precision, until errors are as large as the displacements."
    )


def formats_words(rows: dict[str, list[Row]]) -> str:
    """Which of the formats hold."""
    sweep = _sweep(rows["precision"])
    if not sweep:
        return ""
    good: list[str] = []
    bad: list[str] = []
    for row in rows["precision"]:
        if not str(row["precision"]).isdigit():
            where = " everywhere" if row["perturb"] == "all" else " in the network alone"
            (good if _holds(row, sweep[0]) else bad).append(f"{row['precision']}{where}")
    parts = [f"By the same measure these hold: {', '.join(good)}." if good else ""]
    parts.append(f"These do not: {', '.join(bad)}." if bad else "")
    return " ".join(filter(None, parts))


def precision_figure(rows: Sequence[Row]) -> Figure:
    """Bits, distances and Dice against the precision."""
    sweep = _sweep(rows)
    bits = [int(row["precision"]) for row in sweep]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(11.5, 3.5), layout="constrained")
        left, middle, right = canvas.subplots(1, 3)
        for quantity in ("image", "warp"):
            values = [row[quantity] for row in sweep]
            left.plot(bits, values, "-o", color=COLOURS[quantity], markersize=4, label=quantity)
        left.plot([min(bits), 24], [min(bits), 24], "--", color=GREY, linewidth=1, label="p")
        left.set_ylabel("significant bits")
        left.legend(frameon=False, fontsize=9.5)
        for column, colour, label in (
            ("error_mm", "#00664b", "to the true warp"),
            ("moved_mm", COLOURS["warp"], "to the warp in 24 bits"),
        ):
            points = [(p, row[column]) for p, row in zip(bits, sweep, strict=True) if row[column]]
            if any(value == value for _, value in points):
                xs, ys = zip(*points, strict=True)
                middle.plot(xs, ys, "-o", color=colour, markersize=4, label=label)
        middle.set_yscale("log")
        middle.set_ylabel("mm, mean over the brain")
        middle.legend(frameon=False, fontsize=9.5)
        right.plot(bits, [row["dice"] for row in sweep], "-o", color="#009E73", markersize=4)
        right.set_ylabel("Dice, mean over tissues")
        for ax in (left, middle, right):
            ax.set_xlabel("bits of each result, p")
            ax.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(4))
        alt = "By bits of each result: " + ", ".join(
            f"{p}: warp {row['warp']:.1f} bits, {row['moved_mm']:.2g} mm from 24 bits"
            for p, row in zip(bits, sweep, strict=True)
            if not math.isnan(row["warp"])
        )
        return svg(canvas, alt)


# ---------------------------------------------------------------------- order of sums


def orders_table(rows: dict[str, list[Row]]) -> Table:
    """Nearest results of one order against another's."""
    return Table(
        caption="Nothing perturbed: results of one order of sums against another’s; plain is torch"
        " itself",
        header=["order", "against", "image", "warp", "image", "warp", "warps apart, mm"],
        rows=[[str(row["order"]), str(row["against"]), *_apart(row)] for row in rows["orders"]],
        groups=[("", 2), ("bits that agree", 2), ("equal values", 2), ("", 1)],
        text_columns=2,
    )


def _apart(row: Row) -> list[str]:
    return [
        *(number(row[f"{quantity}_agreement"]) for quantity in ("image", "warp")),
        *(_percent(row[f"{quantity}_equal"]) for quantity in ("image", "warp")),
        small(row["rms_mm"]),
    ]


def schemes_table(rows: dict[str, list[Row]]) -> Table:
    """What random rounding moves in each order, by the same measure."""
    runs = rows["schemes"][0]["runs"] if rows["schemes"] else 0
    return Table(
        caption="Perturbed: one sample against the nearest result of the same order (mean of"
        f" {runs}), and the significant bits of all {runs}",
        header=["order", "image", "warp", "image", "warp", "warps apart, mm", "image", "warp"],
        rows=[
            [str(row["order"]), *_apart(row), number(row["image_bits"]), number(row["warp_bits"])]
            for row in rows["schemes"]
        ],
        groups=[
            ("", 1),
            ("bits that agree", 2),
            ("equal values", 2),
            ("", 1),
            ("significant bits", 2),
        ],
    )


def found_table(rows: dict[str, list[Row]]) -> Table:
    """Orders measured from torch, layer by layer."""
    return Table(
        caption="Orders of sums measured from torch’s kernels on this machine (image by weight)",
        header=["layer", "order, and whether it gives torch’s bytes"],
        rows=[[str(row["layer"]), str(row["found"])] for row in rows["found"]],
        text_columns=2,
    )


def orders_words(rows: dict[str, list[Row]]) -> str:
    """What the tables of orders say."""
    if not rows["orders"]:
        return ""
    probed = [row for row in rows["orders"] if row["order"] == "probe"]
    plain = next(row for row in probed if row["against"] == "plain")
    same = plain["warp_equal"] == 1 and plain["image_equal"] == 1
    others = [row["rms_mm"] for row in rows["orders"] if "plain" != row["against"] != row["order"]]
    between = [value for value in others if value > 0]
    moved = [row["rms_mm"] for row in rows["schemes"]]
    bits = {row["order"]: row["warp_bits"] for row in rows["schemes"]}
    return (
        "One network, one input, one engine, every rounding to nearest: only the order in which "
        "convolutions add their products differs. Warps of two orders lie "
        f"{small(min(between))} to {small(max(between))} mm apart (RMS over the brain); random "
        f"rounding within one order moves them by {small(min(moved))} to {small(max(moved))} mm. "
        "In the order measured from torch’s own kernels the result "
        + ("has torch’s bytes, every one" if same else "is near torch’s, but not its bytes")
        + ". The order also decides what perturbation finds: the same random rounding leaves "
        + ", ".join(f"{number(value)} bits of the warp in {name}" for name, value in bits.items())
        + "."
    )


FIGURES: dict[str, Any] = {
    "stages": stages_figure,
    "activations": activations_figure,
    "precision": precision_figure,
    "one_run": one_run_page.one_run_figure,
}
MAPS = {"bits": one_run_page.bits_figure, "flips": one_run_page.flips_figure}
TABLE_MAKERS = {
    "stages": stages_table,
    "activations": activations_table,
    "precision": precision_table,
    "formats": formats_table,
    "orders": orders_table,
    "schemes": schemes_table,
    "found": found_table,
    "one_run": one_run_page.one_run_table,
    "counters": one_run_page.counters_table,
    "flips": one_run_page.flips_table,
}
WORDS = {
    "stages": stages_words,
    "activations": activations_words,
    "precision": precision_words,
    "formats": formats_words,
    "orders": orders_words,
    "one_run": one_run_page.one_run_words,
    "counters": one_run_page.counters_words,
    "flips": one_run_page.flips_words,
}
