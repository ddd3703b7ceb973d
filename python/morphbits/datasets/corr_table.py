"""Which of CoRR's images the study used: `corr_subjects.csv`, row by row."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from morphbits.bids import Subject
from morphbits.errors import UserError

TABLE = Path(__file__).with_name("corr_subjects.csv")
SUCCESS = "Success"


@dataclass(frozen=True)
class Scan:
    """One T1-weighted image of CoRR.

    role: inference or training. shape: voxels, where the study published them. status: what the
    study says of it (Success, or what failed; empty for training). path: below `data/corr`.
    note: what to know of it, empty where there is nothing.
    """

    site: str
    subject: Subject
    role: str
    shape: tuple[int, ...] | None
    status: str
    path: Path
    note: str

    @property
    def orientation_uncertain(self) -> bool:
        """Its header may not tell how the head lies (site DC_1)."""
        return "orientation" in self.note


def scans(table: Path = TABLE) -> list[Scan]:
    """All images of a table, in its order."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        return [_scan(row) for row in rows]
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from None
    except (KeyError, ValueError) as error:
        raise UserError(f"{table}: needs the columns and values of {TABLE} ({error})") from None


def _scan(row: dict[str, str]) -> Scan:
    shape = tuple(int(n) for n in row["shape_voxels"].split("x")) if row["shape_voxels"] else None
    subject = Subject.parse(f"{row['subject']}_{row['session']}")
    path = Path(row["path"])
    return Scan(row["site"], subject, row["role"], shape, row["paper_status"], path, row["note"])


def select(words: str, table: Path = TABLE) -> list[Scan]:
    """The images that SUBJECTS names.

    inference (the 35), training, all, a number (the first of the 35), or labels such as
    `sub-0025531` or `0025531`, with commas or blanks between them.
    """
    known = scans(table)
    inference = [scan for scan in known if scan.role == "inference"]
    groups = {
        "inference": inference,
        "training": [scan for scan in known if scan.role == "training"],
        "all": known,
    }
    if words in groups:
        return groups[words]
    if re.fullmatch(r"\d{1,3}", words):
        if not 1 <= int(words) <= len(inference):
            raise UserError(f"SUBJECTS={words}: the table has {len(inference)} for inference")
        return inference[: int(words)]
    by_label = {scan.subject.label: scan for scan in known}
    labels = [word.removeprefix("sub-") for word in re.split(r"[\s,]+", words) if word]
    unknown = [label for label in labels if label not in by_label]
    if unknown or not labels:
        raise UserError(
            f"SUBJECTS={words}: {', '.join(unknown) or 'nothing'} is not in {table.name}; use "
            "inference, training, all, a number, or labels such as sub-0025531"
        )
    return [by_label[label] for label in dict.fromkeys(labels)]
