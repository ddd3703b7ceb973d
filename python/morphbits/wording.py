"""Durations, sizes and counts in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """An estimate, without more digits than are known: ``40 s``, ``12 min``, ``3.5 h``,
    ``4 days``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{round(seconds / 86400)} days"


def measured_duration(seconds: float) -> str:
    """The same of what was measured: ``0.53 s``."""
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


def gigabytes(size: float) -> str:
    """Bytes as ``9.4 GB``."""
    return f"{size / 1e9:,.1f} GB"


def numbers(counts: Iterable[int]) -> str:
    """``10``, ``2 or 3``, ``2 to 10``."""
    found = sorted(set(counts))
    return " or ".join(map(str, found)) if len(found) < 3 else f"{found[0]} to {found[-1]}"


def alternatives(names: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
