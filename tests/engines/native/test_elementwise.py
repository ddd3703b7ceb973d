"""Laws of every elementwise operation, in exact arithmetic, for every variant of the kernels."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact_replay import rounded, same_bytes
from support.frequencies import assert_frequency

from morphbits.engines.native.kernels import reference
from morphbits.engines.native.kernels.library import (
    MODES,
    Rounding,
    available_variants,
    elementwise,
)

EXACT: dict[str, Callable] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
WIDTH = {torch.float32: 32, torch.float64: 64}


def plain(name: str, a: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """What torch gives, unperturbed."""
    if name == "sqrt":  # torch's own is not correctly rounded everywhere; NumPy's is
        return torch.from_numpy(np.sqrt(a.numpy()))
    return EXACT[name](a, b)


def pairs(dtype: torch.dtype) -> st.SearchStrategy:
    """Any two numbers, often subnormal, zero, infinite or NaN, or of the same magnitude
    (cancellation)."""
    number = st.floats(width=WIDTH[dtype])
    near_one = st.floats(0.5, 2, width=WIDTH[dtype])
    tiny = torch.finfo(dtype).tiny
    small = st.floats(-4 * tiny, 4 * tiny, width=WIDTH[dtype])
    pair = st.one_of(
        *(st.tuples(x, y) for x in (number, near_one, small) for y in (number, near_one, small))
    )
    return st.lists(
        st.one_of(pair, number.map(lambda x: (x, x)), number.map(lambda x: (x, -x))),
        min_size=1,
        max_size=40,
    )


@pytest.mark.parametrize("name", [*EXACT, "sqrt"])
@given(data=st.data())
def test_a_result_is_a_neighbour_and_exact_results_stay(
    variant: str, dtype: torch.dtype, name: str, data: st.DataObject
) -> None:
    values = data.draw(pairs(dtype))
    a, b = torch.tensor(values, dtype=dtype).T.contiguous()
    second = None if name == "sqrt" else b
    expected = plain(name, a, second)
    for mode in MODES:
        found = elementwise(Rounding(mode, key=7, variant=variant), name, a, second)
        for x, y, out, standard in zip(
            *(v.tolist() for v in (a, b, found, expected)), strict=True
        ):
            operands = (x,) if name == "sqrt" else (x, y)
            if math.isnan(standard):
                assert math.isnan(out)
            elif not all(map(math.isfinite, operands)) or (name == "div" and y == 0):
                assert out == standard and math.copysign(1, out) == math.copysign(1, standard)
            else:
                check(name, mode, dtype, operands, out, standard)


def check(
    name: str,
    mode: str,
    dtype: torch.dtype,
    operands: tuple[float, ...],
    out: float,
    standard: float,
) -> None:
    """`out` is one of the neighbours of the exact result, the one that the mode allows."""
    if name == "sqrt":
        down, up = sqrt_neighbours(Fraction(operands[0]), dtype)
    else:
        down, up = reference.neighbours(EXACT[name](*map(Fraction, operands)), dtype)
    if down == up:
        assert out == standard and math.copysign(1, out) == math.copysign(1, standard)
    allowed = {
        "upward": (up,),
        "downward": (down,),
        "toward_zero": (min(down, up, key=abs),),
        "nearest": (standard,),
    }.get(mode, (down, up))
    assert out in allowed, (name, mode, operands)


def sqrt_neighbours(x: Fraction, dtype: torch.dtype) -> tuple[float, float]:
    """Around the root of a value: from the integer root of x·4^k, which decides every
    comparison."""
    k = 600
    root = math.isqrt(x.numerator * 4**k // x.denominator) if x else 0
    down, up = reference.neighbours(Fraction(root, 2**k), dtype)
    if Fraction(up) ** 2 < x:
        down, up = reference.neighbours(Fraction(root + 1, 2**k), dtype)
    if Fraction(down) ** 2 != x and down == up:
        up = (
            math.nextafter(up, math.inf)
            if dtype == torch.float64
            else float(np.nextafter(np.float32(up), np.float32(np.inf)))
        )
    return (down, down) if Fraction(down) ** 2 == x else (down, up)


@given(data=st.data())
def test_every_variant_gives_the_bytes_of_the_naive_reference(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    a, b = torch.tensor(data.draw(pairs(dtype)), dtype=dtype).T.contiguous()
    slope = torch.tensor(0.2, dtype=dtype)
    calls = [*((name, a, b) for name in EXACT), ("sqrt", a, None), ("leaky_relu", a, slope)]
    if dtype == torch.float64:
        calls.append(("narrow", a, None))
    for name, x, y in calls:
        for mode in MODES:
            for flush in (False, True):
                naive = elementwise(Rounding(mode, flush, key=3, variant="naive"), name, x, y)
                for variant in available_variants():
                    fast = elementwise(Rounding(mode, flush, key=3, variant=variant), name, x, y)
                    assert same_bytes(fast, naive), (name, mode, flush, variant)


def test_the_random_bits_are_those_of_the_definition(variant: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 3000, dtype=dtype) + 0.5
    for mode in ("random", "nearness") if dtype == torch.float32 else ("random",):
        r = Rounding(mode, key=0x0123456789ABCDEF, variant=variant)
        found = elementwise(r, "mul", a, b).tolist()
        for e, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            assert found[e] == rounded(Fraction(x) * Fraction(y), r, dtype, 0, e)


@pytest.mark.parametrize("distance", [0.25, 0.5, 0.8125])
def test_frequencies(variant: str, dtype: torch.dtype, distance: float) -> None:
    """`random` goes up half of the time, `nearness` as often as the distance says."""
    n = 4000 if variant == "naive" else 200_000
    ulp = torch.finfo(dtype).eps
    one, rest = torch.ones(n, dtype=dtype), torch.full((n,), distance * ulp, dtype=dtype)
    for sign in (1, -1):
        for mode, p in (("random", 0.5), ("nearness", distance if sign > 0 else 1 - distance)):
            r = Rounding(mode, key=11, variant=variant)
            out = elementwise(r, "add", sign * one, sign * rest)
            up, down = (1 + ulp, 1) if sign > 0 else (-1, -1 - ulp)
            assert ((out == up) | (out == down)).all()
            assert_frequency(out == up, p, (mode, sign))


def test_neighbouring_elements_and_operators_draw_independently() -> None:
    """Directions of elements at small distances, and of one element under several keys, are alike
    half of the time."""
    n = 1 << 20
    one, rest = torch.ones(n), torch.full((n,), 2.0**-24)
    up = [elementwise(Rounding("random", key=k), "add", one, rest) > 1 for k in range(4)]
    for lag in (1, 2, 3, 16, 31, 32, 1024):
        assert_frequency(up[0][:-lag] == up[0][lag:], 0.5, lag)
    for i in range(4):
        assert_frequency(up[i], 0.5, i)
        for j in range(i):
            assert_frequency(up[i] == up[j], 0.5, (i, j))


@given(data=st.data())
def test_downward_is_upward_mirrored(
    variant: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    a, b = torch.tensor(data.draw(pairs(dtype)), dtype=dtype).T.contiguous()
    for name, x, y in (("add", -a, -b), ("mul", -a, b), ("div", -a, b)):
        up = elementwise(Rounding("upward", variant=variant), name, a, b)
        down = elementwise(Rounding("downward", variant=variant), name, x, y)
        assert torch.equal(up.nan_to_num(0.5), (-down).nan_to_num(0.5))


def test_threads_strides_and_places_do_not_change_a_byte() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(2, 64, 50, 40)
    for mode in MODES:
        r = Rounding(mode, key=5)
        once = elementwise(r, "mul", a, b)
        assert same_bytes(elementwise(Rounding(mode, key=5, threads=3), "mul", a, b), once)
        turned = a.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert same_bytes(elementwise(r, "mul", turned, b), once)
        row = a[:, :1, :1]
        assert same_bytes(
            elementwise(r, "mul", row, b), elementwise(r, "mul", row.expand_as(b), b)
        )
        copy = a.clone()
        assert elementwise(r, "mul", copy, b, in_place=True) is copy and same_bytes(copy, once)
        square = a.clone()
        elementwise(r, "mul", square, square, in_place=True)
        assert same_bytes(square, elementwise(r, "mul", a, a))
        shifted = a.clone().flatten()
        expected = elementwise(r, "add", shifted[1:].clone(), shifted[:-1].clone())
        elementwise(r, "add", shifted[1:], shifted[:-1], in_place=True)
        assert same_bytes(shifted[1:], expected)


def test_flush_makes_subnormal_operands_and_results_zero(variant: str) -> None:
    tiny = torch.finfo(torch.float32).tiny
    a = torch.tensor([tiny, tiny / 4, -tiny / 4, tiny])
    b = torch.tensor([0.25, 1.0, 1.0, 1.0])
    for mode in MODES:
        out = elementwise(Rounding(mode, flush=True, variant=variant), "mul", a, b)
        assert out.tolist() == [0, 0, 0, tiny]
        assert math.copysign(1, out[2]) == -1
        kept = elementwise(Rounding(mode, flush=False, variant=variant), "mul", a, b)
        assert kept.tolist() == [tiny / 4, tiny / 4, -tiny / 4, tiny]


def test_empty_and_many_dimensions() -> None:
    assert elementwise(Rounding("random"), "add", torch.empty(0, 3), torch.empty(3)).shape == (
        0,
        3,
    )
    a = torch.rand([2] * 12).permute(*range(11, -1, -1))
    b = torch.rand([2] * 12)
    expected = elementwise(Rounding("random"), "add", a.contiguous(), b)
    assert same_bytes(elementwise(Rounding("random"), "add", a, b), expected)
    in_place = b.clone()
    assert elementwise(Rounding("random"), "add", in_place, a, in_place=True) is in_place
    assert same_bytes(in_place, expected)


def test_operands_that_share_memory_across_arrays() -> None:
    memory = np.arange(1, 100_001, dtype=np.float32)
    to, other = torch.from_numpy(memory[1:]), torch.from_numpy(memory[:-1])
    expected = to + other
    elementwise(Rounding("nearest", threads=3), "add", to, other, in_place=True)
    assert same_bytes(to, expected)
