"""Mode nearness in chains: frequencies by distance at every place of a block of draws, draws that
do not depend on each other, and the ends of float32's range."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from support.exact_replay import same_bytes
from support.frequencies import assert_frequency

from morphbits.engines.native.kernels import library, sums
from morphbits.engines.native.kernels.library import Rounding, available_variants
from morphbits.engines.native.orders.accumulation import terms

MAX, LEAST = torch.finfo(torch.float32).max, 2.0**-149


def chains(variant: str, values: list[float], n: int, scan: bool = False) -> torch.Tensor:
    """Of `n` elements: the sum of the values, or with `scan` every partial sum, (terms, n)."""
    x = torch.tensor(values).repeat_interleave(n)[None]
    r = Rounding("nearness", key=23, variant=variant)
    return sums.reduce(r, "add", x, n, scan).view(-1, n)


def products(variant: str, left: list[float], right: list[float], n: int) -> torch.Tensor:
    """Of `n` elements: the sum of left[k]·right[k], by fused operations from zero."""
    a = torch.tensor(left)[None, None]
    b = torch.tensor(right)[None, :, None].expand(1, -1, n)
    r = Rounding("nearness", key=24, variant=variant)
    return sums.matrix_product(r, a, b, sums.segments(len(left), None)).flatten()


@pytest.mark.parametrize("distance", [0.25, 0.5, 0.8125])
def test_every_operation_of_a_chain_goes_as_often_as_its_distance(
    variant: str, distance: float
) -> None:
    """70 additions, more than two blocks of 32 draws; each moves its sum by 0 or 1 last place."""
    n = 20_000 if variant in available_variants() else 1000
    ulp = torch.finfo(torch.float32).eps
    partial = chains(variant, [1.0, *[distance * ulp] * 70], n, scan=True)
    moved = partial.diff(dim=0).double() / ulp
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    for place, outcomes in enumerate(moved > 0):
        assert_frequency(outcomes, distance, place)
    # two operations of one element agree no more often than independent ones
    both = 2 * distance * (distance - 1) + 1
    for lag in (1, 2, 3, 5, 16, 31, 32, 33):
        for place, agree in enumerate(moved[lag:] == moved[:-lag]):
            assert_frequency(agree, both, (lag, place))


def test_neighbouring_elements_draw_independently() -> None:
    n = 200_000
    ulp = torch.finfo(torch.float32).eps
    moved = chains(available_variants()[-1], [1.0, *[0.5 * ulp] * 40], n, scan=True).diff(dim=0)
    for lag in (1, 2, 8, 16, 31, 32, 1024):
        for place, agree in enumerate((moved[:, lag:] > 0) == (moved[:, :-lag] > 0)):
            assert_frequency(agree, 0.5, (lag, place))


def test_a_fused_product_goes_as_often_as_its_distance(variant: str) -> None:
    """1 + 0.3·ulp: 0.3 is rounded to a factor of 24 bits, 1.2·2^-24 of an ulp away at most."""
    n, p = 100_000 if variant in available_variants() else 1000, 0.3
    ulp = torch.finfo(torch.float32).eps
    out = products(variant, [1.0, p], [1.0, ulp], n)
    assert set(out.tolist()) == {1.0, 1 + ulp}
    assert_frequency(out > 1, p)


def test_what_overflows_stays_infinite(variant: str) -> None:
    """Beyond the greatest number by a quarter of its last place: infinite a quarter of the time,
    and what is then taken away does not bring it back."""
    n, quarter = 4000, 2.0**104 / 4
    for out in (
        chains(variant, [MAX, quarter, -MAX], n).flatten(),
        products(variant, [MAX, quarter, -MAX], [1.0, 1.0, 1.0], n),
        products(variant, [2.0**100, quarter, -(2.0**100)], [MAX / 2**100, 1.0, MAX / 2**100], n),
    ):
        assert set(out.tolist()) == {0.0, math.inf}
        assert_frequency(out.isinf(), 0.25)


def test_below_the_least_normal_number_the_last_place_stays(variant: str) -> None:
    n = 4000
    out = products(variant, [2.0**-75], [2.0**-76], n)  # a quarter of the least number
    assert set(out.tolist()) == {0.0, LEAST}
    assert_frequency(out > 0, 0.25)
    exact = products(variant, [2.0**-75, 2.0**-75], [2.0**-70, 3 * 2.0**-74], n)
    assert (exact == 2.0**-145 + 3 * 2.0**-149).all()
    negative = products(variant, [2.0**-75], [-(2.0**-76)], n)
    assert torch.signbit(negative).all()


def test_a_negative_zero_left_by_an_underflow_keeps_its_sign_at_a_negative_zero() -> None:
    """-0 + (-0)·1 is -0 in every variant: a factor's sign is not lost on the way to float64."""
    x = torch.tensor([-LEAST, -0.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 40)
    w = torch.tensor([2.0**-60, 1.0]).view(1, 2, 1, 1, 1)
    geometry = ((1, 1, 1), (0, 0, 0), (1, 1, 1))
    for variant in (*available_variants(), "naive"):
        r = Rounding("nearness", variant=variant)
        out = library.convolution(r, x, w, None, *geometry, terms("sequential", 1, 2))
        assert not out.any() and torch.signbit(out).all(), variant


@pytest.mark.parametrize("scale", [1.0, 2.0**-62, 2.0**-75, 2.0**-140, 2.0**63])
def test_products_of_extreme_numbers_are_alike_in_every_variant(scale: float) -> None:
    """From sums that underflow to such that overflow; zeros of both signs, infinities, NaN."""
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(1, n, 40, generator=generator) * scale for n in (19, 48))
    left[0, 3] *= 0
    special = left.clone()
    special[0, 5, 7], special[0, 6, 8] = torch.inf, torch.nan
    ends = sums.segments(40, 33)
    for rows, flush in product((left, special), (False, True)):
        naive, *others = (
            sums.matrix_product(
                Rounding("nearness", flush, threads, key=6, variant=v),
                rows,
                right.transpose(1, 2),
                ends,
            )
            for v, threads in (("naive", 1), *product(available_variants(), (1, 2)))
        )
        assert all(same_bytes(other, naive) for other in others), flush


