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


def _matrices() -> list[Case]:
    return [
        Case("mm", lambda x, y: x @ y, ((7, 30), (30, 9))),
        Case("mm tall", lambda x, y: x @ y, ((70, 30), (30, 3))),
        Case("bmm", torch.bmm, ((3, 4, 5), (3, 5, 6))),
        Case("matmul broadcast", torch.matmul, ((2, 1, 4, 5), (3, 5, 6))),
        Case("mv", torch.mv, ((4, 5), (5,))),
        Case("dot", torch.dot, ((50,), (50,))),
        Case("outer", torch.outer, ((4,), (5,))),
        Case(
            "addmm",
            lambda c, x, y: torch.addmm(c, x, y, beta=0.3, alpha=1.7),
            ((6,), (4, 5), (5, 6)),
        ),
        Case("baddbmm", torch.baddbmm, ((2, 4, 6), (2, 4, 5), (2, 5, 6))),
        Case("addbmm", torch.addbmm, ((4, 6), (2, 4, 5), (2, 5, 6))),
        Case("addmv", torch.addmv, ((4,), (4, 5), (5,))),
        Case("addr", torch.addr, ((4, 5), (4,), (5,))),
        Case("linear", F.linear, ((2, 3, 5), (4, 5), (4,))),
        Case("bilinear", F.bilinear, ((3, 4), (3, 5), (2, 4, 5), (2,))),
        Case(
            "einsum",
            lambda x, y: torch.einsum("bij,bkj->bik", x, y),
            ((2, 3, 4), (2, 5, 4)),
        ),
        Case(
            "attention",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            ((2, 2, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
        ),
        Case(
            "attention with a mask",
            lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, attn_mask=torch.ones(5, 5).tril(1) > 0
            ),
            ((2, 2, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
        ),
    ]


def _activations() -> list[Case]:
    functions = {
        "gelu": F.gelu,
        "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "elu": lambda x: F.elu(x, 0.7),
        "celu": lambda x: F.celu(x, 0.7),
        "selu": F.selu,
        "softplus": lambda x: F.softplus(x * 20, 1.5),
        "softplus plain": F.softplus,
        "mish": F.mish,
        "hardswish": lambda x: F.hardswish(x * 3),
        "hardsigmoid": lambda x: F.hardsigmoid(x * 3),
        "relu6": lambda x: F.relu6(x * 5) * 1.1,
        "hardtanh": lambda x: F.hardtanh(x) * 1.1,
        "logsigmoid": F.logsigmoid,
        "softsign": F.softsign,
        "tanhshrink": F.tanhshrink,
        "glu": lambda x: F.glu(x, 1),
        "softmax": lambda x: F.softmax(x, 1),
        "softmax over the first axis": lambda x: F.softmax(x, 0),
        "log_softmax": lambda x: F.log_softmax(x, 1),
        "softmin": lambda x: F.softmin(x, 1),
        "normalize": lambda x: F.normalize(x, dim=1),
        "normalize by the sum": lambda x: F.normalize(x, p=1, dim=1),
    }
    cases = [Case(name, f, ((7, 8),)) for name, f in functions.items()]
    return [*cases, Case("prelu", F.prelu, ((3, 4, 5), (4,)))]


def _functions() -> list[Case]:
    cases = [
        Case(name, getattr(torch, name), ((40,),), positive=True)
        for name in (
            "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh "
            "atanh erf erfc"
        ).split()
    ]
    return [
        *cases,
        Case("acosh", lambda x: torch.acosh(x + 1.5), ((40,),), positive=True),
        Case("atan2", torch.atan2, ((40,), (40,))),
        Case("hypot", torch.hypot, ((40,), (40,))),
        Case("logaddexp", torch.logaddexp, ((40,), (40,))),
        Case("xlogy", torch.xlogy, ((40,), (40,)), positive=True),
        Case("remainder", lambda x, y: torch.remainder(x, y) * 1.1, ((40,), (40,))),
        Case("fmod", lambda x, y: torch.fmod(x, y) * 1.1, ((40,), (40,))),
        Case(
            "floor division",
            lambda x, y: (
                torch.div(x, y, rounding_mode="floor") * x
                + torch.div(x, y, rounding_mode="trunc") * y
            ),
            ((40,), (40,)),
        ),
    ]


def _normalizations() -> list[Case]:
    return [
        Case(
            "layer_norm",
            lambda x, w, b: F.layer_norm(x, (4, 5), w, b),
            ((6, 4, 5), (4, 5), (4, 5)),
        ),
        Case("layer_norm without weights", lambda x: F.layer_norm(x, (20,)), ((6, 20),)),
        Case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), ((3, 4, 5, 2), (4,), (4,))),
        Case("group_norm without weights", lambda x: F.group_norm(x, 2), ((3, 4, 5),)),
        Case(
            "batch_norm",
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
            ((3, 4, 5, 2), (4,), (4,)),
        ),
        Case(
            "batch_norm of one batch",
            lambda x, w, b: _batch_norm_with_statistics(x, w, b),
            ((3, 4, 5, 2), (4,), (4,)),
        ),
        Case(
            "batch_norm at inference",
            lambda x, w, b: F.batch_norm(
                x, torch.arange(4.0).to(x.dtype), torch.arange(1.0, 5).to(x.dtype), w, b
            ),
            ((3, 4, 5), (4,), (4,)),
        ),
        Case("instance_norm", lambda x: F.instance_norm(x), ((3, 4, 50),)),
        Case("rms_norm", lambda x, w: F.rms_norm(x, (5,), w), ((3, 4, 5), (5,))),
        Case("local_response_norm", lambda x: F.local_response_norm(x, 3), ((2, 6, 5),)),
    ]


def _batch_norm_with_statistics(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, variance = torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
    out = F.batch_norm(x, mean, variance, w, b, training=True, momentum=0.3)
    return out + (mean + variance).sum()


def _losses() -> list[Case]:
    labels = torch.tensor([0, 2, 4, 1, 2, -100])
    weight = torch.tensor([1.0, 0.5, 2.0, 1.5, 1.0])
    two = ((6, 5), (6, 5))
    cases = []
    for reduction in ("none", "mean", "sum"):
        cases += [
            Case(
                f"mse_loss {reduction}",
                lambda x, y, r=reduction: F.mse_loss(x, y, reduction=r),
                two,
            ),
            Case(
                f"l1_loss {reduction}", lambda x, y, r=reduction: F.l1_loss(x, y, reduction=r), two
            ),
            Case(
                f"smooth_l1_loss {reduction}",
                lambda x, y, r=reduction: F.smooth_l1_loss(x, y, reduction=r, beta=0.7),
                two,
            ),
            Case(
                f"huber_loss {reduction}",
                lambda x, y, r=reduction: F.huber_loss(x, y, reduction=r, delta=0.7),
                two,
            ),
            Case(
                f"binary_cross_entropy {reduction}",
                lambda x, y, w, r=reduction: F.binary_cross_entropy(
                    x, y.detach(), w.detach(), reduction=r
                ),
                (*two, (5,)),
                positive=True,
            ),
            Case(
                f"cross_entropy {reduction}",
                lambda x, r=reduction: F.cross_entropy(
                    x, labels, weight.to(x.dtype), reduction=r, label_smoothing=0.1
                ),
                ((6, 5),),
            ),
            Case(
                f"cross_entropy of images {reduction}",
                lambda x, r=reduction: F.cross_entropy(
                    x, torch.arange(24).view(2, 3, 4) % 5, reduction=r
                ),
                ((2, 5, 3, 4),),
            ),
        ]
    return [
        *cases,
        Case(
            "bce with logits", lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()), two
        ),
        Case(
            "kl_div", lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="sum"), two
        ),
        Case("cosine_similarity", lambda x, y: F.cosine_similarity(x, y), two),
        Case("pairwise_distance", lambda x, y: F.pairwise_distance(x, y), two),
        Case("soft_margin_loss", lambda x, y: F.soft_margin_loss(x, y.sign().detach()), two),
        Case("gaussian_nll_loss", lambda x, y: F.gaussian_nll_loss(x, y, y.exp().detach()), two),
        Case("poisson_nll_loss", lambda x, y: F.poisson_nll_loss(x, y.exp()), two),
    ]


