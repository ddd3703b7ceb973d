"""Verrou's own count of operations, read from its log.

Verrou prints a table like this at the end, and whenever a marker asks for it::

    ==5806==  Operation                            Instruction count
    ==5806==   `- Precision
    ==5806==       `- Vectorization          Total             Instrumented
    ==5806==  ---------------------------------------------------------------------
    ==5806==  add                     1053                     1053          (100%)
    ==5806==   `- dbl                     1053                     1053      (100%)
    ==5806==       `- llo                     1053                     1053  (100%)

The numbers count since the start of the process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_HEAD = re.compile(r"^==\d+== +Operation +Instructions? count", re.MULTILINE)
_ROW = re.compile(r"^==\d+== +(`- )?(\S+) +(\d+) +(\d+) +\( *\d+%\)$")


@dataclass(frozen=True)
class OperationTable:
    """Operations by type and precision (``mAdd flt``, ``conv dbl=>flt``): those perturbed, and
    those executed, perturbed or not (comparisons and conversions to integers never are)."""

    perturbed: dict[str, int] = field(default_factory=dict)
    executed: dict[str, int] = field(default_factory=dict)

    def __sub__(self, earlier: OperationTable) -> OperationTable:
        """What was added since an earlier table of the same process, where anything was."""
        return OperationTable(
            _difference(self.perturbed, earlier.perturbed),
            _difference(self.executed, earlier.executed),
        )

    @property
    def total(self) -> int:
        """Perturbed operations of all types."""
        return sum(self.perturbed.values())


def _difference(now: Mapping[str, int], then: Mapping[str, int]) -> dict[str, int]:
    changes = {name: count - then.get(name, 0) for name, count in now.items()}
    return {name: change for name, change in changes.items() if change}


def last_table(log: str) -> OperationTable:
    """The last table of a log. One without any row (nothing executed yet) is empty."""
    heads = list(_HEAD.finditer(log))
    if not heads:
        raise ValueError("Verrou's log holds no table of operations")
    perturbed: dict[str, int] = {}
    executed: dict[str, int] = {}
    operation = ""
    for line in log[heads[-1].end() :].splitlines():
        row = _ROW.match(line)
        if not row:
            continue
        below, name, total, instrumented = row.groups()
        if not below:
            operation = name
        elif line.index("`-") < line.index("==", 2) + 6:  # the precision; deeper is vectorization
            perturbed[f"{operation} {name}"] = int(instrumented)
            executed[f"{operation} {name}"] = int(total)
    return OperationTable(perturbed, executed)
