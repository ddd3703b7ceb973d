"""Calls of torch operators that have a rule: functions of float tensors, one list for all laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    """A function of tensors of these shapes, drawn from a normal distribution (or in (0, 1))."""

    name: str
    function: Callable[..., Tensor]
    shapes: Shapes
    positive: bool = False

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand if self.positive else torch.randn
        return [
            draw(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in self.shapes
        ]


def _convolutions() -> list[Case]:
    cases = []
    settings: list[dict] = [
        {},
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"stride": 3, "padding": 2},
        {"dilation": 2, "padding": 3},
        {"stride": 2, "dilation": 3, "padding": 1},
        {"groups": 2, "padding": 1},
        {"groups": 4},
    ]
    for dims, name in ((1, "conv1d"), (2, "conv2d"), (3, "conv3d")):
        function = getattr(F, name)
        for options in settings if dims < 3 else settings[:5]:
            groups = options.get("groups", 1)
            shapes = ((2, 4, *(9, 8, 10)[:dims]), (4, 4 // groups, *(3,) * dims), (4,))
            cases.append(
                Case(
                    f"{name} {options}",
                    lambda x, w, b, f=function, o=options: f(x, w, b, **o),
                    shapes,
                )
            )
        transposed = getattr(F, name.replace("conv", "conv_transpose"))
        for options in (
            {},
            {"stride": 2, "padding": 1, "output_padding": 1},
            {"stride": 2, "groups": 2},
            {"stride": 3, "dilation": 2, "padding": 1},
        ):
            if dims == 3 and "groups" in options:
                continue
            groups = options.get("groups", 1)
            shapes = ((2, 4, *(4, 5, 3)[:dims]), (4, 6 // groups, *(3,) * dims), (6,))
            cases.append(
                Case(
                    f"{name} transposed {options}",
                    lambda x, w, b, f=transposed, o=options: f(x, w, b, **o),
                    shapes,
                )
            )
    return cases


def _resampling() -> list[Case]:
    cases = []
    for padding in ("zeros", "border", "reflection"):
        for align in (True, False):
            for dims in (2, 3):
                cases.append(
                    Case(
                        f"grid_sample {dims}D {padding} align_corners={align}",
                        lambda x, g, p=padding, a=align: F.grid_sample(
                            x, g, padding_mode=p, align_corners=a
                        ),
                        ((2, 3, *(5, 6, 4)[:dims]), (2, *(4, 3, 5)[:dims], dims)),
                    )
                )
    for dims, mode in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        for options in (
            {"scale_factor": 2, "align_corners": True},
            {"scale_factor": 2, "align_corners": False},
            {"size": (7, 5, 9)[:dims], "align_corners": False},
            {"size": (3, 6, 2)[:dims], "align_corners": True},
        ):
            cases.append(
                Case(
                    f"interpolate {mode} {options}",
                    lambda x, m=mode, o=options: F.interpolate(x, mode=m, **o),
                    ((2, 3, *(4, 6, 5)[:dims]),),
                )
            )
        cases.append(
            Case(
                f"interpolate nearest {dims}D",
                lambda x, d=dims: F.interpolate(x, size=(7, 9, 11)[:d], mode="nearest"),
                ((2, 3, *(4, 6, 5)[:dims]),),
            )
        )
    return cases


def _pooling() -> list[Case]:
    cases = []
    for dims in (1, 2, 3):
        size = (9, 8, 7)[:dims]
        average, greatest = getattr(F, f"avg_pool{dims}d"), getattr(F, f"max_pool{dims}d")
        for options in (
            {"kernel_size": 2},
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
            {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        ):
            cases.append(
                Case(
                    f"avg_pool{dims}d {options}",
                    lambda x, f=average, o=options: f(x, **o),
                    ((2, 3, *size),),
                )
            )
        cases.append(
            Case(
                f"max_pool{dims}d",
                lambda x, f=greatest: f(x, 3, stride=2, padding=1),
                ((2, 3, *size),),
            )
        )
    return cases


def _index(*values: int) -> Tensor:
    return torch.tensor(values)


CASES = [
    *_convolutions(),
    *_resampling(),
    *_pooling(),
    Case("sum", lambda x: x.sum(), ((700,),)),
    Case("sum over axes", lambda x: x.sum((0, 2)), ((3, 4, 5),)),
    Case("mean", lambda x: x.mean(), ((20, 30),)),
    Case("mean over an axis", lambda x: x.mean(1, keepdim=True), ((6, 300, 2),)),
    Case("leaky_relu", lambda x: F.leaky_relu(x, 0.2), ((40,),)),
    Case("relu", F.relu, ((40,),)),
    Case("square", lambda x: x.square(), ((40,),)),
    Case("powers", lambda x: sum(x**e for e in (0, 1, 2, 3, 0.5, -0.5, -1, -2)), ((40,),), True),
    Case("pow", lambda x, y: x**y + x**1.7 + 0.3**y, ((40,), (40,)), True),
    Case("sqrt", lambda x: x.sqrt() + x.rsqrt() + x.reciprocal(), ((40,),), True),
    Case("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.3), ((5, 6), (6,), (5, 1))),
    Case("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z, value=0.3), ((9,), (9,), (9,)), True),
    Case("lerp", lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, 0.7), ((9,), (9,))),
    Case("lerp by tensors", torch.lerp, ((9,), (9,), (9,))),
    Case(
        "index_add",
        lambda x, y: x.index_add(1, _index(0, 2, 2, 0), y, alpha=1.5),
        ((3, 4, 2), (3, 4, 2)),
    ),
    Case(
        "scatter_add",
        lambda x, y: x.scatter_add(0, torch.arange(40).view(20, 2) % 3, y),
        ((4, 5), (20, 2)),
    ),
    Case(
        "index_put",
        lambda x, y: x.index_put((_index(1, 1, 0), _index(0, 0, 2)), y, accumulate=True),
        ((2, 3, 4), (3, 4)),
    ),
    Case("indexing", lambda x: x[_index(1, 1, 0)] * x[:, _index(2)].sum(), ((2, 3, 4),)),
    Case("index_select", lambda x: x.index_select(1, _index(1, 1, 0, 1)), ((2, 3, 4),)),
    Case("gather", lambda x: x.gather(1, torch.tensor([[1, 1, 0], [2, 0, 2]])), ((2, 3),)),
    Case("embedding", lambda w: F.embedding(torch.tensor([[1, 1, 3], [0, 1, 3]]), w), ((4, 5),)),
    Case(
        "flip, cat, slices",
        lambda x: torch.cat([x.flip(0), x])[1:4] * x.diff(dim=1).sum(),
        ((4, 3),),
    ),
]
