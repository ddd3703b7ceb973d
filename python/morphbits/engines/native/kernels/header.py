"""What C and Python both name, read from the header that lists it: csrc/morphbits.h."""

from __future__ import annotations

import re
from functools import cache

from morphbits.engines.native.kernels.build import SOURCES


@cache
def names(enum: str) -> tuple[str, ...]:
    """The constants of an enum in lower case; the number of each is its place."""
    text = (SOURCES / "morphbits.h").read_text(encoding="utf-8")
    found = re.search(rf"\benum {enum} {{([^}}=]*)}};", text)
    assert found, f"morphbits.h has no enum {enum} that only lists names"
    return tuple(name.strip().lower() for name in found[1].split(",") if name.strip())
