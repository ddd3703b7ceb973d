"""Tables of measurements as Markdown, for notes/benchmarks/."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from morphbits.report.tables import Table

NOTES = Path(__file__).parents[3] / "notes" / "benchmarks"


def file(name: str, processor: str) -> Path:
    """The path notes/benchmarks/NAME_PROCESSOR_DATE.md for a measurement of today."""
    words = "".join(c if c.isalnum() else " " for c in processor.lower()).split()
    return NOTES / f"{name}_{'-'.join(words)}_{date.today().isoformat()}.md"


def lines(table: Table) -> list[str]:
    """The lines of a Markdown table, below its caption. Groups of columns go into the header."""
    heads = [""] * len(table.header)
    column = 0
    for words, columns in table.groups:
        heads[column : column + columns] = [f"{words}: " if words else ""] * columns
        column += columns
    header = [head + cell for head, cell in zip(heads, table.header, strict=True)]
    return [
        f"**{table.caption}**",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]
