"""Write the table of perturbed operators into notes/native-engine.md, from the rules themselves.

python -m morphbits.engines.native.table ../notes/native-engine.md
"""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby
from pathlib import Path

from morphbits.engines.native import operators  # noqa: F401  (fills the table)
from morphbits.engines.native.rules import PASS, RULES

BEGIN, END = "<!-- table: make operators -->", "<!-- end of table -->"
_KERNELS = {
    "activations": "elementwise, functions, chains",
    "collectives": "elementwise",
    "convolution": "convolution; products of matrices; chains",
    "ctc": "elementwise, functions, chains",
    "decomposed": "those of its parts",
    "distances": "elementwise, functions, chains; scattered additions",
    "elementwise": "elementwise; functions",
    "embeddings": "elementwise, chains; scattered additions",
    "grids": "elementwise, chains; scattered additions; products of matrices",
    "losses": "elementwise, functions, chains",
    "matrices": "products of matrices",
    "normalization": "elementwise, chains",
    "optimizers": "elementwise",
    "pooling": "chains; scattered additions",
    "reductions": "chains, elementwise",
    "resampling": "elementwise, chains; scattered additions",
    "scattering": "scattered additions",
    "values": "elementwise",
}


def markdown() -> str:
    """The table: the operators of one rule in a row, module by module."""
    rows = sorted((rule.room, rule.order, name) for name, rule in RULES.items())
    lines = ["| operators | operations and their order |", "|---|---|"]
    for room, of_room in groupby(rows, key=lambda row: row[0]):
        lines.append(f"| **{room}** | kernels: {_KERNELS[room]} |")
        for order, same in groupby(of_room, key=lambda row: row[1]):
            names = " ".join(f"`{name}`" for *_, name in same)
            lines.append(f"| {names} | {order.replace('|', chr(92) + '|')} |")
    passing = textwrap.fill(" ".join(sorted(PASS)), 118, break_on_hyphens=False)
    return (
        f"{len(RULES)} operators are perturbed:\n\n" + "\n".join(lines) + "\n\n"
        f"{len(PASS)} pass, because they round nothing (some only where all their operands have "
        f"one type):\n\n```\n{passing}\n```"
    )


def insert(text: str) -> str:
    """A note with its table made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    note = Path(sys.argv[1])
    note.write_text(insert(note.read_text()))
