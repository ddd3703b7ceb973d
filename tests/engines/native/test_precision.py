"""Formats of fewer bits: one rounding, by the mode, into the format; exact results stay."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact_replay import rounded as replayed
from support.exact_replay import same_bytes

from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import library, reference
from morphbits.engines.native.kernels.library import (
    MODES,
    Rounding,
    available_variants,
    elementwise,
)
from morphbits.engines.native.kernels.precision import Format
from morphbits.engines.native.orders.accumulation import terms
from morphbits.errors import UserError

NUMBERS = st.one_of(
    st.floats(width=32),
    st.floats(-4, 4, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
    st.floats(-(2.0**-13), 2.0**-13, width=32),
    st.floats(60000, 70000, width=32),
)
FORMATS = st.one_of(
    st.builds(Format, st.integers(2, 24)),
    st.just(Format(11, -14)),
    st.builds(Format, st.integers(2, 23), st.integers(-126, -2)),
)
EXACT = {"add": Fraction.__add__, "sub": Fraction.__sub__, "mul": Fraction.__mul__}


@given(values=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20), format=FORMATS)
def test_every_variant_rounds_once_into_the_format(
    values: list[tuple[float, float]], format: Format
) -> None:
    """Against exact arithmetic, and all variants against the naive one, byte for byte."""
    a, b = torch.tensor(values, dtype=torch.float32).T.contiguous()
    calls = [*((name, a, b) for name in (*EXACT, "div")), ("sqrt", a, None), ("round", a, None)]
    calls += [("narrow", a.double() / 3, None), ("leaky_relu", a, torch.tensor(0.2))]
    for (name, x, y), mode in product(calls, MODES):
        naive = elementwise(Rounding(mode, key=3, variant="naive", format=format), name, x, y)
        for variant in available_variants():
            fast = elementwise(Rounding(mode, key=3, variant=variant, format=format), name, x, y)
            assert same_bytes(fast, naive), (name, mode, variant)
        if name in EXACT:
            for one, other, out in zip(x.tolist(), b.tolist(), naive.tolist(), strict=True):
                if math.isfinite(one) and math.isfinite(other):
                    exact = EXACT[name](Fraction(one), Fraction(other))
                    check(exact, out, mode, format)


def check(exact: Fraction, out: float, mode: str, format: Format) -> None:
    down, up = reference.neighbours(exact, format)
    if mode == "nearest" and math.isfinite(down) and math.isfinite(up):
        assert out == reference.nearest(exact, format)
    elif mode == "toward_zero":
        assert out == min(down, up, key=abs)
    else:
        allowed = {"upward": (up,), "downward": (down,)}.get(mode, (down, up))
        assert out in allowed, (mode, format, exact)


def test_a_number_of_the_format_stays_and_ties_go_to_even() -> None:
    x = torch.tensor([1.5, 1.25, 1.75, -1.25, 1.625, 0.0, -0.0, math.inf, -math.inf])
    out = elementwise(Rounding("nearest", format=Format(2)), "round", x)
    assert out.tolist() == [1.5, 1.0, 2.0, -1.0, 1.5, 0.0, 0.0, math.inf, -math.inf]
    assert same_bytes(out.sign(), torch.tensor([1, 1, 1, -1, 1, 0.0, 0.0, 1, -1]))
    assert torch.signbit(out).tolist() == torch.signbit(x).tolist()


@pytest.mark.parametrize(
    "dtype, format", [(torch.float16, Format(11, -14)), (torch.bfloat16, Format(8))]
)
def test_nearest_into_a_storage_format_is_torchs_conversion(
    dtype: torch.dtype, format: Format
) -> None:
    """Every number of the format with its neighbours and the middles between, in float32."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float().view(torch.int32)
    half = 1 << (23 - format.bits)
    for shift in (-half - 1, -half, -half + 1, -1, 0, 1, half - 1, half, half + 1):
        x = (every + shift).view(torch.float32)
        ours, theirs = library.rounded(x, format), x.to(dtype).float()
        number = ~x.isnan()
        assert same_bytes(ours[number], theirs[number])


@pytest.mark.parametrize("order", ["sequential", "direct", "blocked:7"])
def test_a_convolution_is_the_replay_of_its_operations(order: str) -> None:
    torch.manual_seed(1)
    x, w, b = torch.randn(1, 2, 3, 4, 5), torch.randn(3, 2, 3, 3, 3), torch.randn(3)
    table = terms(order, 27, 2)
    for mode, format in product(MODES, (Format(5), Format(14), Format(23))):
        r = Rounding(mode, key=5, format=format)
        out = library.convolution(r, x, w, b, (1,) * 3, (1,) * 3, (1,) * 3, table)
        for element in (0, 33, 107, 179):
            o, *voxel = np.unravel_index(element, out.shape[1:])
            total = Fraction(b[o].item()) if table.bias_first else None
            ends = [0, *table.segment_end]
            for s, (start, end) in enumerate(pairwise(ends)):
                chain = Fraction(0)
                for t in range(start, end):
                    at = [
                        v + k - 1
                        for v, k in zip(
                            voxel, np.unravel_index(table.tap[t], (3,) * 3), strict=True
                        )
                    ]
                    if all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True)):
                        a = Fraction(x[0, table.channel[t]][tuple(at)].item())
                        a *= Fraction(w[o, table.channel[t]].flatten()[table.tap[t]].item())
                        chain = replayed(chain + a, r, x.dtype, t, element)
                total = (
                    chain
                    if total is None
                    else replayed(total + chain, r, x.dtype, 54 + s, element)
                )
            if not table.bias_first:
                number = 54 + len(table.segment_end)
                total = replayed(total + Fraction(b[o].item()), r, x.dtype, number, element)
            assert Fraction(out.flatten()[element].item()) == total, (mode, format, element)


