"""Tensors without elements or without axes, as torch takes them: an empty batch, no boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from engines.native.test_operators import compute
from support.operator_cases import CASES, Case
from torch import Tensor, nn

from morphbits.engines.native import random_rounding


def empties(case: Case) -> Iterator[Case]:
    """The case with an empty first axis: of all tensors as long as the first, of the first, of
    all."""
    length = case.shapes[0][0]
    seen = []
    for chosen in (
        [shape[0] == length for shape in case.shapes],
        [n == 0 for n in range(len(case.shapes))],
        [True] * len(case.shapes),
    ):
        cut = zip(case.shapes, chosen, strict=True)
        shapes = tuple((0, *shape[1:]) if empty else shape for shape, empty in cut)
        if shapes not in seen:
            seen.append(shapes)
            yield replace(case, shapes=shapes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_empty_batch_gives_what_torch_gives(case: Case) -> None:
    if case.name.startswith("pdist"):
        pytest.skip("torch's own gradient of it ends the process")
    taken = 0
    for empty in empties(case):
        try:
            expected = compute(empty, torch.float32, nullcontext())
        except (RuntimeError, IndexError, ValueError):
            continue
        taken += 1
        found = compute(empty, torch.float32, random_rounding("nearest"))
        same(found, expected)
    if not taken:
        pytest.skip("torch does not take it")


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Shapes and types; values to a few last places, by which the order of a sum may move them."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2.0**-20, atol=2.0**-20, equal_nan=True)


def rows(*more: int, labels: bool = False) -> Tensor:
    """A batch of no images."""
    return torch.zeros((0, *more), dtype=torch.long if labels else torch.float32)


NUMBER = torch.tensor(3.3)
SINGLE: dict[str, Callable[[], Tensor]] = {
    "sum": lambda: rows(4).sum(),
    "sum of no columns": lambda: torch.zeros(2, 0).sum(1, keepdim=True),
    "mean": lambda: rows(4).mean(),
    "mean of no rows": lambda: rows(4).mean(0),
    "prod": lambda: rows(4).prod(),
    "prod of no rows": lambda: rows(4).prod(0),
    "prod of each row": lambda: rows(4).prod(1),
    "var": lambda: rows(4).var(0),
    "norm": lambda: rows(4).norm(),
    "logsumexp": lambda: rows(4).logsumexp(0),
    "cumprod": lambda: torch.zeros(3, 0).cumprod(0),
    "softmax over nothing": lambda: F.softmax(torch.zeros(3, 0), 1),
    "attention without keys": lambda: F.scaled_dot_product_attention(
        torch.zeros(2, 2, 5, 4), *(torch.zeros(2, 2, 0, 4),) * 2
    ),
    "cross_entropy": lambda: F.cross_entropy(rows(4), rows(labels=True)),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(rows(4), rows(4)),
    "softmax of a number": lambda: F.softmax(NUMBER, 0),
    "log_softmax of a number": lambda: F.log_softmax(NUMBER, -1),
    "sum of a number": lambda: NUMBER.sum(0),
    "mean of a number": lambda: NUMBER.mean(-1, keepdim=True),
    "logsumexp of a number": lambda: NUMBER.logsumexp(0),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("accumulation", ["sequential", "probe"])
def test_what_has_no_elements_or_no_axes_is_torchs(name: str, accumulation: str) -> None:
    expected = SINGLE[name]()
    with random_rounding("nearest", accumulation=accumulation):
        found = SINGLE[name]()
    same([found], [expected])


@pytest.mark.parametrize("accumulation", ["sequential", "probe"])
@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Linear(3, 2), (3,)),
        (nn.Conv2d(2, 3, 3), (2, 6, 6)),
        (nn.ConvTranspose2d(2, 3, 3, 2), (2, 6, 6)),
        (nn.GroupNorm(2, 4), (4, 3)),
        (nn.LayerNorm(5), (4, 5)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 4, 5)),
        (nn.AvgPool2d(2), (2, 4, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_learns_nothing_of_an_empty_batch(
    module: nn.Module, shape: tuple[int, ...], accumulation: str
) -> None:
    gradients = []
    for region in (nullcontext(), random_rounding("nearest", accumulation=accumulation)):
        x = rows(*shape).requires_grad_()
        with region:
            out = module(x)
            wanted = [x, *module.parameters()]
            gradients.append([out.detach(), *torch.autograd.grad(out.sum(), wanted)])
    same(gradients[1], gradients[0])
