"""Chains, products of matrices and scattered additions: each operation against exact arithmetic,
each variant against the naive reference."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact_replay import rounded, same_bytes

from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import sums
from morphbits.engines.native.kernels.library import MODES, Rounding, available_variants

EXACT_MODES = [m for m in MODES if m != "nearness"]  # whose float64 probabilities are rounded


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(data=st.data())
def test_chains_are_the_exact_replay_and_alike_in_every_variant(
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    outer, period = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 150))
    length = data.draw(st.integers(period, 40 * period))
    operation = data.draw(st.sampled_from(["add", "mul"]))
    scan, flush = data.draw(st.booleans()), data.draw(st.booleans())
    mode = data.draw(st.sampled_from(MODES))
    x = drawn((outer, length), dtype, seed=length)
    if data.draw(st.booleans()):  # exact cancellations and zeros of both signs
        x = (x * 2).round() * 0.5
    arguments = (operation, x, period, scan)
    naive = sums.reduce(Rounding(mode, flush, key=9, variant="naive"), *arguments)
    for variant in available_variants():
        r = Rounding(mode, flush, threads=3, key=9, variant=variant)
        assert same_bytes(sums.reduce(r, *arguments), naive), variant
    if mode == "nearness" and dtype == torch.float64:
        return
    r = Rounding(mode, key=9)
    found = naive.flatten().tolist()
    for element in data.draw(st.lists(st.integers(0, outer * period - 1), max_size=5)):
        o, j = divmod(element, period)
        terms = x[o, j::period].tolist()
        total = Fraction(terms[0])
        for i, term in enumerate(terms[1:]):
            exact = total + Fraction(term) if operation == "add" else total * Fraction(term)
            total = rounded(exact, r, dtype, i, element)
            if scan:
                assert Fraction(found[o * length + j + (i + 1) * period]) == total
        if not scan:
            assert Fraction(found[element]) == total


def test_long_sums_in_short_chains_are_alike_in_every_variant() -> None:
    """Random words are kept over the ends of chains; the kernel has slices, too."""
    left, right = (drawn((1, n, 2100), torch.float32, n) for n in (19, 33))
    ends = sums.segments(2100, 24)
    for mode in MODES:
        naive, *others = (
            sums.matrix_product(
                Rounding(mode, key=5, variant=variant),
                left,
                right.transpose(1, 2),
                ends,
            )
            for variant in ("naive", *available_variants())
        )
        assert all(same_bytes(naive, other) for other in others), mode


@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("odd", [False, True])
def test_few_columns_of_many_rows_are_alike_in_every_variant(columns: int, odd: bool) -> None:
    """Vectors hold rows there, which lie anywhere: in runs of 24 and of 5 with gaps between."""
    for width, dtype in ((24, torch.float32), (5, torch.float32), (24, torch.float64)):
        image, weight = (
            drawn((2, 4, 6, width + 2), dtype, 3),
            drawn((2, columns, 4 * width), dtype, 4),
        )
        if odd:
            image.view(-1)[::7], image.view(-1)[-1], weight.view(-1)[5] = 0, torch.inf, 1e-41
        taps = (np.arange(4)[:, None] * 6 + np.arange(3)).reshape(-1, 1) * (width + 2)
        for mode in MODES:
            naive, *others = (
                sums.contract(
                    Rounding(mode, odd, 1 + (variant == "avx2"), key=5, variant=variant),
                    image,
                    weight.transpose(1, 2),
                    shape=(2, 36, columns),
                    out_shape=(2, columns, 36),
                    row_offset=(taps + np.arange(3)).reshape(-1),
                    depth_offset=(np.arange(4)[:, None] * (width + 2) + np.arange(width)).ravel(),
                    segment_end=sums.segments(4 * width, width),
                    steps=(1, 36),
                )
                for variant in ("naive", *available_variants())
            )
            assert all(same_bytes(naive, other) for other in others), (width, dtype, mode)


@given(data=st.data())
def test_products_are_the_exact_replay_and_alike_in_every_variant(
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    batch, rows, columns = (data.draw(st.integers(1, n)) for n in (3, 40, 40))
    depth = data.draw(st.integers(1, 70))
    ends = sums.segments(depth, data.draw(st.sampled_from([None, 1, 5, 32, 33])))
    mode, flush = data.draw(st.sampled_from(MODES)), data.draw(st.booleans())
    left = drawn((batch, rows, depth), dtype, 1)
    right = drawn((batch, columns, depth), dtype, 2).transpose(1, 2)
    match data.draw(st.sampled_from(["plain", "integers", "subnormal"])):
        case "integers":
            left, right = left.round(), right.round()
        case "subnormal":
            left = left * torch.finfo(dtype).tiny
    naive = sums.matrix_product(Rounding(mode, flush, key=5, variant="naive"), left, right, ends)
    for variant in available_variants():
        r = Rounding(mode, flush, threads=2, key=5, variant=variant)
        assert same_bytes(sums.matrix_product(r, left, right, ends), naive), variant
    if flush or (mode == "nearness" and dtype == torch.float64):
        return
    r = Rounding(mode, key=5)
    for element in data.draw(st.lists(st.integers(0, naive.numel() - 1), max_size=4)):
        b, m, n = np.unravel_index(element, naive.shape)
        total: Fraction | None = None
        start = 0
        for s, end in enumerate(ends.tolist()):
            chain = Fraction(0)
            for k in range(start, end):
                exact = Fraction(left[b, m, k].item()) * Fraction(right[b, k, n].item())
                chain = rounded(chain + exact, r, dtype, k, element)
            start = end
            total = (
                chain if total is None else rounded(total + chain, r, dtype, depth + s, element)
            )
        assert Fraction(naive.flatten()[element].item()) == total


def test_long_products_go_on_where_a_slice_ended(dtype: torch.dtype) -> None:
    """The depth is cut into slices of 2,048 for the cache; chains and totals go on across them."""
    left, right = drawn((1, 11, 5000), dtype, 1), drawn((1, 5000, 19), dtype, 2)
    for mode, length in product(MODES, (None, 1000, 2048)):
        ends = sums.segments(5000, length)
        naive = sums.matrix_product(Rounding(mode, key=5, variant="naive"), left, right, ends)
        for variant in available_variants():
            found = sums.matrix_product(
                Rounding(mode, key=5, threads=2, variant=variant), left, right, ends
            )
            assert same_bytes(found, naive), (mode, length, variant)


@pytest.mark.parametrize("mode", MODES)
def test_scattered_additions_are_the_exact_replay(mode: str, dtype: torch.dtype) -> None:
    to, source = drawn((2, 7), dtype, 1), drawn((2, 100), dtype, 2)
    to[:, 3] = 0
    source[:, 5] = -source[:, 4]  # cancels exactly
    index = torch.arange(100).remainder(7)
    index[4:6] = 3
    r = Rounding(mode, key=3)
    out = sums.scatter_add(r, to, index, source)
    each = sums.scatter_add(r, to, index.expand(2, -1), source)
    assert same_bytes(each, out)
    if mode == "nearness" and dtype == torch.float64:
        return
    for o in range(2):
        total = [Fraction(v) for v in to[o].tolist()]
        for j, (at, value) in enumerate(zip(index.tolist(), source[o].tolist(), strict=True)):
            total[at] = rounded(total[at] + Fraction(value), r, dtype, j, o * 7 + at)
        assert [Fraction(v) for v in out[o].tolist()] == total


@pytest.mark.parametrize("mode", MODES)
def test_scattered_rows_side_by_side_have_the_bytes_of_one_by_one(
    mode: str, dtype: torch.dtype
) -> None:
    """Rows that lie side by side in memory go by vectors; 37 is no multiple of any."""
    to, source = (drawn((n, 37), dtype, n).t() for n in (5, 70))
    index = torch.arange(70).remainder(5)
    source[:, 7] = -source[:, 2]  # a subnormal operand, a NaN, and an exact cancellation
    source[3, 1], source[4, 1], to[:, 2] = 1e-39, torch.nan, 0
    for flush in (False, True):
        naive = Rounding(mode, flush, key=3, variant="naive")
        expected = sums.scatter_add(naive, to, index, source)
        for variant in available_variants():
            r = Rounding(mode, flush, threads=2, key=3, variant=variant)
            found = sums.scatter_add(r, to.clone(), index, source, in_place=True)
            assert same_bytes(found.contiguous(), expected)


def test_additions_in_place_have_the_bytes_of_those_in_a_copy() -> None:
    """Where they can be done in their memory, and where that is read too or has gaps."""
    x, added = drawn((6, 40), torch.float32), drawn((6, 40), torch.float32, 3)
    index = torch.tensor([0, 1, 1, 3, 2, 0])
    calls: tuple[Callable[[torch.Tensor, str], torch.Tensor], ...] = (
        lambda x, name: getattr(x, name)(0, index, added),
        lambda x, name: getattr(x, name)(0, index, x),
        lambda x, name: getattr(x.t(), name)(1, index, added.t()),
        lambda x, name: getattr(x[:, ::2], name)(0, index, added[:, ::2]),
        lambda x, name: getattr(x.view(2, 3, 40), name)(1, index[:3], added.view(2, 3, 40)),
    )
    for call in calls:
        with random_rounding(seed=2):
            copied = call(x.clone(), "index_add")
        with random_rounding(seed=2):
            assert same_bytes(call(x.clone(), "index_add_"), copied)


def test_threads_share_scattered_additions_without_a_trace() -> None:
    to, source = torch.zeros(1, 1000), drawn((1, 200_000), torch.float32)
    index = torch.randint(1000, (200_000,), generator=torch.Generator().manual_seed(1))
    for mode in MODES:
        once = sums.scatter_add(Rounding(mode, key=2), to, index, source)
        for threads in (2, 3):
            again = sums.scatter_add(Rounding(mode, key=2, threads=threads), to, index, source)
            assert same_bytes(again, once)


def test_an_index_out_of_range_does_not_reach_the_kernel() -> None:
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="the size is 3"):
            sums.scatter_add(
                Rounding("random"),
                torch.zeros(1, 3),
                torch.tensor([wrong]),
                torch.ones(1, 1),
            )


def test_an_exact_cancellation_is_a_positive_zero(variant: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, -1.0]], dtype=dtype).expand(40, 2).t().reshape(1, 80).contiguous()
    for mode in MODES:
        r = Rounding(mode, variant=variant)
        out = sums.reduce(r, "add", x, 40)
        assert not out.any() and not torch.signbit(out).any()
        left = torch.ones(1, 20, 2, dtype=dtype)
        right = torch.tensor([1.0, -1.0], dtype=dtype).view(1, 2, 1).expand(1, 2, 30)
        out = sums.matrix_product(r, left, right, sums.segments(2, None))
        assert not out.any() and not torch.signbit(out).any()


def test_nan_and_infinity_go_through(variant: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, torch.inf, torch.nan, 2.0, 1.0, 1.0]], dtype=dtype)
    for mode in MODES:
        r = Rounding(mode, variant=variant)
        assert sums.reduce(r, "add", x, 3)[0, 0] == 3
        assert sums.reduce(r, "add", x, 3)[0, 1] == torch.inf
        assert sums.reduce(r, "add", x, 3)[0, 2].isnan()
        product_ = sums.matrix_product(
            r, x.view(1, 6, 1), torch.ones(1, 1, 3, dtype=dtype), sums.segments(1, None)
        )
        assert product_[0, 1].isinf().all() and product_[0, 2].isnan().all()
        assert (product_[0, 3] == 2).all()