def test_every_convolution_gives_the_bytes_of_the_naive_reference() -> None:
    torch.manual_seed(2)
    cases = [(torch.randn(2, 17, 2, 3, 9), torch.randn(21, 17, 3, 3, 3) / 9, 1.0)]
    cases += [(torch.randn(1, 2, 3, 2, 5), torch.randn(3, 2, 3, 3, 3), s) for s in (1e-22, 3e18)]
    x, w, _ = cases[1]
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    cases.append((torch.where(x > 2, nan, x), w, 1.0))
    for (x, w, scale), bits, mode in product(cases, (2, 8, 23), MODES):
        for order, bias in (("sequential", torch.randn(len(w)) * scale**2), ("direct", None)):
            found = [
                library.convolution(
                    Rounding(mode, key=6, variant=variant, threads=2, format=Format(bits)),
                    *(x * scale, w * scale, bias),
                    *((1, 2, 1), (1,) * 3, (1, 1, 2)),
                    terms(order, 27, x.shape[1]),
                )
                for variant in ("naive", *available_variants())
            ]
            assert all(same_bytes(one, found[0]) for one in found), (bits, mode, order, scale)


@pytest.mark.parametrize("name, dtype", [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_storage_computes_as_torch_does_in_the_type(name: str, dtype: torch.dtype) -> None:
    """Elementwise operators in mode nearest: torch converts, computes in float32 and converts
    back, which is one rounding for these (24 bits are 2·11 + 2; Figueroa 1995)."""
    torch.manual_seed(3)
    a, b = torch.randn(2, 4000) * torch.exp2(torch.randint(-9, 8, (2, 4000)))
    with random_rounding("nearest", precision=name):
        found = [a + b, a - b, a * b, a / b, torch.nn.functional.leaky_relu(a + 0.0, 0.2)]
        found.append(torch.empty_like(a).copy_(a).mul_(b))
    x, y = a.to(dtype), b.to(dtype)
    slope = torch.tensor(0.2, dtype=dtype)
    theirs = [x + y, x - y, x * y, x / y, torch.where(x > 0, x, x * slope), x * y]
    for ours, expected in zip(found, theirs, strict=True):
        assert same_bytes(ours, expected.float())


def test_formats_of_a_convolution_are_those_the_name_says() -> None:
    torch.manual_seed(4)
    x, w, b = torch.randn(1, 3, 4, 4, 4), torch.randn(2, 3, 3, 3, 3), torch.randn(2)
    tf32 = Format(11)

    def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with random_rounding("nearest"):
            return torch.conv3d(x, w, b, padding=1)

    with random_rounding("nearest", precision="tf32") as stats:
        found = torch.conv3d(x, w, b, padding=1)
        assert same_bytes(found + 0.1, found + torch.tensor(0.1))
    assert same_bytes(found, convolve(library.rounded(x, tf32), library.rounded(w, tf32), b))
    assert set(stats.operators) == {"convolution", "add"}
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        inner = convolve(*(v.to(dtype).float() for v in (x, w, b)))
        with random_rounding("nearest", precision=name) as stats:
            found = torch.conv3d(x, w, b, padding=1)
        assert same_bytes(found, inner.to(dtype).float())
        assert stats.operators["convolution (storage)"] == found.numel()


def test_a_gradient_is_stored_and_added_as_a_convolution_is() -> None:
    torch.manual_seed(5)
    x, w = torch.randn(1, 3, 5, 5, 5), torch.randn(4, 3, 3, 3, 3)
    g = torch.randn(1, 4, 5, 5, 5)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        rest = (None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1, [True, False, False])

        def gradient(g: torch.Tensor, w: torch.Tensor, rest: tuple = rest) -> torch.Tensor:
            return torch.ops.aten.convolution_backward(g, x, w, *rest)[0]

        with random_rounding("nearest"):
            inner = gradient(*(v.to(dtype).float() for v in (g, w)))
        with random_rounding("nearest", precision=name):
            found = gradient(g, w)
        assert same_bytes(found, inner.to(dtype).float())


def test_fewer_bits_are_as_many_as_asked_for() -> None:
    """Results of `precision=p` have p bits; the spread over seeds doubles with each bit less."""
    x, y = torch.rand(2, 20000)
    spread = []
    for bits in (20, 12):
        with random_rounding("random", seed=1, precision=bits):
            out = x * y
        assert same_bytes(library.rounded(out, Format(bits)), out)
        spread.append((out.double() - x.double() * y.double()).std().item())
    assert abs(math.log2(spread[1] / spread[0]) - 8) < 0.05  # 20,000 errors: 1 % at five sigma


@pytest.mark.parametrize("precision", ["1", "25", "0", "float8", "", "-3", 2.5])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    refused = pytest.raises(UserError, match="be 2 to 24 bits, or float16, bfloat16 or tf32")
    with refused, random_rounding(precision=precision):
        pass


def test_flushing_is_refused() -> None:
    refused = pytest.raises(UserError, match="subnormals=keep")
    with refused, random_rounding(precision=12, subnormals="flush"):
        pass
    with pytest.raises(UserError, match=r"no rule for elementwise .* subnormals=flush"):
        elementwise(
            Rounding("random", flush=True, format=Format(12)), "add", torch.ones(1), torch.ones(1)
        )
