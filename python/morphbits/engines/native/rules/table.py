"""Write the page of perturbed operators, notes/operators.md, from the rules themselves.

python -m morphbits.engines.native.rules.table ../notes/operators.md
"""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby
from pathlib import Path

from morphbits.engines.native import rules  # noqa: F401  (fills the table)
from morphbits.engines.native.rules.registry import PASS, RULES

_PAGE = """\
# Operators of the native engine

Written by `make operators` from the rules; do not edit. [native-engine.md](native-engine.md) says
how the engine is used, [native-engine-limits.md](native-engine-limits.md) where it computes
differently from torch.

{perturbed} operators are perturbed. Each row gives the elementary operations of its operators and
the order in which they are done. Every elementary operation is rounded by the mode.

{table}

{passed} operators pass, because they round nothing (some only where all their operands have one
type):

```
{names}
```
"""
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
    "solvers": "elementwise, chains",
    "values": "elementwise",
}


def markdown() -> str:
    """The page: the operators of one rule in a row, module by module."""
    rows = sorted((rule.module, rule.order, name) for name, rule in RULES.items())
    lines = ["| operators | operations and their order |", "|---|---|"]
    for module, of_module in groupby(rows, key=lambda row: row[0]):
        lines.append(f"| **{module}** | kernels: {_KERNELS[module]} |")
        for order, same in groupby(of_module, key=lambda row: row[1]):
            names = " ".join(f"`{name}`" for *_, name in same)
            lines.append(f"| {names} | {order.replace('|', chr(92) + '|')} |")
    return _PAGE.format(
        perturbed=len(RULES),
        table="\n".join(lines),
        passed=len(PASS),
        names=textwrap.fill(" ".join(sorted(PASS)), 118, break_on_hyphens=False),
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown())