def test_ifma_is_there_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no list of the processor's instructions here")
    has = "avx512ifma" in flags.read_text().split()
    assert ("avx512_ifma" in available_variants()) == (has and "avx512" in available_variants())


def test_a_long_dot_product_has_no_bias_and_the_spread_of_independent_draws() -> None:
    """1,728 products: mean and standard deviation over samples are those of a loop that draws
    every distance anew with NumPy. A standard deviation over n samples has a relative standard
    error of 1/sqrt(2(n − 1)); five of them for each side. The mean is the exact sum, to five."""
    samples, n = 4000, 64 * 27
    generator = np.random.default_rng(5)
    a, b = generator.standard_normal((2, n)).astype(np.float32)
    acc = np.zeros(samples, np.float32)
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        exact = acc + x * y
        near_one = exact.astype(np.float32)
        side = np.where(exact > near_one, np.inf, -np.inf).astype(np.float32)
        other = np.nextafter(near_one, side)
        away = (exact - near_one) / (other.astype(np.float64) - near_one)
        acc = np.where(generator.random(samples) < away, other, near_one)
    r = Rounding("nearness", key=18)
    right = torch.from_numpy(b)[None, :, None].expand(1, n, samples)
    left = torch.from_numpy(a)[None, None]
    out = sums.matrix_product(r, left, right, sums.segments(n, None)).flatten().double()
    assert abs(out.std().item() / acc.std(ddof=1) - 1) < 2 * 5 / math.sqrt(2 * (samples - 1))
    total = float((a.astype(np.float64) * b).sum())
    assert abs(out.mean().item() - total) < 5 * out.std().item() / math.sqrt(samples)


def test_rows_of_one_long_sum_are_the_bytes_of_the_naive_reference() -> None:
    """More vectors than a tile holds, partial ones, and a row that must be done again."""
    x = torch.randn(3, 50 * 77, generator=torch.Generator().manual_seed(2))
    x[1, 40 * 77 + 3] = MAX
    naive = sums.reduce(Rounding("nearness", key=2, variant="naive"), "add", x[:, :-5], 77)
    for variant in available_variants():
        r = Rounding("nearness", key=2, threads=2, variant=variant)
        assert same_bytes(sums.reduce(r, "add", x[:, :-5], 77), naive)
