"""Every rule against torch: the same function, forward and backward, and truly perturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from support.operator_cases import CASES, Case
from support.witness import Witness
from torch import Tensor

from morphbits.engines.native import random_rounding
from morphbits.engines.native.rules.pooling import _Windows

# Both sides round every operation of float64; the longest chain of a case has a few hundred
# operations, each off by half of 2^-52 of the terms' magnitudes (about 1), and results are of
# order 1 to 10^3.
FLOAT64 = {"rtol": 2.0**-40, "atol": 2.0**-40}
# The same with float32 and one whole last place an operation.
FLOAT32 = {"rtol": 2.0**-12, "atol": 2.0**-12}


def compute(
    case: Case,
    dtype: torch.dtype,
    region: AbstractContextManager,
    within: torch.dtype | None = None,
) -> list[Tensor]:
    """The result and the gradients of the inputs, for a gradient that is different everywhere;
    `within`: computed in another type, on the numbers of `dtype`."""
    within = within or dtype
    inputs = [x.to(within).requires_grad_() for x in case.inputs(dtype)]
    weights = torch.linspace(0.5, 2, 20_000, dtype=torch.float64).to(dtype).to(within)
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
def test_the_seed_moves_a_result_threads_do_not_and_nothing_escapes(case: Case) -> None:
    def run(seed: int, threads: int) -> list[Tensor]:
        return compute(case, torch.float32, random_rounding(seed=seed, threads=threads))

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    witness = Witness()

    @contextmanager
    def watched() -> Iterator[None]:
        with witness, random_rounding(seed=1, threads=1):
            yield

    one = compute(case, torch.float32, watched())
    assert same(one, run(1, 3))
    assert witness.rounded == []  # no operator that reached torch changed an exact result
    assert all(same(one, run(seed, 1)) for seed in (2, 3, 4)) == (case.name in EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sixteen_bits_are_rounded_in_their_own_format(case: Case, dtype: torch.dtype) -> None:
    """Types and shapes are torch's. Each value is within three units of the format of what float64
    gives on the same numbers: results and gradients of a case go through at most six roundings to
    16 bits, half a unit each. Where these are magnified (near a pole of polygamma, at a step of a
    floor division), it is as near to what torch gives in 16 bits."""
    try:
        expected = compute(case, dtype, nullcontext())
    except RuntimeError as error:
        pytest.skip(f"torch itself does not: {error}")
    found = compute(case, dtype, random_rounding("nearest"))
    exact = compute(case, dtype, nullcontext(), within=torch.float64)
    unit = 3 * torch.finfo(dtype).eps
    for one, *others in zip(found, expected, exact, strict=True):
        assert one.dtype == others[0].dtype and one.shape == others[0].shape
        by_torch, in_float64 = (
            torch.isclose(one.double(), x.double(), rtol=unit, atol=unit, equal_nan=True)
            for x in others
        )
        assert (by_torch | in_float64).all()


def test_what_is_drawn_at_random_is_drawn_as_in_torch() -> None:
    """Rules that draw take torch's numbers in its order; the arithmetic on them is perturbed."""
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def draw(dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(7)
        y = x.to(dtype).requires_grad_()
        slopes = torch.nn.functional.rrelu(y, training=True)
        drawn = [
            *(torch.multinomial(y.detach().exp(), *how) for how in ((1,), (3,), (5, True))),
            torch.multinomial(y.detach()[0].exp(), 4, replacement=True),
            torch.normal(y, 2.0),
            torch.normal(1.0, y.detach().abs()),
            torch.normal(y, y.detach().abs()),
            torch.distributions.Normal(y, y.detach().exp()).rsample(),
            slopes,
        ]
        total = sum(v.sum() for v in drawn if v.requires_grad)
        return [v.detach() for v in (*drawn, *torch.autograd.grad(total, y))]

    plain = draw(torch.float64)
    with random_rounding("nearest"):
        found = draw(torch.float64)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)
    plain = draw(torch.float32)
    with random_rounding() as stats:
        found = draw(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found[:4], plain[:4], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[4:], plain[4:], strict=True))
    assert {"multinomial", "normal", "rrelu_with_noise"} <= set(stats.operators)


def test_windows_inside_the_image_have_the_bytes_of_listed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(8))

    def pooled() -> list[Tensor]:
        with random_rounding(seed=2):
            return [
                torch.nn.functional.avg_pool3d(x, k, s)
                for k, s in ((2, 2), (3, 1), (2, 3), ((1, 3, 2), 2))
            ]

    together = pooled()
    monkeypatch.setattr(
        _Windows, "whole", property(lambda _: False, lambda *_: None), raising=False
    )
    assert all(map(torch.equal, together, pooled()))


# nothing rounds: values are selected, or (max_pool1d, relu) gradients copied
EXACT = {"relu"}
