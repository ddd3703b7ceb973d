"""Our numbers and the study's, subject by subject: `comparison.csv` of an experiment, and a table.

The study's numbers are as published; its version of significantdigits probably counted one bit too
many (see the glossary), so that each difference is given both ways. Subjects that the study
excluded are excluded here. Where there are more samples than the study's ten, the first ten count.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from morphbits import bids
from morphbits.datasets.corr_table import SUCCESS, scans
from morphbits.files import csv_of, write_atomically
from morphbits.report import experiment as reading
from morphbits.report.tables import number, spread
from morphbits.wording import numbers

OFFSET = 1.0  # bits that the study probably counted too many
QUANTITIES = {"image": "synthmorph_moved_bits", "warp": "synthmorph_warp_bits"}
COLUMNS = ("subject", "quantity", "n", "ours", "published", "published_less_one", "difference",
           "difference_less_one")  # fmt: skip


@dataclass(frozen=True)
class StudyComparison:
    """rows: one for each subject that both have, and quantity. excluded: subjects of ours that
    the study excluded, and why; unmatched: those that it did not publish for another reason."""

    rows: list[dict[str, str | float]]
    excluded: dict[str, str]
    unmatched: list[str]


def compare(results: Path, experiment: str) -> StudyComparison:
    """Read an experiment, compare it with the published table, write `comparison.csv`."""
    found = reading.read(results, experiment)
    published = {str(row["subject"]): row for row in reading.study()}
    status = {f"sub-{scan.subject.label}": scan.status for scan in scans()}
    rows: list[dict[str, str | float]] = []
    excluded, unmatched = {}, []
    first = {quantity: found.of_first(reading.STUDY_SAMPLES, quantity) for quantity in QUANTITIES}
    for index, entities in enumerate(found.subjects):
        subject = entities.split("_")[0]
        if status.get(subject, SUCCESS) not in (SUCCESS, ""):
            excluded[subject] = status[subject]
        elif subject not in published:
            unmatched.append(subject)
        else:
            for quantity, column in QUANTITIES.items():
                n = min(found.n_of(entities), reading.STUDY_SAMPLES)
                ours = first[quantity][index]
                theirs = float(published[subject][column])
                values = (n, ours, theirs, theirs - OFFSET, ours - theirs, ours - theirs + OFFSET)
                rows.append(dict(zip(COLUMNS, (subject, quantity, *values), strict=True)))
    path = bids.experiment_file(results, experiment, "comparison.csv")
    write_atomically(path, csv_of(rows, COLUMNS))
    return StudyComparison(rows, excluded, unmatched)


def in_words(comparison: StudyComparison) -> str:
    """The table for a terminal: each subject, then the mean over subjects."""
    lines = [
        f"{'subject':<14}{'':<7}{'ours':>8}{'study':>8}{'-1 bit':>8}{'diff.':>8}{'-1 bit':>8}"
    ]
    for row in comparison.rows:
        values = "".join(f"{number(float(row[name])):>8}" for name in COLUMNS[3:])
        lines.append(f"{row['subject']:<14}{row['quantity']:<7}{values}")
    for quantity in QUANTITIES:
        mine = [row for row in comparison.rows if row["quantity"] == quantity]
        if mine:
            ours, theirs, less, difference, less_difference = (
                [float(row[name]) for row in mine] for name in COLUMNS[3:]
            )
            lines.append(
                f"{quantity}, {len(mine)} subjects: ours {spread(ours)}, study {spread(theirs)} "
                f"({number(statistics.fmean(difference))}), less one bit {spread(less)} "
                f"({number(statistics.fmean(less_difference))})"
            )
    few = [int(row["n"]) for row in comparison.rows if int(row["n"]) < reading.STUDY_SAMPLES]
    if few:
        lines.append(
            f"not comparable: n is {numbers(few)} here, {reading.STUDY_SAMPLES} in the "
            "study, and fewer samples show more bits"
        )
    lines += [
        f"{who}: excluded as in the study ({why})" for who, why in comparison.excluded.items()
    ]
    if comparison.unmatched:
        lines.append(f"not published by the study: {', '.join(comparison.unmatched)}")
    return "\n".join(lines)
