"""Every rule against torch: the same function, forward and backward, and truly perturbed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from engines.native.operator_cases import CASES, Case
from torch import Tensor

from morphbits.engines.native import random_rounding

# Both sides round every operation of float64; the longest chain of a case has a few hundred
# operations, each off by half of 2^-52 of the terms' magnitudes (about 1), and results are of
# order 1 to 10^3.
FLOAT64 = {"rtol": 2.0**-40, "atol": 2.0**-40}
# The same with float32 and one whole last place an operation.
FLOAT32 = {"rtol": 2.0**-12, "atol": 2.0**-12}


def compute(case: Case, dtype: torch.dtype, region: AbstractContextManager) -> list[Tensor]:
    """The result and the gradients of the inputs, for a gradient that is different everywhere."""
    inputs = [x.requires_grad_() for x in case.inputs(dtype)]
    weights = torch.linspace(0.5, 2, 20_000, dtype=torch.float64).to(dtype)
    with region:
        out = case.function(*inputs)
        weights = weights[: out.numel()].view(out.shape)
        gradients = torch.autograd.grad(out, inputs, weights, allow_unused=True)
    return [out.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_rule_is_the_operator(case: Case) -> None:
    expected = compute(case, torch.float64, nullcontext())
    for region, dtype, tolerance in (
        (random_rounding("nearest"), torch.float64, FLOAT64),
        (random_rounding("random", seed=3), torch.float32, FLOAT32),
    ):
        found = compute(case, dtype, region)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype and one.shape == other.shape
            torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_seed_and_nothing_else_moves_a_result(case: Case) -> None:
    def run(seed: int, threads: int) -> list[Tensor]:
        return compute(case, torch.float32, random_rounding(seed=seed, threads=threads))

    one, again, other = run(1, 1), run(1, 3), run(2, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if case.name not in EXACT:
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# nothing rounds: values are selected, or (max_pool1d, relu) gradients copied
EXACT = {"relu"}
