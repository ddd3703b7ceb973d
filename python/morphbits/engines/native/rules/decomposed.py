"""Operators that torch's own Python decompositions (torch._decomp) split into simpler ones.

A decomposition is the same function, not always the same algorithm: only those are taken whose
operations are the kernel's, or whose difference is said here.
"""

from __future__ import annotations

from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.elementwise import write
from morphbits.engines.native.rules.registry import rule

_SAME = "torch's decomposition: the kernel's own operations"
_TAKEN = {
    "binary_cross_entropy_with_logits": _SAME,
    "soft_margin_loss": _SAME,
    "logaddexp": _SAME,
    "native_dropout_backward": _SAME,
    "upsample_bicubic2d": "torch's decomposition: weights by Horner's rule, sums over rows, then "
    "over columns; products and sums are separate operations",
    "im2col": "moves",
    "linalg_cross": _SAME,
    "logit": _SAME,
    "logit_": _SAME,
    "logit_backward": _SAME,
    "sinc": _SAME,
    "sinc_": _SAME,
    "deg2rad": _SAME,
    "deg2rad_": _SAME,
    "rad2deg": _SAME,
    "rad2deg_": _SAME,
    **dict.fromkeys(
        ("mvlgamma", "mvlgamma_"),
        "torch's decomposition: a sum of lgamma of shifted arguments, as `sum`",
    ),
    "renorm": _SAME,
    "renorm_": _SAME,
    "_euclidean_dist": "torch's decomposition: sums of squares joined to −2·a and b, their "
    "product as `mm`, the root of what is positive",
    "_weight_norm_interface": "torch's decomposition: the norm as `linalg_vector_norm`, "
    "v·(g / norm)",
    "_unsafe_masked_index_put_accumulate": "as `index_put`, where the mask holds",
    "unfold_backward": "one addition an element of the windows, windows in row-major order",
}


def _taken(op: Operator, *args: Any, **kwargs: Any) -> Any:
    from torch._decomp import get_decompositions  # half a second of a process that needs none

    table = get_decompositions([op.func])
    if op.func in table:
        return op.redispatch(table[op.func], *args, **kwargs)
    out = op.redispatch(getattr(torch.ops.aten, op.name.removesuffix("_")), *args, **kwargs)
    return write(op, args[0], out)


for _name, _order in _TAKEN.items():
    rule(_name, _order)(_taken)
