"""Linear sampling in one pass has the bytes of its rule's operations one by one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.exact_replay import same_bytes
from torch import Tensor

from morphbits.choices import MODES
from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import library, program

ZEROS, BORDER, REFLECTION = range(3)
Result = tuple[list[Tensor], dict[str, int]]


def inputs(dims: int, channels: int, points: int, dtype: torch.dtype, odd: bool) -> list[Tensor]:
    """Two images, places of which some lie outside, and gradients; `odd`: with infinite and
    subnormal numbers and NaN."""
    generator = torch.Generator().manual_seed(points)
    size = [5, 7, 6][:dims]
    image = torch.randn(2, channels, *size, generator=generator, dtype=dtype)
    out = [2, *[3] * (dims - 2), points]
    grid = torch.rand(2, *out, dims, generator=generator, dtype=dtype) * 2.4 - 1.2
    gradient = torch.randn(2, channels, *out, generator=generator, dtype=dtype)
    if odd:
        image.view(-1)[::5], gradient.view(-1)[::3] = 0, 0
        image.view(-1)[1:3] = torch.tensor([1e-41, torch.inf])
        gradient.view(-1)[4:7] = torch.tensor([torch.nan, 1e-42, -0.0])
        strange = torch.tensor([torch.inf, torch.nan, -1e30, 1, -1, 1e-42, -0.0, 0])
        grid.view(-1)[3 : 3 + len(strange)] = strange
    return [image, grid, gradient]


def sampled(
    given: list[Tensor], padding: int, align: bool, wanted: list[bool], **options: object
) -> Result:
    """Values, gradients and what is drawn next; the operations counted."""
    image, grid, gradient = given
    name = f"grid_sampler_{grid.shape[-1]}d"
    forward, backward = (getattr(torch.ops.aten, n) for n in (name, f"{name}_backward"))
    with random_rounding(seed=7, **options) as stats:  # type: ignore[arg-type]
        out = forward(image, grid, 0, padding, align)
        gradients = backward(gradient, image, grid, 0, padding, align, wanted)
        following = torch.ones(20) / 3
    return [out, *(x for x in gradients if x is not None), following], dict(stats.operators)


def check_alike(monkeypatch: pytest.MonkeyPatch, given: list[Tensor], *rest, **options) -> Result:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(program, "recording", True)
    together = sampled(given, *rest, **options)
    monkeypatch.setattr(program, "recording", False)
    alone = sampled(given, *rest, **options)
    assert together[1] == alone[1]
    assert all(map(same_bytes, together[0], alone[0]))
    assert len(together[0]) == len(alone[0])
    return together


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_one_pass_gives_the_bytes_of_the_operations_one_by_one(
    mode: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, image, grid = [True, True], [True, False], [False, True]
    for case, (padding, align, channels, wanted, points, odd) in enumerate(
        [
            (BORDER, True, 3, both, 2, False),
            (ZEROS, False, 1, both, 150, False),
            (REFLECTION, True, 2, both, 3, True),
            (BORDER, False, 5, image, 90, True),
            (ZEROS, True, 9, both, 400, True),  # chains of more than 32 additions
            (BORDER, True, 4, grid, 17, True),
        ]
    ):
        dtype = (torch.float32, torch.float64)[case % 2]
        given = inputs(dims, channels, points, dtype, odd)
        flush = "flush" if padding == BORDER and odd else "keep"
        options = {"mode": mode, "subnormals": flush, "threads": 1 + case % 3}
        check_alike(monkeypatch, given, padding, align, wanted, **options)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_of_few_voxels_have_the_draws_of_their_rule(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor of one is not multiplied by."""
    for dims, align in product((2, 3), (True, False)):
        _, grid, gradient = inputs(dims, 1, 5, torch.float32, False)
        image = torch.rand(2, 1, *[size] * dims, generator=torch.Generator().manual_seed(size))
        given = [image, grid, gradient]
        check_alike(monkeypatch, given, BORDER, align, [True, True], mode="random")


@pytest.mark.parametrize("mode", ["random", "nearness", "nearest", "downward"])
def test_every_instruction_set_and_number_of_threads_gives_the_same(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(3, 3, 500, torch.float32, True)
    expected: list[Tensor] = []
    for name, threads in product(library.available_variants(), (1, 4)):
        monkeypatch.setattr(library, "default_variant", lambda name=name: name)
        found, _ = sampled(given, BORDER, True, [True, True], mode=mode, threads=threads)
        expected = expected or found
        assert all(map(same_bytes, found, expected))


@pytest.mark.parametrize("dims", [2, 3])
def test_images_and_places_may_lie_in_memory_in_any_order(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, grid, gradient = inputs(dims, 3, 40, torch.float32, False)
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    strided = [
        image.to(memory_format=last),
        grid.movedim(-1, 0).contiguous().movedim(0, -1),
        gradient.to(memory_format=last),
    ]
    found = [
        check_alike(monkeypatch, given, BORDER, True, [True, True], mode="random")[0]
        for given in ([image, grid, gradient], strided)
    ]
    assert all(map(same_bytes, *found))
