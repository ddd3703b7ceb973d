"""Operators that torch's own Python decompositions (torch._decomp) split into simpler ones.

A decomposition is the same function, not always the same algorithm: only those are taken whose
operations are the kernel's, or whose difference is said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from morphbits.engines.native.rules import rule

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding

_SAME = "torch's decomposition: the kernel's own operations"
_TAKEN = {
    "binary_cross_entropy_with_logits": _SAME,
    "soft_margin_loss": _SAME,
    "soft_margin_loss_backward": _SAME,
    "logaddexp": _SAME,
    "xlogy": _SAME,
    "native_dropout": _SAME,
    "native_dropout_backward": _SAME,
    "upsample_bicubic2d": "torch's decomposition: weights by Horner's rule, sums over rows, then "
    "over columns; products and sums are separate operations",
    "im2col": "moves",
    "trace": "as sum",
    "linalg_cross": _SAME,
}


def _taken(mode: RandomRounding, func: Any, *args: Any, **kwargs: Any) -> Any:
    from torch._decomp import get_decompositions  # half a second of a process that needs none

    table = get_decompositions([func])
    return mode.apply(table[func], *args, **kwargs)


for _name, _order in _TAKEN.items():
    rule(_name, _order)(_taken)
