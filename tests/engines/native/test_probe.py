"""Orders of sums measured from a kernel: known ones are recovered, torch's proven by bytes."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.exact_replay import same_bytes
from support.processors import ORDERS_ARE_READ

from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import library
from morphbits.engines.native.kernels.library import MODES, Rounding, Terms, available_variants
from morphbits.engines.native.orders import probe, store
from morphbits.engines.native.orders.accumulation import terms
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture

STEPS = probe.Steps((1,) * 3, (1,) * 3, (1,) * 3)


def kernel(order: Terms, steps: probe.Steps = STEPS) -> probe.Convolve:
    """A convolution that adds in a known order: the engine's own, to nearest."""

    def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        lifted = [probe.widened(v) for v in (x, w)]
        out = library.convolution(Rounding("nearest"), *lifted, b, *steps.widened(), order)
        return out.reshape(*out.shape[:2], *out.shape[5 - len(steps.stride) :])

    return convolve


def layer(
    channels: int, out: int, size: tuple[int, ...], taps: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(channels)
    weight = torch.randn(out, channels, *(taps,) * len(size))
    return torch.randn(1, channels, *size), weight, torch.randn(out)


@pytest.fixture(autouse=True)
def forget() -> None:
    store.measured.clear()


@pytest.mark.parametrize("name", ["sequential", "direct", "blocked:7", "blocked:192", "start"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(9, 9, 9), (3, 3, 4)])  # many places for pairs, and one
def test_a_known_order_is_recovered(name: str, bias: bool, size: tuple[int, ...]) -> None:
    x, w, b = layer(19, 5, size)
    known = terms("sequential" if name == "start" else name, 27, 19)
    if name == "start":
        known = Terms(known.tap, known.channel, known.segment_end, bias_starts=True)
    found = probe.order(kernel(known), x, w, b if bias else None, STEPS, threads=2)
    assert found.proven
    assert "the same bytes" in found.words
    for part in ("tap", "channel", "segment_end"):
        assert np.array_equal(getattr(found.terms, part), getattr(known, part)), part
    if bias and name in ("direct", "start"):
        assert (found.terms.bias_first, found.terms.bias_starts) == (
            known.bias_first,
            known.bias_starts,
        )


def test_any_order_of_the_terms_is_recovered() -> None:
    """Terms in no order at all, in chains of no one length."""
    generator = np.random.default_rng(5)
    for ends in ([81], [30, 33, 81], [41, 80, 81]):
        channel, tap = np.divmod(generator.permutation(27 * 3), 27)
        tap, channel = np.ascontiguousarray(tap), np.ascontiguousarray(channel)
        known = Terms(tap, channel, np.array(ends))
        x, w, b = layer(3, 4, (6, 5, 7))
        found = probe.order(kernel(known), x, w, b, STEPS, threads=1)
        assert found.proven, found.words
        store.measured.clear()


@pytest.mark.parametrize(
    "size, taps, steps",
    [
        ((12,), 3, probe.Steps((2,), (1,), (1,))),
        ((9, 8), 2, probe.Steps((1, 2), (0, 1), (2, 1))),
        ((7, 7, 7), 1, probe.Steps((1,) * 3, (0,) * 3, (1,) * 3)),
        ((7, 8, 9), 3, probe.Steps((2, 1, 1), (1, 1, 2), (1, 1, 2))),
    ],
)
def test_every_geometry(size: tuple[int, ...], taps: int, steps: probe.Steps) -> None:
    x, w, b = layer(4, 3, size, taps)
    known = terms("blocked:5", taps ** len(size), 4)
    found = probe.order(kernel(known, steps), x, w, b, steps, threads=1)
    assert found.proven and np.array_equal(found.terms.segment_end, known.segment_end)


def test_what_cannot_be_read_is_said() -> None:
    x, w, b = layer(2, 3, (5, 5, 5))

    def pairwise(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        """Sums of four chains, added in pairs."""
        quarters = torch.zeros(4, 27)
        for k in range(27):
            quarters[k % 4, k] = 1
        parts = []
        for one in quarters.view(4, 1, 1, 3, 3, 3):
            order = terms("sequential", 27, 2)
            parts.append(kernel(order)(x, w * one, None))
        return (parts[0] + parts[1]) + (parts[2] + parts[3]) + b.view(-1, 1, 1, 1)

    found = probe.order(pairwise, x, w, b, STEPS, threads=1)
    assert not found.proven and "not read (its tree of sums is none of chains" in found.words
    in_double = probe.order(
        lambda x, w, b: torch.conv3d(x.double(), w.double(), b.double(), padding=1).float(),
        *(torch.randn(1, 2, 5, 5, 6), w, b, STEPS),
        threads=1,
    )  # the masks swallow in float64 too; its products are not rounded to float32
    assert not in_double.proven and "of values the same" in in_double.words
    tiny = probe.order(kernel(terms("direct", 27, 2)), x[..., :2], w, b, STEPS, threads=1)
    assert not tiny.proven and "all its products inside" in tiny.words


def test_a_chain_that_starts_from_the_bias(dtype: torch.dtype) -> None:
    """Every variant has the bytes of the naive kernel; to nearest, those of a loop of fused
    multiply-adds, which float64 holds for float32 but for one last rounding."""
    x, w, b = (v.to(dtype) for v in layer(17, 18, (3, 4, 9)))
    known = terms("blocked:100", 27, 17)
    start = Terms(known.tap, known.channel, known.segment_end, bias_starts=True)
    for mode, flush in product(MODES, (False, True)):
        found = [
            library.convolution(
                Rounding(mode, flush, key=4, variant=variant), x, w, b, *STEPS.widened(), start
            )
            for variant in ("naive", *available_variants())
        ]
        assert all(same_bytes(one, found[0]) for one in found), (mode, flush)
        without = library.convolution(
            Rounding(mode, flush, key=4), x, w, None, *STEPS.widened(), start
        )
        plain = library.convolution(
            Rounding(mode, flush, key=4), x, w, None, *STEPS.widened(), known
        )
        assert same_bytes(without, plain)
    one = torch.tensor([1.0]).view(1, 1, 1, 1, 1)
    bias = torch.tensor([2.0**-24])  # swallowed by a chain from zero, not by one it starts
    order = Terms(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([1]), bias_starts=True)
    up = library.convolution(
        Rounding("upward"), one, one, bias, (1,) * 3, (0,) * 3, (1,) * 3, order
    )
    assert up.item() == 1 + 2.0**-23


def test_torchs_own_orders_give_torchs_bytes() -> None:
    """Layer by layer of a network: what differs in a sample is the roundings alone. The flow's few
    channels are added by a kernel that rounds products by themselves."""
    model = init_model(Architecture((16, 16), (16, 16, 16), 2), seed=1, flow_std=0.5)
    images = torch.rand(2, 1, 1, 24, 32, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with random_rounding("nearest", accumulation="probe") as stats:
            found = model(*images)
        plain = model(*images)
        with random_rounding("random", accumulation="probe", seed=1):
            perturbed = model(*images)
        proven = {layer for layer, words in stats.orders.items() if "the same bytes" in words}
        shapes = [(1, 32, 12, 16, 12), (2, 32, 12, 16, 12), (1, 32, 24, 28, 24), (3, 17, 5, 5, 6)]
        for x in map(torch.rand, shapes):  # several images, or large ones: oneDNN's kernels
            w = torch.randn(17, x.shape[1], 3, 3, 3)
            with random_rounding("nearest", accumulation="probe") as one:
                ours = torch.conv3d(x, w, padding=1)
            (words,) = one.orders.values()
            assert same_bytes(ours, torch.conv3d(x, w, padding=1)) == ("same bytes" in words)
            assert "same bytes" in words or not ORDERS_ARE_READ, words
    assert len(stats.orders) == 5
    if ORDERS_ARE_READ:
        assert len(proven) == 5, stats.orders
        assert "each product rounded" in stats.orders["convolution 1×16×12×16×12 by 3×16×3×3×3"]
    for one, other, moved in zip(found, plain, perturbed, strict=True):
        assert same_bytes(one, other) or len(proven) < 5
        assert not torch.equal(moved, other)


class Convolution(NamedTuple):
    dims: int
    channels: tuple[int, int]
    taps: int
    stride: int = 1
    padding: int = 1
    groups: int = 1
    dilation: int = 1

    def run(
        self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        stride, pad, dilation = (
            (n,) * self.dims for n in (self.stride, self.padding, self.dilation)
        )
        more = tuple(s - 1 for s in stride) if transposed else (0,) * self.dims
        return torch.convolution(x, w, bias, stride, pad, dilation, transposed, more, self.groups)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Convolution(1, (16, 32), 3, stride=2),
        Convolution(1, (8, 12), 4, stride=3, padding=0, groups=2),
        Convolution(2, (32, 32), 3, stride=2, groups=4),
        Convolution(2, (16, 16), 3, groups=16),
        Convolution(2, (16, 24), 1, stride=2, padding=0),
        Convolution(2, (12, 8), 3, padding=3, dilation=2),
        Convolution(3, (8, 8), 4, stride=2),
        Convolution(3, (4, 6), 3, groups=2),
        Convolution(3, (16, 16), 2, stride=2, padding=0),
    ],
)
def test_strides_groups_and_gradients_have_torchs_bytes(
    case: Convolution, transposed: bool
) -> None:
    """A convolution or a transposed one, and the gradient of its input: proven on the numbers
    that were probed with, and the same bytes for others."""
    torch.manual_seed(1)
    inputs, outputs = case.channels
    size = {1: (41,), 2: (13, 14), 3: (7, 8, 9)}[case.dims]
    first = (inputs, outputs) if transposed else (outputs, inputs)
    x = torch.randn(2, inputs, *size, requires_grad=True)
    w = torch.randn(first[0], first[1] // case.groups, *(case.taps,) * case.dims)
    orders: dict[str, str] = {}
    for bias in (torch.randn(outputs), None, torch.randn(outputs)):
        w, upstream = w.roll(1, 0), torch.randn_like(case.run(x, w, bias, transposed))
        (plain,) = torch.autograd.grad(case.run(x, w, bias, transposed), x, upstream)
        with random_rounding("nearest", accumulation="probe") as stats:
            ours = case.run(x, w, bias, transposed)
            (gradient,) = torch.autograd.grad(ours, x, upstream)
        orders |= stats.orders
        proven = all("the same bytes" in words for words in stats.orders.values())
        assert proven or not ORDERS_ARE_READ, stats.orders
        with torch.no_grad():
            same = same_bytes(ours, case.run(x, w, bias, transposed))
        assert (same and same_bytes(gradient, plain)) == proven
    parts = case.stride**case.dims if case.taps >= case.stride else 1
    strided = "convolution" if transposed else "convolution_backward (input)"
    assert sum(layer.startswith(f"{strided} 2×") for layer in orders) == parts


def test_a_proof_needs_more_than_the_data_at_hand() -> None:
    """On zeros every order gives the same bytes. Where a row of 9³ results does not begin at a
    multiple of 16 bytes, the gemm of few output channels adds its first ones otherwise."""
    x, w, b = layer(4, 3, (9, 9, 9))
    zeros, known = torch.zeros_like(x), terms("direct", 27, 4)

    def almost(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        out = kernel(known)(x, w, b)
        out[:, 1, 0, 0, :3] = kernel(terms("blocked:5", 27, 4))(x, w, b)[:, 1, 0, 0, :3]
        return out

    found = probe.order(almost, zeros, w, b, STEPS, threads=1)
    assert not found.proven and "of values the same" in found.words
    with torch.no_grad():
        for image in (zeros, x):
            with random_rounding("nearest", accumulation="probe") as stats:
                ours = torch.conv3d(image, w, b, padding=1)
            (words,) = stats.orders.values()
            theirs = torch.conv3d(image, w, b, padding=1)
            assert same_bytes(ours, theirs) or "the same bytes" not in words


@pytest.mark.parametrize("size", [16, 33])
def test_a_network_on_channels_last_has_torchs_bytes(size: int) -> None:
    """Each layer is read in the layout in which torch hands its input on."""
    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.LeakyReLU(0.25),
        torch.nn.Conv2d(32, 8, 3),
    )  # fmt: skip
    x = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = model(x)
        with random_rounding("nearest", accumulation="probe") as stats:
            ours = model(x)
    proven = all("the same bytes" in words for words in stats.orders.values())
    assert len(stats.orders) == 3 and ours.stride() == plain.stride()
    assert same_bytes(ours, plain) == proven
    assert proven or not ORDERS_ARE_READ, stats.orders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_read_in_float32_and_say_so(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3)
    found = []
    for kind in (torch.float32, dtype):
        image, weight = x.to(kind), w.to(kind)
        with random_rounding("nearest", accumulation="probe") as stats:
            torch.conv2d(image, weight)
            image.sum()
            image[0].flatten(1) @ image[1].flatten(1).t()
        found.append(stats.orders)
    plain, half = found
    assert len(plain) == len(half) == 3
    for layer, words in half.items():
        assert "same bytes" not in words
        assert words.endswith(", read in float32") or words.startswith("not read"), words
        assert words.removesuffix(", read in float32") in plain[layer.removesuffix(", 16 bits")]


def test_what_is_not_probed_is_said() -> None:
    x, w, _ = layer(4, 4, (6, 6, 6))
    w.requires_grad_()
    with random_rounding("nearest", accumulation="probe") as stats:
        torch.conv3d(x, w).sum().backward()
    words = stats.orders["convolution_backward (weight)"]
    assert words == "not probed: a chain for each row of the output"
