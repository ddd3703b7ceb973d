"""Results lie in memory as torch lays them out, whatever the layout of the operands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.operator_cases import CASES, Case
from torch import Tensor, nn

from morphbits.engines.native import layouts, random_rounding

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAST[x.dim()]) if x.dim() in LAST else x


def permuted(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x


def spaced(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def compute(
    case: Case, layout: Callable[[Tensor], Tensor], region: AbstractContextManager
) -> list[Tensor]:
    """The result and the gradients of the inputs, for a gradient that lies as the result does."""
    inputs = [layout(x).requires_grad_() for x in case.inputs(torch.float32)]
    with region:
        out = case.function(*inputs)
        upstream = torch.empty_like(out).copy_(torch.linspace(0.5, 2, out.numel()).view(out.shape))
        gradients = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return [out.detach(), *(g for g in gradients if g is not None)]


def deep(case: Case) -> Case:
    """Vectors of 40 as images, where torch takes them."""
    shapes = tuple((2, 4, 1, 5) if shape == (40,) else shape for shape in case.shapes)
    images = replace(case, shapes=shapes)
    try:
        compute(images, channels_last, nullcontext())
    except (RuntimeError, IndexError):
        return case
    return images


# Gradients that torch computes by other operators while it is watched: fused attention and layers
# are off inside, and prod's gradient minds zeros.
ELSEWISE = {"attention", "attention with a mask", "lstm", "prod"}


@pytest.mark.parametrize("layout", [channels_last, permuted, spaced])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_have_torchs_strides(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    """And a result the bytes that it has for operands in row-major order; but a determinant, of
    which torch factors the transposed matrix where rows are stored."""
    case = deep(case)
    expected = compute(case, layout, nullcontext())
    found = compute(case, layout, random_rounding(seed=2))
    plain = compute(case, torch.Tensor.contiguous, random_rounding(seed=2))
    compared = 1 if case.name in ELSEWISE else len(expected)
    for one, other in list(zip(found, expected, strict=True))[:compared]:
        assert one.stride() == other.stride(), (one.shape, one.stride(), other.stride())
    if not case.name.startswith(("overlapping strides", "determinant")):
        assert same_bytes(found[0].contiguous(), plain[0].contiguous())


@pytest.mark.parametrize("last", [(True, False), (False, True)])
def test_a_gradient_lies_as_torch_lays_it(last: tuple[bool, bool]) -> None:
    """Where the image and the gradient that comes in have layouts of their own."""
    aten, given = torch.ops.aten, torch.randn(2, 2, 4, 6, 6)
    g, x = (channels_last(v) if of else v for v, of in zip(given, last, strict=True))
    wide, w, per_group, mask = F.pad(g, (1,) * 4), torch.ones(4), torch.ones(2, 2), [True] * 3
    for f in (
        lambda: aten.native_batch_norm_backward(g, x, w, w, w, w, w, True, 1e-5, mask)[0],
        lambda: aten.native_group_norm_backward(g, x, *(per_group,) * 2, w, 2, 4, 36, 2, mask)[0],
        lambda: aten.reflection_pad2d_backward(wide, x, [1] * 4),
        lambda: aten.replication_pad2d_backward(wide, x, [1] * 4),
        lambda: aten.mse_loss_backward(g, x, x, 0),
        lambda: aten.upsample_bilinear2d_backward(g, [6, 6], [2, 4, 3, 3], False, None, None),
    ):
        expected = f()
        with random_rounding():
            found = f()
        assert found.stride() == expected.stride(), f


def test_a_view_of_a_result_is_taken_as_in_torch() -> None:
    convolution, x = nn.Conv2d(3, 8, 3), channels_last(torch.randn(2, 3, 8, 8))
    with random_rounding():
        assert convolution(x).permute(0, 2, 3, 1).view(2, 36, 8).shape == (2, 36, 8)
        assert (x * 1.5).bfloat16().permute(0, 2, 3, 1).view(2, 64, 3).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_their_layout(dtype: torch.dtype) -> None:
    x = channels_last(torch.randn(2, 4, 6, 6)).to(dtype)
    norm, convolution = nn.BatchNorm2d(4).to(dtype), nn.Conv2d(4, 6, 3).to(dtype)
    for f in (torch.exp, norm, convolution, torch.Tensor.half, lambda x: F.avg_pool2d(x, 2)):
        expected = f(x)
        with random_rounding():
            found = f(x)
        assert found.dtype == expected.dtype and found.stride() == expected.stride(), f


def test_what_is_written_in_place_stays_where_it_lies() -> None:
    x = permuted(torch.randn(4, 5))
    for write in (
        lambda y: y.mul_(1.1),
        lambda y: torch.mul(x, 1.1, out=y),
        lambda y: torch._foreach_mul_([y], 1.1),
    ):
        y = permuted(torch.randn(4, 5))
        strides, place = y.stride(), y.data_ptr()
        with random_rounding():
            write(y)
        assert (y.stride(), y.data_ptr()) == (strides, place)
    with random_rounding():
        assert torch.mul(x, 1.1, out=torch.empty(0)).stride() == x.stride()


def test_random_numbers_are_drawn_once() -> None:
    """Asking torch for strides draws nothing."""
    x = permuted(torch.rand(40, 50))
    generator = torch.Generator()
    for f in (
        lambda: F.dropout(x, 0.3),
        lambda: F.rrelu(x - 0.5, training=True),
        lambda: torch.normal(x, x),
        lambda: torch.multinomial(x, 3, generator=generator),
    ):
        states = []
        for region in (nullcontext(), random_rounding()):
            torch.manual_seed(4)
            generator.manual_seed(5)
            with region:
                f()
            states.append((torch.get_rng_state(), generator.get_state()))
        assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


@pytest.mark.parametrize(
    "shape, strides",
    [
        ((2, 3, 4, 5), (60, 1, 15, 3)),
        ((2, 3, 4, 5), (60, 20, 5, 1)),
        ((2, 1, 4, 5), (20, 1, 5, 1)),
        ((2, 3, 4, 5), (1, 40, 10, 2)),
        ((1, 3, 4, 5, 2), (120, 1, 30, 6, 3)),
        ((2, 3, 4, 5), (120, 1, 30, 6)),
        ((2, 3, 4, 5), (0, 0, 0, 0)),
    ],
)
def test_the_suggested_format_is_torchs(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    x = torch.zeros(1000).as_strided(shape, strides)
    theirs = torch._prims_common.suggest_memory_format(x)
    assert layouts.suggested(x) == theirs


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [3, 4, 19])
@pytest.mark.parametrize("special", [False, True])
def test_pooling_by_vectors_returns_what_torch_does(
    dims: int, channels: int, special: bool
) -> None:
    """Ties, numbers that are not finite, windows of -inf alone, borders, bytes; the batch may be
    left out."""
    generator = torch.Generator().manual_seed(channels)
    shape = (2, channels, *(9, 8, 7)[:dims])
    x = torch.randint(-3, 3, shape, generator=generator).float()
    if special:
        for number in (torch.nan, torch.inf, -torch.inf):
            x[torch.rand(shape, generator=generator) < 0.2] = number
    x[0, :, :4, :4] = -torch.inf
    func = getattr(torch.ops.aten, f"max_pool{dims}d_with_indices").default
    size = [3] * dims
    settings = ((size,), ([2],), (size, [2] * dims, [1] * dims), (size, [1], [0], [2], True))
    images = x, x[:1], x[0], x.transpose(2, 3), x.double(), x.bfloat16(), (x == 0).byte()
    for given, arguments in product(images, settings):
        expected, found = (f(given, *arguments) for f in (func, partial(layouts.pooled, func)))
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.nan_to_num(9), other.nan_to_num(9))
            assert one.stride() == other.stride()
