"""The float64 shadow: its values, whose decisions it follows, and what is counted on the way."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphbits import stages
from morphbits.engines.decisions import Decisions, decided
from morphbits.engines.native import random_rounding
from morphbits.engines.shadow import ALL, Shadow

ONE = torch.ones(1)


def test_a_chain_of_additions_is_that_of_rational_numbers() -> None:
    numbers = np.random.default_rng(1).standard_normal(300).astype(np.float32)
    with Shadow() as shadow:
        total = torch.zeros(())
        for number in torch.from_numpy(numbers):
            total = total + number
    exact = sum(map(Fraction, numbers.tolist()), Fraction(0))
    magnitude = sum(map(abs, map(Fraction, numbers.tolist())))
    # 300 additions in float64, each wrong by at most 2^-53 of a partial sum
    assert abs(Fraction(shadow.of(total).item()) - exact) <= 300 * magnitude / 2**53
    assert abs(Fraction(total.item()) - exact) > magnitude / 2**40  # float32 is not as near


def test_one_plus_epsilon_minus_one_loses_the_bits_of_epsilon() -> None:
    with Shadow() as shadow:
        x = ONE + 2.0**-20
        _ = x - 1  # 2^-20: the exponent falls from 0 to −20
        _ = 1 - x
        _ = x - x
        _ = ONE - 0.25  # 0.75: one bit
        _ = ONE + 3
    (counts,) = shadow.counts.values()
    lost = {bits: n for bits, n in enumerate(counts.lost.tolist()) if n}
    assert lost == {0: 2, 1: 1, 20: 2, ALL: 1}
    assert (counts.additions, counts.operations, counts.exact) == (6, 6, 6)


def test_an_operation_is_exact_where_its_result_is_not_rounded() -> None:
    with Shadow() as shadow:
        _ = ONE + 2.0**-24  # one bit too long
        _ = ONE + 2.0**-80  # and too long for float64 as well
        _ = ONE / 3
        _ = (ONE * 9).sqrt()
        _ = (ONE * 2).sqrt()
        _ = (ONE + 2.0**-12) * (ONE + 2.0**-12)  # 1 + 2^-11 + 2^-24
        _ = ONE * 3 / 4
    (counts,) = shadow.counts.values()
    assert (counts.operations, counts.exact) == (12, 7)


def test_a_sum_of_many_terms_loses_what_cancels_in_it() -> None:
    terms = torch.tensor([1024.0, 1.0, -1024.0])
    with Shadow() as shadow:
        terms.dot(torch.ones(3))  # 2,049 to 1: 11 bits
        F.conv1d(terms.view(1, 1, 3), torch.ones(1, 1, 3), -ONE)  # nothing is left
        terms.abs().sum()
    (counts,) = shadow.counts.values()
    lost = {bits: n for bits, n in enumerate(counts.sums_lost.tolist()) if n}
    assert lost == {0: 1, 11: 1, ALL: 1} and counts.sums == 3


def test_subnormal_results_are_counted_by_stage() -> None:
    def half(x: Tensor) -> Tensor:
        return x * 0.5

    with Shadow() as shadow:
        stages.run("small", half, torch.tensor([2.0**-126, 2.0**-125, 0.0]))
        stages.run("large", half, ONE)
    assert shadow.counts["small"].subnormal == 1 and shadow.counts["small"].results == 3
    assert shadow.counts["large"].subnormal == 0


def test_the_shadow_follows_the_decisions_of_the_numbers_themselves() -> None:
    with Shadow() as shadow:
        more, less = ONE + 2.0**-25, ONE - 2.0**-26  # in float32: 1 and 1
        bent = F.leaky_relu(more - 1, 0.25)
        clamped = torch.clamp(more, max=1)
        floor = less.floor()
        larger = F.max_pool2d(torch.cat([ONE, more]).view(1, 1, 1, 2), (1, 2))
        above = more > 1
    assert shadow.of(more).item() == 1 + 2.0**-25
    assert shadow.of(bent).item() == 0.25 * 2.0**-25  # 0 is not positive
    assert shadow.of(clamped).item() == 1 + 2.0**-25
    assert shadow.of(floor).item() == floor.item() == 1
    assert shadow.of(larger).item() == 1  # the first of two equal numbers
    assert not above
    (counts,) = shadow.counts.values()
    expected = {"ReLU": 1, "floor": 1, "max-pool": 1, "comparison": 1}
    assert counts.decisions == counts.flipped == expected


def program(x: Tensor, weight: Tensor, tenths: float, third: float) -> list[Tensor]:
    """Views, writes through them, and operators of every kind, without a close decision."""
    y = F.conv2d(x, weight, padding=1)
    y = F.leaky_relu_(y, 0.25)
    pooled = F.max_pool2d(y, 2)
    wide = torch.cat([F.interpolate(pooled, scale_factor=2, mode="nearest"), x], 1)
    part = wide[:, 1:, ::2].transpose(2, 3)
    part.mul_(tenths).add_(third)
    wide.view(-1)[5:9] = part.flatten()[:4] * part.mean()
    values, _ = wide.flatten().sort()
    chosen = wide.flatten().index_select(0, torch.arange(0, 60, 7))
    out = torch.empty(9)
    torch.mul(chosen, chosen, out=out)
    floats = torch._foreach_mul([chosen, values], 1.5)
    matrix = torch.softmax(wide[0, 0] @ wide[0, 1].T, 0)
    double = chosen.double() / 7
    return [y, pooled, wide, part, values, out, *floats, matrix, double, wide.to(torch.float64)]


def test_a_shadow_is_the_program_in_float64() -> None:
    draw = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(s, generator=draw) for s in ((1, 2, 8, 8), (3, 2, 3, 3)))
    with Shadow() as shadow, torch.no_grad():
        results = program(x, weight, 0.3, 1 / 3)
    torch.set_default_dtype(torch.float64)
    try:
        # numbers of the program are float32's in the shadow; 0.25, 1.5 and 7 are both
        single = (float(np.float32(number)) for number in (0.3, 1 / 3))
        wide = program(x.double(), weight.double(), *single)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not shadow.unshadowed
    for result, exact in zip(results, wide, strict=True):
        assert torch.equal(shadow.of(result), exact.double())
    assert not torch.equal(results[0].double(), wide[0])


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "dilation": 2}])
def test_a_large_convolution_is_computed_in_slabs(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphbits.engines.shadow.COLUMNS", 20_000)
    draw = torch.Generator().manual_seed(3)
    sizes = ((1, 2, 11, 8, 9), (3, 2, 3, 3, 3), (3,))
    image, weight, bias = (torch.randn(size, generator=draw) for size in sizes)
    with Shadow() as shadow:
        result = F.conv3d(image, weight, bias, **options)
    exact = F.conv3d(image.double(), weight.double(), bias.double(), **options)
    # 54 products and sums, each wrong by 2^-53 of numbers below 64
    assert float((shadow.of(result) - exact).abs().max()) < 54 * 64 * 2.0**-53
    assert not shadow.unshadowed


def test_what_float64_cannot_follow_is_exact_and_counted() -> None:
    with Shadow() as shadow:
        third = ONE / 3
        dropped = F.dropout(third.expand(64), 0.5)
        noise = torch.rand(3).normal_()
    assert shadow.unshadowed == {"bernoulli_": 1, "normal_": 1}
    assert torch.equal(shadow.of(noise), noise.double())
    # the mask is exact, what it is multiplied with is not
    assert set(shadow.of(dropped).tolist()) == {0.0, 2 / 3}


def test_shadows_of_freed_tensors_are_dropped() -> None:
    with Shadow() as shadow:
        for _ in range(50):
            _ = ONE / 3
    assert len(shadow._kept) <= 3


@pytest.mark.parametrize("mode", ["nearest", "upward"])
def test_inside_a_region_it_shadows_what_the_region_computes(mode: str) -> None:
    with random_rounding(mode=mode) as stats, Shadow() as shadow:
        third = ONE / 3
    assert stats.operations == 1 and shadow.of(third).item() == 1 / 3
    assert (third.item() > 1 / 3) and stats.operators == {"div": 1}


def test_a_sampler_decides_of_the_voxels_it_reads() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    grid = torch.rand((1, 7, 7, 2), generator=torch.Generator().manual_seed(1)) * 1.2 - 0.6
    for corners in (False, True):
        heard: list[tuple[str, str, Tensor]] = []
        with Decisions(lambda *found: heard.append(found)):  # noqa: B023
            sampled = F.grid_sample(image, grid, mode="nearest", align_corners=corners)
        ((_, kind, places),) = heard
        assert kind == "nearest"
        assert torch.equal(sampled[0, 0], (places[:, 1] * 6 + places[:, 0])[0].float())


def test_decisions_are_heard_in_order_and_by_stage() -> None:
    heard: list[tuple[str, str, list]] = []
    numbers = torch.tensor([-1.5, 2.5])

    def part(x: Tensor) -> Tensor:
        F.leaky_relu_(x.clone())
        return x.floor()

    with Decisions(lambda stage, kind, found: heard.append((stage, kind, found.tolist()))):
        stages.run("part", part, numbers)
        _ = numbers.round(), numbers > 0, torch.tensor([1, 2]) > 1
    assert heard == [
        ("part", "ReLU", [False, True]),
        ("part", "floor", [-2, 2]),
        ("", "nearest", [-2, 2]),
        ("", "comparison", [False, True]),
    ]
    values, indices = F.max_pool1d(numbers.view(1, 1, 2), 2, return_indices=True)
    found = decided(torch.ops.aten.max_pool2d_with_indices.default, (numbers,), (values, indices))
    assert found.item() == 1


def test_what_is_written_in_place_flips_as_what_is_not() -> None:
    flipped = []
    for floor in (torch.floor, torch.floor_):
        with Shadow() as shadow:
            floor(torch.arange(1000.0) / 49 * 49)  # whole numbers, but for the rounding
        flipped.append(shadow.counts[""].flipped["floor"])
    assert flipped[0] == flipped[1] > 0


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_the_shadow_samples_the_voxels_of_the_program(corners: bool, padding: str) -> None:
    """Coordinates halfway between voxels, which a rounding error moves to either side."""
    image = torch.arange(40.0).view(1, 1, 5, 8)
    grid = torch.linspace(-1.2, 1.2, 606).view(1, 101, 3, 2)
    with Shadow() as shadow:
        moved = grid / 7 * 7
        found = F.grid_sample(
            image, moved, mode="nearest", padding_mode=padding, align_corners=corners
        )
    assert (shadow.of(moved) != moved).any() and not shadow.unshadowed
    assert torch.equal(shadow.of(found), found.double())


def test_a_bound_that_is_taken_keeps_its_error() -> None:
    with Shadow() as shadow:
        clamped = torch.clamp(torch.zeros(1), min=ONE / 3)
        leaky = F.leaky_relu(-ONE)
    assert shadow.of(clamped).item() == 1 / 3
    assert shadow.of(leaky).item() == leaky.item()