def _reductions() -> list[Case]:
    return [
        Case("var", lambda x: x.var(1) + x.var(1, unbiased=False), ((4, 30),)),
        Case("std", lambda x: x.std((0, 1)) * x.std(1, correction=0).sum(), ((4, 6, 5),)),
        Case("var_mean", lambda x: sum(torch.var_mean(x, 1, correction=2)), ((4, 30),)),
        Case("norms", lambda x: sum(x.norm(p, 1) for p in (1, 2, 3, 0.5)), ((4, 30),)),
        Case("vector_norm", torch.linalg.vector_norm, ((4, 30),)),
        Case("greatest", lambda x: x.norm(float("inf")) * 1.1, ((4, 30),)),
        Case("cumsum", lambda x: x.cumsum(1), ((4, 30, 2),)),
        Case("cumprod", lambda x: x.cumprod(0), ((6, 3),), True),
        Case("prod", lambda x: x.prod(1) * x.prod(), ((3, 5),), True),
        Case("logsumexp", lambda x: x.logsumexp((0, 2)), ((3, 4, 5),)),
        Case("trace", lambda x: x.trace(), ((5, 5),)),
        Case("amax", lambda x: x.amax(1) * 1.1, ((5, 5),)),
        Case("dist", lambda x, y: torch.dist(x, y), ((5,), (5,))),
        Case("cross", lambda x, y: torch.linalg.cross(x, y), ((5, 3), (5, 3))),
        Case("linspace", lambda x: x * torch.linspace(0.1, 0.9, 7, dtype=x.dtype), ((7,),)),
    ]


