"""Calls of torch operators that have a rule: functions of float tensors, one list for all laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

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
                + torch.floor_divide(x.detach() * 9, y.detach()) * x
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


def _grids() -> list[Case]:
    cases = []
    for (dims, mode), padding, align in product(
        ((2, "nearest"), (2, "bicubic"), (3, "nearest")),
        ("zeros", "border", "reflection"),
        (True, False),
    ):
        cases.append(
            Case(
                f"grid_sample {dims}D {mode} {padding} align_corners={align}",
                lambda x, g, m=mode, p=padding, a=align: F.grid_sample(
                    x, _quarters(g) if m == "nearest" else g, m, p, a
                ),
                ((2, 3, *(5, 6, 4)[:dims]), (2, *(9, 7, 5)[:dims], dims)),
            )
        )
    for dims, align in product((2, 3), (True, False)):
        cases.append(
            Case(
                f"affine_grid {dims}D align_corners={align}",
                lambda t, d=dims, a=align: F.affine_grid(
                    t, [2, 3, *(4, 1, 3)[:d]], align_corners=a
                ),
                ((2, dims, dims + 1),),
            )
        )
    return cases


def _quarters(x: Tensor) -> Tensor:
    """Positions that are exact in 16 bits: a rounded one may be nearest to another voxel."""
    return x + ((x * 4).round() / 4 - x).detach()


def _antialiased() -> list[Case]:
    return [
        Case(
            f"interpolate {mode} antialias align_corners={align} {options}",
            lambda x, m=mode, a=align, o=options: F.interpolate(
                x, mode=m, align_corners=a, antialias=True, **o
            ),
            ((2, 3, 5, 6),),
        )
        for mode, align in (
            ("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False),
            ("lanczos", False),
        )
        for options in ({"size": (3, 9)}, {"scale_factor": 0.6}, {"size": (2, 6)})
    ]  # fmt: skip


def _distances() -> list[Case]:
    pair = ((2, 5, 4), (2, 6, 4))
    return [
        *(Case(f"cdist {p}", lambda x, y, p=p: torch.cdist(x, y, p), pair) for p in NORMS),
        *(Case(f"pdist {p}", lambda x, p=p: F.pdist(x, p), ((6, 4),)) for p in NORMS),
        Case("cdist of many rows", torch.cdist, ((30, 4), (28, 4))),
        Case("cdist broadcast", torch.cdist, ((2, 1, 5, 4), (3, 6, 4))),
        Case("cdist of a matrix and itself", lambda x: torch.cdist(x, x, 3), ((5, 4),)),
    ]


NORMS = (0.5, 1, 2, 3, torch.inf)


def _sequences() -> list[Case]:
    times, labels = _index(8, 5, 0), _index(3, 2, 0)
    targets = torch.tensor([[1, 2, 2], [3, 3, 0], [1, 1, 1]])

    def packed(x: Tensor) -> Tensor:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(x, _index(4, 2, 1))
        pad = torch.nn.utils.rnn.pad_packed_sequence
        return pad(sequence._replace(data=sequence.data * 1.1))[0]

    return [
        *(
            Case(
                f"ctc_loss {reduction}",
                lambda x, r=reduction: F.ctc_loss(
                    x.log_softmax(2), targets[:2], times[:2], labels[:2], reduction=r
                ),
                ((8, 2, 5),),
            )
            for reduction in ("none", "mean", "sum")
        ),
        Case(
            "ctc_loss of joined targets, blank last",
            lambda x: F.ctc_loss(x.log_softmax(2), _index(1, 2, 2, 3, 3), (8, 7), (3, 2), 4),
            ((8, 2, 5),),
        ),
        Case(
            "ctc_loss without an alignment, without time",
            lambda x: F.ctc_loss(
                x.log_softmax(2), targets, _index(3, 8, 0), labels, zero_infinity=True
            ),
            ((8, 3, 5),),
        ),
        Case("packed sequence", packed, ((4, 3, 2),)),
    ]


def _embeddings() -> list[Case]:
    words, starts = _index(1, 2, 4, 4, 3, 9), _index(0, 2, 2, 5)

    def limited(w: Tensor) -> Tensor:
        return F.embedding(words, w * 1.1, max_norm=1.0) + w.renorm(2, 0, 0.5).sum()

    return [
        *(
            Case(
                f"embedding_bag {mode} {options}",
                lambda w, m=mode, o=options: F.embedding_bag(words, w, starts, mode=m, **o) * 1.1,
                ((10, 5),),
            )
            for mode in ("sum", "mean", "max")
            for options in ({}, {"padding_idx": 3})
        ),
        Case(
            "embedding_bag with weights",
            lambda w, s: F.embedding_bag(
                words.view(2, 3), w, mode="sum", per_sample_weights=s, padding_idx=9
            ),
            ((10, 5), (2, 3)),
        ),
        Case("embedding with a greatest norm", limited, ((10, 5),)),
    ]


def _more_losses() -> list[Case]:
    labels, several = _index(0, 2, 4, 1, 2, 3), torch.tensor([[0, 3, -1, 2, 2]] * 6)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.5, 1.0])
    cases = []
    for reduction in ("none", "mean", "sum"):
        cases += [
            Case(
                f"multi_margin_loss {p} {reduction}",
                lambda x, p=p, r=reduction: F.multi_margin_loss(
                    x, labels, p, 0.7, weight.to(x.dtype), reduction=r
                ),
                ((6, 5),),
            )
            for p in (1, 2)
        ]
        cases.append(
            Case(
                f"multilabel_margin_loss {reduction}",
                lambda x, r=reduction: F.multilabel_margin_loss(x, several, reduction=r),
                ((6, 5),),
            )
        )
    return [
        *cases,
        Case(
            "multilabel_margin_loss of a row",
            lambda x: F.multilabel_margin_loss(x, several[0]) * 1.1,
            ((5,),),
        ),
        Case("bce of a target", lambda x, y: F.binary_cross_entropy(x, y), ((9,), (9,)), True),
    ]


def _more_scattering() -> list[Case]:
    where, rows = torch.arange(20).view(10, 2) % 3, _index(0, 2, 0)
    cases = []
    for name in ("sum", "mean", "prod", "amax", "amin"):
        for own in (True, False):
            cases.append(
                Case(
                    f"scatter_reduce {name} include_self={own}",
                    lambda x, y, n=name, o=own: (
                        x.scatter_reduce(0, where, y, n, include_self=o) * 1.1
                    ),
                    ((4, 2), (10, 2)),
                )
            )
            if name != "sum":
                cases.append(
                    Case(
                        f"index_reduce {name} include_self={own}",
                        lambda x, y, n=name, o=own: (
                            x.index_reduce(1, rows, y, n, include_self=o) * 1.1
                        ),
                        ((2, 4), (2, 3)),
                    )
                )
    return [
        *cases,
        Case("put", lambda x, y: x.put(_index(0, -1, 0), y, accumulate=True), ((2, 3), (3,))),
        Case("windows", lambda x: x.unfold(1, 3, 2) * 1.1, ((2, 8),)),
        Case("masked_scatter", lambda x, y: x.masked_scatter(x > 0, y) * 1.1, ((3, 4), (3, 4))),
        Case("overlapping strides", lambda x: x.as_strided((3, 4), (1, 1)) * 1.1, ((9,),)),
        Case(
            "bincount",
            lambda x: x * torch.bincount(_index(0, 1, 1, 0), x.detach())[0].to(x.dtype),
            ((4,),),
        ),
    ]


def _more_functions() -> list[Case]:
    functions = {
        "logit": torch.logit,
        "logit of the middle": lambda x: torch.logit(x, 0.2),
        "sinc": torch.sinc,
        "degrees": lambda x: torch.deg2rad(x) + torch.rad2deg(x),
        "entr": torch.special.entr,
        "digamma": lambda x: torch.digamma(x.detach() * 20) * torch.digamma(-x.detach()) * x,
        "polygamma": lambda x: torch.digamma(x * 3 - 1) + torch.polygamma(0, x + 1),
        "erfinv": lambda x: torch.erfinv(x * 1.9 - 0.95),
        "lgamma": lambda x: torch.lgamma(x * 3) + torch.mvlgamma(x + 3, 2),
        "decimals": lambda x: x * x.detach().round(decimals=2) * (x * 900).round(decimals=-2),
        "fractions": lambda x: x.frac() * 1.1,
        "steps": lambda x: x * torch.arange(0.1, 4.1, 0.1, dtype=x.dtype),
        "logspace": lambda x: x * torch.logspace(-1, 1, 40, dtype=x.dtype),
        "windows of signals": lambda x: (
            x
            * torch.hann_window(40, dtype=x.dtype)
            * torch.hamming_window(40, False, dtype=x.dtype)
            * torch.blackman_window(40, dtype=x.dtype)
        ),
        "median": lambda x: x.median() * x.view(8, 5).nanmedian(1)[0],
        "nansum": lambda x: torch.where(x > 0.5, torch.nan, x).nansum(),
        "logcumsumexp": lambda x: x.view(8, 5).logcumsumexp(1),
        "quantile": lambda x: x.quantile(0.3),
        "softshrink": lambda x: F.softshrink(x, 0.3) * F.hardshrink(x, 0.3),
        "rrelu at inference": lambda x: F.rrelu(x - 0.5),
        "rms of rows": lambda x: x.view(8, 5).square().mean(1).rsqrt(),
    }
    two = {
        "logaddexp2": torch.logaddexp2,
        "xlog1py": torch.special.xlog1py,
        "ldexp": lambda x, y: torch.ldexp(x, y),
        "weight_norm": lambda x, y: torch._weight_norm(x.view(8, 5), y[:8, None], 0),
        "weight_norm of the last axis": lambda x, y: torch._weight_norm(
            x.view(8, 5), y[None, :5], 1
        ),
    }
    return [
        *(Case(name, f, ((40,),), positive=True) for name, f in functions.items()),
        *(Case(name, f, ((40,), (40,)), positive=True) for name, f in two.items()),
        Case("median of an even number", lambda x: x.median(0)[0] * 1.1, ((4, 3),)),
        Case("second derivative", _second, ((9,), (9,))),
        Case("fractional_max_pool2d", lambda x: _fractional(x, 2), ((1, 2, 9, 8),)),
        Case("fractional_max_pool3d", lambda x: _fractional(x, 3), ((1, 2, 9, 8, 7),)),
    ]


def _solvers() -> list[Case]:
    """Matrices far from singular, stored by rows and by columns, alone and in batches."""

    def far(x: Tensor) -> Tensor:
        return x + 3 * torch.eye(x.shape[-1], dtype=x.dtype)

    def definite(x: Tensor) -> Tensor:
        return x @ x.mT + torch.eye(x.shape[-1], dtype=x.dtype)

    lower = torch.linalg.solve_triangular
    one: dict[str, Callable[..., Tensor]] = {
        "inverse": lambda x: torch.linalg.inv(far(x)),
        "inverse by columns": lambda x: torch.linalg.inv(far(x).mT),
        "determinant": lambda x: torch.linalg.det(far(x)),
        "determinant with exchanges": lambda x: torch.linalg.det(far(x).flip(-1)),
        "cholesky": lambda x: torch.linalg.cholesky(definite(x)),
        "cholesky, upper": lambda x: torch.linalg.cholesky(definite(x), upper=True),
    }
    two: dict[str, Callable[..., Tensor]] = {
        "solve": lambda x, y: torch.linalg.solve(far(x).flip(-1), y),
        "solve by columns": lambda x, y: torch.linalg.solve(far(x).mT, y),
        "solve from the right": lambda x, y: torch.linalg.solve(far(x), y.mT, left=False),
        "solve lower": lambda x, y: lower(far(x).tril(), y, upper=False),
        "solve upper from the right": lambda x, y: lower(
            far(x).triu(), y.mT, upper=True, left=False
        ),
        "solve with ones on the diagonal": lambda x, y: lower(
            x.tril(), y, upper=False, unitriangular=True
        ),
    }
    return [
        *(
            Case(f"{n} {s}", f, (s,), positive=True)
            for n, f in one.items()
            for s in ((4, 4), (2, 3, 3))
        ),
        *(Case(n, f, ((3, 4, 4), (3, 4, 2)), positive=True) for n, f in two.items()),
        Case(
            "solve for a vector",
            lambda x, y: torch.linalg.solve(far(x), y),
            ((4, 4), (4,)),
            positive=True,
        ),
    ]


def _second(x: Tensor, y: Tensor) -> Tensor:
    """Of zeros that torch does not store, and of sums of a single number."""
    out = F.softsign(x) * F.huber_loss(x, y) + x.sgn() * x.exp()
    return torch.autograd.grad(out.square().sum(), (x,), create_graph=True)[0]


def _fractional(x: Tensor, dims: int) -> Tensor:
    places = torch.linspace(0.1, 0.9, 2 * dims, dtype=x.dtype).view(1, 2, dims)
    pool = getattr(F, f"fractional_max_pool{dims}d")
    return pool(x, 2, output_ratio=(0.6,) * dims, _random_samples=places) * 1.1


CASES += [
    *_grids(),
    *_antialiased(),
    *_distances(),
    *_sequences(),
    *_embeddings(),
    *_more_losses(),
    *_more_scattering(),
    *_more_functions(),
    *_solvers(),
]
