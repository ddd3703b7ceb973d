"""Functions of each element against torch's kernels over the whole range: large, small, subnormal,
infinite, NaN, and the points where a kernel changes its branch, not only numbers near one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphbits.engines.native import random_rounding

aten = torch.ops.aten
TURNS = (
    "0 .1 .2 .25 .3 .5 .7 .701 .99 1 2 2.9999 3 3.0001 5.9999 6 9.02 10 14 17.4 20 20.0001 50 88"
)


def grid(dtype: torch.dtype, step: int = 1) -> Tensor:
    """Both signs of powers of two over the whole range, the limits, and where kernels turn."""
    info = torch.finfo(dtype)
    first, last = (-149, 128) if dtype == torch.float32 else (-1074, 1024)
    powers = [2.0**e for e in range(first, last, 9 if dtype == torch.float32 else 67)]
    limits = [info.smallest_normal, info.max, info.eps, 1 - info.eps / 2, 1 + info.eps, torch.inf]
    points = [*map(float, TURNS.split()), *powers[::step], *limits, torch.nan]
    x = torch.tensor(points, dtype=torch.float64).to(dtype)
    return torch.cat([x, -x])


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = grid(dtype, 5)
    return tuple(v.reshape(-1).contiguous() for v in torch.meshgrid(x, x, indexing="ij"))  # type: ignore[return-value]


def gradients(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.tensor([0.0, 1.0, -0.7, 1e-30, 1e30, torch.inf, torch.nan], dtype=dtype)
    return tuple(v.reshape(-1).contiguous() for v in torch.meshgrid(g, grid(dtype), indexing="ij"))  # type: ignore[return-value]


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: lambda x, n=name: getattr(torch, n)(x)
        for name in (
            "asinh atanh deg2rad digamma erf exp expm1 lgamma log1p logit rad2deg reciprocal "
            "rsqrt sigmoid sinc sqrt square tanh"
        ).split()
    },
    **{
        name: lambda x, n=name: getattr(F, n)(x)
        for name in (
            "celu elu hardsigmoid hardswish logsigmoid mish selu silu softplus softshrink "
            "softsign tanhshrink leaky_relu rrelu"
        ).split()
    },
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "logit of the middle": lambda x: torch.logit(x, 0.1),
    "entr": torch.special.entr,
    "mvlgamma": lambda x: torch.mvlgamma(x, 2),
    "softplus by beta": lambda x: F.softplus(x, 1.5, 10),
    **{f"x ** {p}": lambda x, p=p: x**p for p in (2, 3, 0.5, -0.5, -1, -2, 1.7, 4)},
    **{f"{b} ** x": lambda x, b=b: b**x for b in (0.0, 0.3, 1.0, -1.5)},
}
BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        name: lambda g, x, n=f"{name}_backward": getattr(aten, n)(g, x)
        for name in "hardsigmoid hardswish logit mish sigmoid silu tanh".split()
    },
    "elu": lambda g, x: aten.elu_backward(g, 0.7, 1.1, 0.9, False, x),
    "softplus": lambda g, x: aten.softplus_backward(g, x, 1.5, 20),
    "leaky_relu": lambda g, x: aten.leaky_relu_backward(g, x, 0.2, False),
    "logsigmoid": lambda g, x: aten.log_sigmoid_backward(g, x, (-x.abs()).exp()),
    # of NaN, torch's vectorized kernel gives 0, and the rest of a row NaN
    "logit of the middle": lambda g, x: aten.logit_backward(
        g, torch.where(x.isnan(), 0.5, x), 0.1
    ),
    "softshrink": lambda g, x: aten.softshrink_backward(g, x, 0.3),
    "dropout": lambda g, x: aten.native_dropout_backward(g, x > 0, 1.25),
    "prelu": lambda g, x: aten._prelu_kernel_backward(g, x, torch.tensor(0.3, dtype=x.dtype))[0],
}


def _target(y: Tensor) -> Tensor:
    return y.clamp(0, 1).nan_to_num(0.5)


OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        name: lambda a, b, n=name: getattr(torch, n)(a, b)
        for name in "atan2 hypot logaddexp logaddexp2 xlogy pow ldexp".split()
    },
    "xlog1py": torch.special.xlog1py,
    "soft_margin_loss": lambda a, b: F.soft_margin_loss(a, b, reduction="none"),
    "soft_margin_loss backward": lambda a, b: aten.soft_margin_loss_backward(a * 0 + 1, a, b, 0),
    "mse_loss backward": lambda a, b: aten.mse_loss_backward(a * 0 + 1, a, b, 0),
    "smooth_l1_loss": lambda a, b: F.smooth_l1_loss(a, b, reduction="none", beta=0.7),
    "smooth_l1_loss backward": lambda a, b: aten.smooth_l1_loss_backward(a * 0 + 1, a, b, 0, 0.7),
    "huber_loss": lambda a, b: F.huber_loss(a, b, reduction="none", delta=0.7),
    "huber_loss backward": lambda a, b: aten.huber_loss_backward(a * 0 + 1, a, b, 0, 0.7),
    "binary cross entropy": lambda a, b: F.binary_cross_entropy(
        _target(a), _target(b), reduction="none"
    ),
    "binary cross entropy backward": lambda a, b: aten.binary_cross_entropy_backward(
        torch.ones_like(a), _target(a), _target(b), None, 0
    ),
    "binary cross entropy of logits": lambda a, b: F.binary_cross_entropy_with_logits(
        a, _target(b), reduction="none", pos_weight=torch.tensor(1.7, dtype=a.dtype)
    ),
    "glu backward": lambda a, b: aten.glu_backward(
        torch.ones_like(a)[:, None], torch.stack([a, b], 1), 1
    ),
}
OF_SOME = {
    **{name: (f, lambda d: (grid(d),)) for name, f in OF_ONE.items()},
    **{f"{name} backward": (f, gradients) for name, f in BACKWARD.items()},
    **{name: (f, pairs) for name, f in OF_TWO.items()},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OF_SOME)
def test_values_are_those_of_torchs_kernel_everywhere(name: str, dtype: torch.dtype) -> None:
    """Relative 2⁻¹⁶ of the value in float32, 2⁻⁴⁵ in float64: two to ten operations, of which one
    may cancel ten times its size (1 − s of a sigmoid, the reflection of digamma). Below the normal
    numbers torch's vectorized exp gives zero."""
    function, given = OF_SOME[name]
    values = given(dtype)
    expected = function(*values)
    with random_rounding("nearest"):
        found = function(*values)
    assert torch.equal(found.isnan(), expected.isnan())
    bound = 2.0**-16 if dtype == torch.float32 else 2.0**-45
    least = 2 * torch.finfo(dtype).smallest_normal
    if name == "logaddexp2":  # torch fuses a product with the sum, whose terms may cancel
        least = torch.finfo(dtype).eps
    near = torch.isclose(found, expected, rtol=bound, atol=least, equal_nan=True)
    where = [tuple(v[i].item() for v in values) for i in (~near).nonzero()[:5, 0]]
    assert near.all(), [
        (at, found[~near][k].item(), expected[~near][k].item()) for k, at in enumerate(where)
    ]