def _more_pooling() -> list[Case]:
    cases = []
    for dims in (1, 2, 3):
        size, out = (9, 8, 7)[:dims], (4, 3, 5)[:dims]
        average = getattr(F, f"adaptive_avg_pool{dims}d")
        greatest = getattr(F, f"adaptive_max_pool{dims}d")
        shapes = ((2, 3, *size),)
        cases += [
            Case(f"adaptive_avg_pool{dims}d", lambda x, f=average, o=out: f(x, o), shapes),
            Case(f"adaptive_avg_pool{dims}d to one", lambda x, f=average: f(x, 1), shapes),
            Case(f"adaptive_max_pool{dims}d", lambda x, f=greatest, o=out: f(x, o) * 1.1, shapes),
            *(
                Case(
                    f"pad {mode} {dims}D",
                    lambda x, m=mode, d=dims: F.pad(x, (2, 1) * d, mode=m) * 1.1,
                    shapes,
                )
                for mode in ("reflect", "replicate", "constant", "circular")
            ),
        ]
    return [
        *cases,
        Case("lp_pool", lambda x: F.lp_pool2d(x, 2, 3), ((1, 2, 9, 9),), True),
        Case("unfold", lambda x: F.unfold(x, 3) * 1.1, ((1, 2, 5, 5),)),
        Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2) * 1.1, ((1, 8, 3, 3),)),
        Case(
            "bicubic",
            lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic"),
            ((1, 2, 5, 6),),
        ),
        Case(
            "nearest-exact",
            lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact") * 1.1,
            ((1, 2, 5, 6),),
        ),
    ]


def _cells() -> list[Case]:
    def run(kind: type[torch.nn.Module], x: Tensor, *weights: Tensor) -> Tensor:
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        cell = kind(5, 4, batch_first=True).to(x.dtype)
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(cell, parameters, (x,))[0]

    return [
        Case(
            name,
            lambda x, *w, k=kind: run(k, x, *w),
            ((2, 3, 5), (n * 4, 5), (n * 4, 4), (n * 4,), (n * 4,)),
        )
        for name, kind, n in (
            ("lstm", torch.nn.LSTM, 4),
            ("gru", torch.nn.GRU, 3),
            ("rnn", torch.nn.RNN, 1),
        )
    ]


CASES += [
    *_matrices(),
    *_activations(),
    *_functions(),
    *_normalizations(),
    *_losses(),
    *_reductions(),
    *_more_pooling(),
    *_cells(),
]
