"""Operators that bring many elements to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from morphbits.engines.native.arithmetic import Hand
from morphbits.engines.native.rules import check, rule

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding

CASCADE = "chains of up to 256 terms, dealt out in turn; their sums again"


def as_dims(dim: int | Sequence[int] | None) -> list[int] | None:
    """The axes of a reduction as a list; None for all."""
    return None if dim is None else [dim] if isinstance(dim, int) else list(dim)


@rule("sum", CASCADE)
def _sum(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if not (dtype or x.dtype).is_floating_point:
        return func(x, dim, keepdim, dtype=dtype) if dim is not None else func(x, dtype=dtype)
    hand = Hand(mode, "sum")
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    return hand.sum(x, as_dims(dim), keepdim)


@rule("mean", f"{CASCADE}; one division")
def _mean(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    hand = Hand(mode, "mean")
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    return hand.mean(x, as_dims(dim), keepdim)
