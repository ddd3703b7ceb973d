"""Convolutions: the order of accumulation, the laws of every operation in it, and the same bytes
everywhere."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from support.exact_replay import rounded, same_bytes

from morphbits.engines.native.kernels import library
from morphbits.engines.native.kernels.library import MODES, Rounding, available_variants
from morphbits.engines.native.orders.accumulation import terms
from morphbits.errors import UserError

ORDERS = ("sequential", "direct", "blocked:5", "blocked:1000")
PLAIN = ((1, 1, 1), (1, 1, 1), (1, 1, 1))  # stride, padding, dilation of a 3×3×3 layer


def convolve(
    r: Rounding,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    order: str = "sequential",
    geometry: tuple = PLAIN,
) -> torch.Tensor:
    return library.convolution(r, x, w, b, *geometry, terms(order, w[0, 0].numel(), w.shape[1]))


def layer(
    dtype: torch.dtype,
    channels_in: int,
    channels_out: int,
    size: tuple[int, ...],
    kernel: int = 3,
    batch: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(channels_in)
    x = torch.randn(batch, channels_in, *size, dtype=dtype)
    w = torch.randn(channels_out, channels_in, kernel, kernel, kernel, dtype=dtype) / 5
    return x, w, torch.randn(channels_out, dtype=dtype)


def replay(
    r: Rounding, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, order: str, element: int
) -> Fraction:
    """One output of a 3-D convolution with padding 1, in exact arithmetic, operation by operation;
    the orders of the terms are written out here once more."""
    channels, taps = w.shape[1], w[0, 0].numel()
    out_channels, size = w.shape[0], x.shape[2:]
    batch, o, *voxel = np.unravel_index(element, (x.shape[0], out_channels, *size))
    pairs = list(product(range(taps), range(channels)))
    if order == "direct":
        chains = [
            [(t, c) for t in range(taps) for c in range(start, min(start + 16, channels))]
            for start in range(0, channels, 16)
        ]
    elif order == "sequential":
        chains = [pairs]
    else:
        k = int(order.split(":")[1])
        chains = [pairs[i : i + k] for i in range(0, len(pairs), k)]
    bias = Fraction(b[o].item()) if b is not None else None
    total = bias if order == "direct" else None
    n, index = taps * channels, 0
    for s, chain in enumerate(chains):
        acc = Fraction(0)
        for tap, channel in chain:
            at = [
                v + k - 1 for v, k in zip(voxel, np.unravel_index(tap, w.shape[2:]), strict=True)
            ]
            if all(0 <= a < size_ for a, size_ in zip(at, size, strict=True)):
                product_ = Fraction(x[batch, channel][tuple(at)].item()) * Fraction(
                    w[o, channel].flatten()[tap].item()
                )
                acc = rounded(acc + product_, r, x.dtype, index, element)
            index += 1
        total = acc if total is None else rounded(total + acc, r, x.dtype, n + s, element)
    if bias is not None and order != "direct":
        total = rounded(total + bias, r, x.dtype, n + len(chains), element)
    return total


@pytest.mark.parametrize("order", ORDERS)
def test_every_output_is_the_exact_replay_of_its_operations(
    order: str, dtype: torch.dtype
) -> None:
    x, w, b = layer(dtype, 3, 5, (4, 5, 6))
    generator = np.random.default_rng(0)
    for mode in MODES:
        if mode == "nearness" and dtype == torch.float64:
            continue  # its probabilities are rounded themselves
        r = Rounding(mode, key=99)
        out = convolve(r, x, w, b, order).flatten()
        for element in generator.choice(out.numel(), 25, replace=False):
            assert Fraction(out[element].item()) == replay(r, x, w, b, order, int(element)), mode


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_variant_gives_the_bytes_of_the_naive_reference(
    order: str, bias: bool, dtype: torch.dtype
) -> None:
    shapes = [(2, 16, (3, 4, 11)), (17, 3, (2, 3, 8)), (33, 21, (2, 2, 5)), (1, 1, (1, 1, 1))]
    shapes += [(5, 3, (2, 3, 19)), (40, 4, (1, 2, 33)), (39, 18, (1, 2, 9))]  # narrow; two slices
    shapes += [(40, 2, (1, 1, 50))]  # several vectors of voxels at once, and one
    for channels_in, channels_out, size in shapes:
        x, w, b = layer(dtype, channels_in, channels_out, size, batch=2)
        x[:, :, :1] = 0
        x[:, 0, 0, 0, 0] = -0.0
        for mode, flush in product(MODES, (False, True)):
            arguments = (x, w, b if bias else None, order)
            naive = convolve(Rounding(mode, flush, key=4, variant="naive"), *arguments)
            for variant in available_variants():
                fast = convolve(Rounding(mode, flush, key=4, variant=variant), *arguments)
                assert same_bytes(fast, naive), (mode, flush, variant, size)


@pytest.mark.parametrize("channels_out", [1, 3, 7, 15, 17, 23, 71])
def test_channels_beyond_whole_vectors_give_the_bytes_of_the_naive_reference(
    channels_out: int, dtype: torch.dtype
) -> None:
    """Rows of 33 voxels, of which the last are no whole vector either."""
    x, w, b = layer(dtype, 2, channels_out, (1, 2, 33), batch=2)
    steps = ((1, 2, 1), (1, 1, 1), (1, 1, 2)), ((1, 1, 2), (1, 1, 0), (1, 1, 1))
    for mode, geometry in product(MODES, (PLAIN, *steps)):
        naive = convolve(Rounding(mode, key=7, variant="naive"), x, w, b, geometry=geometry)
        for variant in available_variants():
            r = Rounding(mode, key=7, variant=variant, threads=2)
            fast = convolve(r, x, w, b, geometry=geometry)
            assert same_bytes(fast, naive), (mode, variant, geometry)


@pytest.mark.parametrize(
    "scale",
    [
        *("subnormal", "least normal", "below it", "huge"),
        *("zero weights", "infinite image", "infinite weight", "nan"),
    ],
)
@pytest.mark.parametrize("channels_out, width", [(18, 9), (3, 21)])
def test_extreme_values_give_the_bytes_of_the_naive_reference(
    scale: str, channels_out: int, width: int, dtype: torch.dtype
) -> None:
    x, w, b = layer(dtype, 4, channels_out, (3, 3, width))
    info = torch.finfo(dtype)
    match scale:
        case "subnormal":
            x, w, b = x * info.tiny**0.5, w * info.tiny**0.5, torch.zeros_like(b)
        case "least normal" | "below it":  # is the product of last places, what a rounding leaves
            x, w = (v.sign() * (1 + v.abs() % 1) for v in (x, w))
            x[0, 1], w[:, 1], b = x[0, 0], -w[:, 0], torch.zeros_like(b)
            below = scale == "below it"
            x, w = (v * info.tiny**0.5 / info.eps for v in (x, w * 0.5**below))
        case "huge":
            x, w = x * info.max**0.5, w * info.max**0.5
        case "zero weights":
            w, b = torch.where(w > 0, w, -torch.zeros_like(w)), -torch.zeros_like(b)
            x = torch.where(x > 1, x, -torch.zeros_like(x))
        case "infinite image":
            x[0, 1, 1, 1, 4] = torch.inf
        case "infinite weight":
            w[2, 2, 0, 0, 0] = -torch.inf
        case "nan":
            x[0, 0, 2, 2, 2] = torch.nan
    for mode, flush, order in product(MODES, (False, True), ("sequential", "direct")):
        naive = convolve(Rounding(mode, flush, key=8, variant="naive"), x, w, b, order)
        for variant in available_variants():
            fast = convolve(Rounding(mode, flush, key=8, variant=variant), x, w, b, order)
            assert same_bytes(fast, naive), (mode, flush, order, variant)


def test_a_zero_left_by_an_underflow_meets_the_border_alike(dtype: torch.dtype) -> None:
    """A chain underflows to -0 at its first tap; its last lies outside the image."""
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-tiny, 1.0], dtype=dtype).view(1, 1, 1, 1, 2)
    w = torch.tensor([tiny, -0.0, 1], dtype=dtype).view(1, 1, 1, 1, 3)
    geometry = ((1, 1, 1), (0, 0, 1), (1, 1, 1))
    for mode, flush in product(MODES, (False, True)):
        found = [
            convolve(Rounding(mode, flush, variant=v), x, w, None, geometry=geometry)
            for v in (*available_variants(), "naive")
        ]
        assert all(same_bytes(one, found[0]) for one in found), (mode, flush)


def test_exact_cancellation_is_a_positive_zero(variant: str, dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -1.0], dtype=dtype).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 20)
    w = torch.ones(20, 2, 1, 1, 1, dtype=dtype)
    for mode in MODES:
        out = convolve(
            Rounding(mode, variant=variant), x, w, None, geometry=((1,) * 3, (0,) * 3, (1,) * 3)
        )
        assert not out.any() and not torch.signbit(out).any()


def test_threads_do_not_change_a_byte() -> None:
    x, w, b = layer(torch.float32, 8, 16, (12, 10, 20))
    for mode, order in product(MODES, ORDERS):
        once = convolve(Rounding(mode, key=5), x, w, b, order)
        for threads in (2, 3, 4, 16):
            assert same_bytes(
                convolve(Rounding(mode, key=5, threads=threads), x, w, b, order), once
            )


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation", [(3, 2, 1, 1), (3, 1, 2, 2), (1, 1, 0, 1), (2, 3, 1, 1)]
)
def test_geometry(
    kernel: int, stride: int, padding: int, dilation: int, dtype: torch.dtype
) -> None:
    """Against torch in float64, to the error bound of a sum of n products: (n + 1)·u·Σ|x||w|."""
    x, w, b = layer(dtype, 5, 7, (7, 8, 9), kernel, batch=2)
    geometry = tuple((v,) * 3 for v in (stride, padding, dilation))
    exact = torch.nn.functional.conv3d(x.double(), w.double(), b.double(), *geometry)
    bound = torch.nn.functional.conv3d(
        x.double().abs(), w.double().abs(), b.double().abs(), *geometry
    )
    n = 5 * kernel**3
    for mode, order in product(MODES, ORDERS):
        out = convolve(Rounding(mode, key=2), x, w, b, order, geometry)
        error = (out.double() - exact).abs()
        assert (error <= (n + 2) * torch.finfo(dtype).eps * bound).all(), (mode, order)


def test_the_spread_of_a_long_dot_product_is_that_of_a_scalar_brute_force() -> None:
    """1,728 products, sequential: the standard deviation over samples agrees with a loop that
    rounds each operation in float64 with numpy's own random directions.

    Tolerance: a standard deviation over n samples has a relative standard error of
    1/sqrt(2(n − 1)), the ratio of two has 1/sqrt(n − 1); five of these.
    """
    samples, n = 1500, 64 * 27
    generator = np.random.default_rng(3)
    a, b = generator.standard_normal((2, n)).astype(np.float32)
    acc = np.zeros(samples, np.float32)
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        exact = acc + x * y  # rounded in float64: 2^-29 of a last place of float32
        near = exact.astype(np.float32)
        other = np.nextafter(near, np.where(exact > near, np.inf, -np.inf).astype(np.float32))
        swap = (near != exact) & (generator.random(samples) < 0.5)
        acc = np.where(swap, other, near)
    x = torch.from_numpy(a).view(1, n, 1, 1, 1).expand(1, n, 1, 1, samples)
    w = torch.from_numpy(b).view(1, n, 1, 1, 1)
    out = convolve(Rounding("random", key=17), x, w, None, geometry=((1,) * 3, (0,) * 3, (1,) * 3))
    ratio = out.std().item() / acc.std(ddof=1)
    assert abs(ratio - 1) < 5 / np.sqrt(samples - 1)
    # both are biased against the exact sum alike: a property of the mode (five standard errors)
    error = 5 * acc.std() * np.sqrt(2 / samples)
    assert abs(out.double().mean().item() - acc.mean(dtype=np.float64)) < error


def test_orders_name_their_terms() -> None:
    assert terms("sequential", 2, 3).tap.tolist() == [0, 0, 0, 1, 1, 1]
    assert terms("sequential", 2, 3).channel.tolist() == [0, 1, 2, 0, 1, 2]
    assert terms("sequential", 2, 3).segment_end.tolist() == [6]
    assert terms("blocked:4", 2, 3).segment_end.tolist() == [4, 6]
    direct = terms("direct", 2, 17)
    assert direct.segment_end.tolist() == [32, 34] and direct.bias_first
    assert direct.channel[32:].tolist() == [16, 16] and direct.tap[32:].tolist() == [0, 1]
    for wrong in ("blocked", "blocked:0", "Sequential", "blocked:1e3"):
        with pytest.raises(UserError, match="blocked:192"):
            terms(wrong, 2, 3)
