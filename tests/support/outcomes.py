"""What a function does under the engine: results, operations, refusals; and when two are alike."""

from __future__ import annotations

from typing import Any

import torch
from support.exact_replay import same_bytes
from torch import Tensor

from morphbits.engines.native import random_rounding
from morphbits.errors import UserError

Outcome = tuple[list[Tensor], dict[str, int], str]


def outcome(function: Any, inputs: list[Tensor], **options: Any) -> Outcome:
    """Results and gradients, the operations counted, and what was refused."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    results: list[Tensor] = []
    refusal = ""
    with random_rounding(seed=5, **options) as stats:
        try:
            out = function(*inputs)
            weights = torch.linspace(0.5, 2, out.numel(), dtype=out.dtype).view(out.shape)
            results = [out.detach(), *torch.autograd.grad(out, inputs, weights, allow_unused=True)]
        except UserError as error:
            refusal = str(error)
    return [x for x in results if x is not None], dict(stats.operators), refusal


def assert_alike(found: Outcome, expected: Outcome) -> None:
    """The same bytes, strides, counts and refusals."""
    assert found[1:] == expected[1:]
    assert len(found[0]) == len(expected[0])
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.stride() == other.stride() and same_bytes(one, other)
