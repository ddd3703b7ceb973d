"""What a stability test writes: verdict.json for a program, files.csv, and a page to look at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from scipy import stats

from morphbits.bids import Dataset
from morphbits.files import write_atomically, write_json
from morphbits.report import html
from morphbits.report.figures import COLOURS, GREY, STYLE, Figure, svg
from morphbits.report.tables import Table, number, small
from morphbits.stats.analysis import Row, write_table
from morphbits.studies.stability_test.results import (
    Brain,
    Compared,
    brain_of,
    dice,
    framewise_displacement,
    is_warp,
    millimetres,
)
from morphbits.studies.stability_test.verdict import BOUND, FileResult, SubjectResult, Verdict

DRAWN = 60  # subjects at most in the figure


def write(
    folder: Path,
    verdict: Verdict,
    files: dict[str, list[Compared]],
    dataset: Dataset | None,
    inputs: dict[str, str],
) -> Path:
    """Write everything into a folder; returns the page. inputs: what was compared, for the page.
    dataset: whose labels the warps move."""
    folder.mkdir(parents=True, exist_ok=True)
    brain = brain_of(dataset)
    rows = [
        row
        for subject in verdict.subjects
        for row in _rows(
            subject, {str(file.name): file for file in files[subject.subject]}, dataset, brain
        )
    ]
    write_table(folder / "files.csv", rows)
    write_json(folder / "verdict.json", {**inputs, **content(verdict), "files": rows})
    page = folder / "stability-test.html"
    text = html.render(
        "studies/stability_test/page.html",
        verdict=verdict,
        inputs=inputs,
        level=2 / (verdict.n + 2),
        subjects=subjects_table(verdict),
        files=files_table(rows),
        distances=distances_figure(verdict),
        where=where_figure(verdict),
    )
    write_atomically(page, text.encode())
    return page


def content(verdict: Verdict) -> dict[str, Any]:
    """The verdict for a program to read."""
    return {
        "verdict": verdict.word,
        "status": verdict.status,
        "why": verdict.why,
        "alpha": verdict.alpha,
        "samples": verdict.n,
        "samples_needed": verdict.samples_needed,
        "level_of_a_subject": 2 / (verdict.n + 2),
        "subjects_beyond": verdict.beyond,
        "p": verdict.p,
        "subjects": [
            {
                "subject": subject.subject,
                "beyond": subject.beyond,
                "identical": subject.identical,
                "distance": _finite(subject.distance),
                "usual_distance_of_two_samples": subject.usual,
                "largest_distance_of_two_samples": subject.largest,
                "pairs_of_samples_that_are_closer": subject.beaten,
            }
            for subject in verdict.subjects
        ],
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


def _rows(
    subject: SubjectResult,
    files: dict[str, Compared],
    dataset: Dataset | None,
    brain: Brain | None,
) -> list[Row]:
    """A row for each file."""
    rows = []
    for result in subject.files:
        file = files[result.file]
        row: Row = {
            "subject": subject.subject,
            "file": result.file,
            "array": result.array,
            "numbers": result.numbers,
            "differing": result.differing,
            "bits": _finite(result.bits),
            "largest_difference": _finite(result.largest),
            "outside_bounds": _finite(result.outside),
            "outside_bonferroni": result.beyond_bonferroni,
            "rms_mm": None,
            "max_mm": None,
            "fd_power": None,
            "fd_jenkinson": None,
            "dice": None,
        }
        if is_warp(file):
            apart = millimetres(file)
            row |= {"rms_mm": apart.root_mean_square, "max_mm": apart.largest}
        if moved := framewise_displacement(file, brain):
            row["fd_power"], row["fd_jenkinson"] = moved
        if overlap := dice(file, dataset):
            row["dice"] = min(overlap.values())
        rows.append(row)
    return rows


def subjects_table(verdict: Verdict) -> Table:
    return Table(
        caption="Distance of A and B, in units of the distance of two samples (about 1)",
        header=[
            "subject",
            "A and B",
            "two samples: median",
            "largest",
            "pairs that are closer",
            "",
        ],
        rows=[
            [
                subject.subject,
                number(subject.distance),
                number(subject.usual),
                number(subject.largest),
                f"{subject.beaten:.0%}",
                "beyond" if subject.beyond else "",
            ]
            for subject in verdict.subjects
        ],
    )


def files_table(rows: list[Row]) -> Table:
    return Table(
        caption="The files: how far A and B are apart",
        header=[
            "subject", "file", "numbers that differ", "bits that agree", "largest difference",
            f"% outside the {1 - BOUND:.0%} bounds", "outside Bonferroni’s", "warp: RMS, mm",
            "largest, mm", "framewise displacement, mm", "smallest Dice",
        ],
        rows=[
            [
                row["subject"],
                f"{row['file'].rpartition('/')[2]} {row['array']}".strip(),
                f"{row['differing'] / row['numbers']:.1%}",
                number(row["bits"]),
                _small(row["largest_difference"]),
                number(row["outside_bounds"] and 100 * row["outside_bounds"], 1),
                str(row["outside_bonferroni"]),
                _small(row["rms_mm"]),
                _small(row["max_mm"]),
                _small(row["fd_power"]),
                number(row["dice"], 4),
            ]
            for row in rows
        ],
        text_columns=2,
    )  # fmt: skip


def _small(value: float | None) -> str:
    return number(None) if value is None else small(value)


def distances_figure(verdict: Verdict) -> Figure:
    """The distance of A and B of each subject, and the range of the pairs of samples."""
    subjects = verdict.subjects[:DRAWN]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        canvas = Canvas(figsize=(7.2, 1.1 + 0.27 * len(subjects)), layout="constrained")
        ax = canvas.subplots()
        for y, subject in enumerate(subjects):
            ax.plot([subject.usual, subject.largest], [y, y], color=GREY, linewidth=5, alpha=0.5)
            colour = COLOURS["warp" if subject.beyond else "image"]
            if math.isfinite(subject.distance):
                ax.plot(subject.distance, y, "o", color=colour)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=0)
        ax.set_yticks(range(len(subjects)), [subject.subject for subject in subjects])
        ax.invert_yaxis()
        ax.set_xlabel("distance, in units of that of two samples")
        alt = "Distance of A and B: " + ", ".join(
            f"{subject.subject} {subject.distance:.3g} (two samples at most {subject.largest:.3g})"
            for subject in subjects
        )
        return svg(canvas, alt)


def where_figure(verdict: Verdict) -> Figure | None:
    """Three slices through the voxel that is furthest out, of the file that has it."""
    files = [
        file
        for subject in verdict.subjects
        for file in subject.files
        if file.z_N is not None and len(file.shape) >= 3 and file.differing
    ]
    if not files:
        return None
    file = max(files, key=_furthest)
    assert file.z_N is not None
    z_XYZ = file.z_N.reshape(*file.shape[:3], -1).max(axis=-1)
    bound = float(stats.t(verdict.n - 1).isf(BOUND / 2)) if math.isfinite(file.bits) else 1.0
    z_XYZ = np.minimum(z_XYZ / bound, 100)
    voxel = np.unravel_index(int(np.argmax(z_XYZ)), z_XYZ.shape)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        canvas = Canvas(figsize=(7.2, 2.9), layout="constrained")
        axes = canvas.subplots(1, 3)
        for ax, axis, k in zip(axes, range(3), voxel, strict=True):
            shown = ax.imshow(
                np.take(z_XYZ, int(k), axis=axis).T, origin="lower", cmap="cividis", vmin=0,
                vmax=max(float(z_XYZ.max()), 1.0), interpolation="nearest",
            )  # fmt: skip
            ax.set_title(f"{'xyz'[axis]} = {k}", loc="left", fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
        canvas.colorbar(shown, ax=axes, shrink=0.8, label="difference / 95 % bound")
        place = ", ".join(str(int(k)) for k in voxel)
        return svg(
            canvas,
            f"Where A and B differ in {file.file}, on three slices through voxel {place}, where "
            f"the difference is {float(z_XYZ.max()):.3g} times its bound",
        )


def _furthest(file: FileResult) -> float:
    assert file.z_N is not None
    return float(file.z_N.max())
