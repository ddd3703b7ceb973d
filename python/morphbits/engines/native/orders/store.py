"""Orders of additions by shapes and strides of the operands (their layout): measured once in a
process, or taken from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

PROVEN = ": the same bytes"  # end of the description of an order that gave the kernel's bytes
Found = TypeVar("Found")


class Source(Protocol):
    """Where orders come from that are not measured here."""

    def order(self, layout: tuple, fits: Callable[[Any], bool]) -> Any:
        """The order of this layout, for which `fits` holds."""


measured: dict[tuple[tuple, int], Any] = {}
"""By layout and number of torch's threads."""
_source: Source | None = None


def order(layout: tuple, measure: Callable[[], Found], fits: Callable[[Found], bool]) -> Found:
    """The order of a layout: from the source, or measured by `measure`. `fits` tells whether an
    order from a file adds each term once."""
    if _source is not None:
        found: Found = _source.order(layout, fits)
        return found
    key = layout, torch.get_num_threads()
    if key not in measured:
        measured[key] = measure()
    return measured[key]


@contextmanager
def taken_from(source: Source) -> Iterator[None]:
    """Inside, nothing is measured: all orders come from the source."""
    global _source
    before, _source = _source, source
    try:
        yield
    finally:
        _source = before
