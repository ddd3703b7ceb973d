"""Upward and downward: where torch's kernels negate before they round, rules do, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from morphbits.engines.native import random_rounding

Pair = tuple[Tensor, Tensor]  # the operator's result, and its formula's
aten = torch.ops.aten


def _inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _third(x: Tensor, mean: Tensor, rstd: Tensor, ds: Tensor, db: Tensor, n: int) -> Pair:
    share = torch.full((), 1 / n)
    b = (db * mean - ds) * rstd * rstd * rstd * share
    return b, -b * mean - db * rstd * share


def layer_norm() -> Pair:
    g, x = _inputs((50, 7), (50, 7))
    mean, rstd = x.mean(1, keepdim=True), torch.rand(50, 1) + 0.5
    found, _, _ = aten.native_layer_norm_backward(
        g, x, [7], mean, rstd, None, None, [True, False, False]
    )
    b, c = _third(x, mean, rstd, (g * x).sum(1, True), g.sum(1, True), 7)
    return found, rstd * g + b * x + c


def group_norm() -> Pair:
    (x,) = _inputs((4, 6, 5))
    found, mean, rstd = aten.native_group_norm(x, None, None, 4, 6, 5, 3, 1e-5)
    scale, center = (v[:, :, None, None].expand(4, 3, 2, 1) for v in (rstd, mean))
    return found, (x.view(4, 3, 2, 5) * scale + (-scale * center)).view(x.shape)


def group_norm_backward() -> Pair:
    g, x, mean, rstd = _inputs((4, 6, 5), (4, 6, 5), (4, 3), (4, 3))
    found, _, _ = aten.native_group_norm_backward(
        g, x, mean, rstd, None, 4, 6, 5, 3, [True, False, False]
    )
    g4, x4 = g.view(4, 3, 2, 5), x.view(4, 3, 2, 5)
    mean4, rstd4 = mean[:, :, None, None], rstd[:, :, None, None]
    ds, db = ((g4 * x4).sum(3, True).sum(2, True), g4.sum(3, True).sum(2, True))
    b, c = _third(x4, mean4, rstd4, ds, db, 10)
    return found, (rstd4 * g4 + b * x4 + c).view(x.shape)


def batch_norm_without_bias() -> Pair:
    x, mean = _inputs((50, 3), (3,))
    variance = torch.rand(3) + 0.5
    found, _, _ = aten.native_batch_norm(x, None, None, mean, variance, False, 0.1, 1e-5)
    alpha = 1 / (variance + 1e-5).sqrt()
    return found, x * alpha + (0 - mean * alpha)


def smooth_l1() -> Pair:
    g, x, y = _inputs((60,), (60,), (60,))
    found = aten.smooth_l1_loss_backward(g, x, y, 1, 0.7)
    z, norm = x - y, torch.full((), 1 / 60)
    far = torch.where(z <= -0.7, -norm * g, norm * g)
    return found, torch.where(z.abs() >= 0.7, far, norm * z * g / 0.7)


def huber() -> Pair:
    g, x, y = _inputs((60,), (60,), (60,))
    found = aten.huber_loss_backward(g, x, y, 1, 0.7)
    z, norm = x - y, torch.full((), 1 / 60)
    far = torch.where(z <= -0.7, -norm * g * 0.7, norm * g * 0.7)
    return found, torch.where(z.abs() >= 0.7, far, norm * z * g)


def multi_margin() -> Pair:
    (x,) = _inputs((40, 6))
    target, g = torch.arange(40) % 6, torch.tensor(1.0)
    found = aten.multi_margin_loss_backward(g, x, target, 2, 1.0)
    rows, classes = torch.arange(40), target[:, None]
    z = 1.0 - x.gather(1, classes) + x
    share = torch.where((z > 0) & (torch.arange(6) != classes), 2 / 240 * z, 0.0)
    total = torch.zeros(40)
    for column in range(6):
        total = total - share[:, column]
    share[rows, target] = total
    return found, share


def nll_of_rows() -> Pair:
    x, weight = _inputs((12, 5), (5,))
    target, g, total = torch.arange(12) % 5, torch.tensor(0.7), torch.tensor(11.3)
    found = aten.nll_loss_backward(g, x, target, weight, 1, -100, total)
    each = weight[target] * -(g / total)
    return found, torch.zeros(12, 5).scatter(1, target[:, None], each[:, None])


def nll_of_images() -> Pair:
    x, weight = _inputs((2, 5, 3, 4), (5,))
    target, g, total = torch.arange(24).view(2, 3, 4) % 5, torch.tensor(0.7), torch.tensor(11.3)
    found = aten.nll_loss2d_backward(g, x, target, weight, 1, -100, total)
    each = -weight[target] / total * g
    return found, torch.zeros(2, 5, 3, 4).scatter(1, target[:, None], each[:, None])


def entropy() -> Pair:
    x = torch.linspace(0.01, 2, 60)
    return torch.special.entr(x), -x * x.log()


def log_sigmoid() -> Pair:
    g, x = _inputs((60,), (60,))
    found = aten.log_sigmoid_backward(g, x, torch.empty(0))
    z = (-x.abs()).exp()
    sign, most = torch.where(x < 0, 1.0, -1.0), (x < 0).float()
    return found, g * (most - sign * (z / (1 + z)))


def bicubic() -> Pair:
    """One point: the sum over its sixteen neighbours subtracts each product."""
    x, grid = torch.rand(1, 1, 6, 6) + 0.5, torch.tensor([[[[0.13, -0.21]]]])
    g = torch.ones(1, 1, 1, 1)
    _, found = aten.grid_sampler_2d_backward(g, x, grid, 2, 0, True, [False, True])

    def weights(t: Tensor) -> list[Tensor]:
        def inner(v: Tensor) -> Tensor:
            return ((1.25 * v - 2.25) * v) * v + 1

        def outer(v: Tensor) -> Tensor:
            return ((-0.75 * v + 3.75) * v - 6.0) * v + 3.0

        return [outer(t + 1), inner(t), inner(1 - t), outer((1 - t) + 1)]

    def slopes(t: Tensor) -> list[Tensor]:
        return [
            (2.25 * (-1 - t) + 7.5) * (-1 - t) + 6,
            (-3.75 * -t - 4.5) * -t,
            (3.75 * (1 - t) - 4.5) * (1 - t),
            (-2.25 * (2 - t) + 7.5) * (2 - t) - 6,
        ]

    at = [(grid[0, 0, 0, d] + 1) / 2 * 5 for d in (0, 1)]
    first = [int(v.floor()) for v in at]
    fraction = [v - v.floor() for v in at]
    along, across = slopes(fraction[0]), weights(fraction[1])
    total = torch.zeros(())
    for i in range(4):
        for j in range(4):
            value = x[0, 0, first[1] - 1 + j, first[0] - 1 + i]
            total = total - value * along[i] * across[j] * g[0, 0, 0, 0]
    return found[0, 0, 0, 0], total * 2.5


CASES: tuple[Callable[[], Pair], ...] = (
    layer_norm,
    group_norm,
    group_norm_backward,
    batch_norm_without_bias,
    smooth_l1,
    huber,
    multi_margin,
    nll_of_rows,
    nll_of_images,
    entropy,
    log_sigmoid,
    bicubic,
)


@pytest.mark.parametrize("mode", ["upward", "downward", "nearest"])
@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_its_formula_in_every_direction(
    case: Callable[[], Pair], mode: str
) -> None:
    torch.manual_seed(1)
    with random_rounding(mode):
        found, formula = case()
    assert torch.equal(found, formula)
    assert found.abs().sum() > 0
