"""Operators that make values and round while they do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from morphbits.engines.native.arithmetic import HALVES, Hand
from morphbits.engines.native.rules import rule
from morphbits.errors import UserError

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding


@rule("linspace", "a step by one subtraction and division; i·step from the nearer end, then added")
def _linspace(
    mode: RandomRounding,
    func: Any,
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    h = Hand(mode, "linspace")
    if dtype in HALVES:
        return h.to(_linspace(mode, func, start, end, steps, dtype=torch.float32), dtype)
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"the native engine has no rule for {func} of {dtype}")
    first, last = h.to(start, dtype), h.to(end, dtype)
    if steps < 2:
        return first.expand(steps).clone()
    step = h.div(h.sub(last, first), steps - 1)
    index = torch.arange(steps, dtype=dtype)
    below = h.add(first, h.mul(step, index[: steps // 2]))
    above = h.sub(last, h.mul(step, index[: steps - steps // 2].flip(0)))
    return torch.cat([below, above])