ROWS = (
    "1 2 3 4 5 6", "1e30 1 -1e30 2 3 4", "1e-30 " * 6, "1e-40 2e-40 0 0 1e-41 3e-45",
    "inf 1 2 3 4 5", "-inf 1 2 3 4 5", "inf -inf 1 2 3 4", "nan 1 2 3 4 5", "-inf " * 6,
    "inf " * 6, "0 " * 6, "-0 " * 6, "88 89 -100 0 3 2", "1e4 -1e4 1 2 3 4", "-5 0 5 1e-8 2 -1e-8",
)  # fmt: skip
LABELS = torch.tensor([0, 1, 2])


def _rows(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(0), x.roll(2)])


def _sampled(x: Tensor, **options: object) -> Tensor:
    if len(options) == 2:
        image = torch.arange(12.0, dtype=x.dtype).view(1, 1, 3, 4)
        return F.grid_sample(image, x.view(1, 1, 3, 2), **options)  # type: ignore[arg-type]
    image = torch.arange(24.0, dtype=x.dtype).view(1, 1, 2, 3, 4)
    return F.grid_sample(image, x.view(1, 1, 1, 2, 3), **options)  # type: ignore[arg-type]


OF_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "logsumexp": lambda x: x.logsumexp(0),
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "var": torch.var,
    "std": lambda x: x.std(0, correction=0),
    **{
        f"norm {p}": lambda x, p=p: torch.linalg.vector_norm(x, p)
        for p in (0, 1, 2, 3, -torch.inf)
    },
    "trace": lambda x: torch.diag(x).trace(),
    "renorm": lambda x: _rows(x).renorm(2, 0, 1.5),
    "renorm of columns": lambda x: _rows(x).renorm(1, 1, 0.5),
    "weight_norm": lambda x: torch._weight_norm(_rows(x), torch.ones(3, 1, dtype=x.dtype), 0),
    **{
        f"multi_margin_loss {p} {reduction}": lambda x, p=p, r=reduction: F.multi_margin_loss(
            _rows(x), LABELS, p, 1.3, torch.arange(1.0, 7).to(x.dtype), reduction=r
        )
        for p, reduction in product((1, 2), ("none", "mean", "sum"))
    },
    **{
        f"cdist {p}": lambda x, p=p: torch.cdist(_rows(x), _rows(x).flip(1), p)
        for p in (0.0, 1.0, 2.0, 3.0)
    },
    **{f"pdist {p}": lambda x, p=p: F.pdist(_rows(x), p) for p in (0.0, 1.0, 2.0, torch.inf)},
    "pdist 1 backward": lambda x: _gradient(lambda v: F.pdist(_rows(v), 1.0), x),
    "pdist inf backward": lambda x: _gradient(lambda v: F.pdist(_rows(v), torch.inf), x),
    "cross_entropy": lambda x: F.cross_entropy(_rows(x), LABELS),
    "grid_sample": lambda x: _sampled(x, align_corners=False, padding_mode="zeros"),
    "grid_sample border": lambda x: _sampled(x, align_corners=True, padding_mode="border"),
    "grid_sample of a volume": lambda x: _sampled(x, align_corners=False),
    "floor division": lambda x: torch.floor_divide(x, x.flip(0)),
    "native_dropout": lambda x: (torch.manual_seed(0), aten.native_dropout(x, 0.5, True)[0])[1],
}  # fmt: skip


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_of_all_kinds_of_numbers(name: str, dtype: torch.dtype) -> None:
    """Six terms and some ten operations: 2⁻¹⁸ of the greatest in float32, 2⁻⁴⁷ in float64."""
    bound = 2.0**-18 if dtype == torch.float32 else 2.0**-47
    for row in ROWS:
        x = torch.tensor([float(v) for v in row.split()], dtype=torch.float64).to(dtype)
        expected = OF_ROWS[name](x)
        with random_rounding("nearest"):
            found = OF_ROWS[name](x)
        size = float(expected.abs().nan_to_num(0, 0, 0).max())
        torch.testing.assert_close(
            found,
            expected,
            rtol=bound,
            atol=bound * size,
            equal_nan=True,
            msg=lambda m, r=row: r + m,
        )


def test_the_backward_pass_of_soft_margin_loss_keeps_its_small_gradients() -> None:
    """z / (1 + z), where 1 / (1 + 1/z) − 1 would lose the last bits: 0.35 % at 14."""
    x = torch.full((1,), 14.0, requires_grad=True)
    with random_rounding("nearest"):
        F.soft_margin_loss(x, torch.ones(1)).backward()
    exact = -torch.tensor(-14.0, dtype=torch.float64).sigmoid()
    assert abs(x.grad.double() / exact - 1) < 2**-22
