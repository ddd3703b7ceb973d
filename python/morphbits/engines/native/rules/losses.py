"""Losses that torch computes in one operator (Loss.cpp, LossNLL.cpp, PointwiseOpsKernel.cpp)."""

from __future__ import annotations

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import refuse_as_torch, rule

T = torch.Tensor
_NONE, _MEAN, _SUM = 0, 1, 2
_LEAST = float(torch.tensor(1e-12))  # a float32 constant in torch, whatever the type


def _reduced(op: Operator, loss: T, reduction: int) -> T:
    return loss if reduction == _NONE else op.mean(loss) if reduction == _MEAN else op.sum(loss)


def _spread(op: Operator, g: T, x: T, reduction: int) -> T:
    """The gradient of each element's loss."""
    return op.div(g, x.numel()) if reduction == _MEAN else g


@rule("mse_loss", "(a − b) squared, then sum or mean")
def _mse(op: Operator, x: T, y: T, reduction: int = _MEAN) -> T:
    op.check(x, y)
    d = op.sub(x, y)
    return _reduced(op, op.mul(d, d), reduction)


@rule("mse_loss_backward", "(2 / n)·(a − b)·gradient")
def _mse_backward(op: Operator, g: T, x: T, y: T, reduction: int) -> T:
    op.check(g, x, y)
    return op.mul(op.mul(2 / max(x.numel(), 1) if reduction == _MEAN else 2.0, op.sub(x, y)), g)


@rule("smooth_l1_loss", "½·z·z / beta where |z| < beta, else |z| − ½·beta; then sum or mean")
def _smooth_l1(op: Operator, x: T, y: T, reduction: int = _MEAN, beta: float = 1.0) -> T:
    op.check(x, y)
    z = op.sub(x, y).abs()
    if beta == 0:
        return _reduced(op, z, reduction)
    near = op.div(op.mul(op.mul(0.5, z), z), beta)
    return _reduced(op, torch.where(z < beta, near, op.sub(z, 0.5 * beta)), reduction)


@rule(
    "smooth_l1_loss_backward", "(1 / n)·(a − b)·gradient / beta where near, else ±(1 / n)·gradient"
)
def _smooth_l1_backward(op: Operator, g: T, x: T, y: T, reduction: int, beta: float) -> T:
    op.check(g, x, y)
    norm = 1 / max(x.numel(), 1) if reduction == _MEAN else 1.0
    z = op.sub(x, y)
    far = op.mul(_signed(norm, z), g)
    if beta == 0:
        return torch.where(z == 0, torch.zeros_like(far), far)
    near = op.div(op.mul(op.mul(norm, z), g), beta)
    return torch.where(z.abs() >= beta, far, near)


def _signed(norm: float, z: T) -> T:
    """±norm, with the sign of z."""
    return torch.full((), norm, dtype=z.dtype).copysign(z)


@rule("huber_loss", "½·z·z where |z| ≤ delta, else delta·(|z| − ½·delta); then sum or mean")
def _huber(op: Operator, x: T, y: T, reduction: int = _MEAN, delta: float = 1.0) -> T:
    op.check(x, y)
    z = op.sub(x, y).abs()
    near = op.mul(op.mul(0.5, z), z)
    return _reduced(
        op, torch.where(z <= delta, near, op.mul(delta, op.sub(z, 0.5 * delta))), reduction
    )


@rule("huber_loss_backward", "(1 / n)·(a − b)·gradient where near, else ±(1 / n)·gradient·delta")
def _huber_backward(op: Operator, g: T, x: T, y: T, reduction: int, delta: float) -> T:
    op.check(g, x, y)
    norm = 1 / max(x.numel(), 1) if reduction == _MEAN else 1.0
    z = op.sub(x, y)
    far = op.mul(op.mul(_signed(norm, z), g), delta)
    near = op.mul(op.mul(norm, z), g)
    return torch.where(z.abs() >= delta, far, near)


@rule(
    "binary_cross_entropy",
    "(y − 1)·max(log1p(−x), −100) − y·max(log(x), −100), times the weight; then sum or mean",
)
def _bce(op: Operator, x: T, y: T, weight: T | None = None, reduction: int = _MEAN) -> T:
    op.check(x, y)
    right = op.mul(y, op.function("log", x).clamp(min=-100))
    left = op.mul(op.sub(y, 1), op.function("log1p", -x).clamp(min=-100))
    loss = op.sub(left, right)
    return _reduced(op, loss if weight is None else op.mul(loss, weight), reduction)


@rule("binary_cross_entropy_backward", "gradient·(x − y) / max((1 − x)·x, 10⁻¹²), weight, 1 / n")
def _bce_backward(
    op: Operator, g: T, x: T, y: T, weight: T | None = None, reduction: int = _MEAN
) -> T:
    op.check(g, x, y)
    out = op.div(op.mul(g, op.sub(x, y)), op.mul(op.sub(1, x), x).clamp(min=_LEAST))
    out = out if weight is None else op.mul(out, weight)
    return _spread(op, out, x, reduction)


def _classes(x: T, target: T, ignore: int) -> tuple[T, T, T]:
    """(N…, C) scores, flat targets with ignored ones at 0, and which are kept."""
    scores = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() > 1 else x[None]
    flat = target.reshape(-1)
    kept = flat != ignore
    flat = torch.where(kept, flat, torch.zeros((), dtype=flat.dtype))
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= scores.shape[1]):
        raise IndexError("a target of nll_loss is out of range")
    return scores, flat, kept


@rule("nll_loss_forward nll_loss2d_forward", "weight·(−score); the sums as `sum`, one division")
def _nll(
    op: Operator, x: T, target: T, weight: T | None, reduction: int, ignore: int
) -> tuple[T, T]:
    op.check(x)
    scores, flat, kept = _classes(x, target, ignore)
    zero = torch.zeros((), dtype=x.dtype)
    each = -scores.gather(1, flat[:, None])[:, 0]
    if weight is None:
        weights = torch.where(kept, torch.ones((), dtype=x.dtype), zero)
        total = weights.sum()  # counts
    else:
        weights = torch.where(kept, weight[flat], zero)
        each = op.mul(weights, each)
        total = op.sum(weights)
    each = torch.where(kept, each, zero)
    if reduction == _NONE:
        return each.view(target.shape), zero.clone()
    out = op.sum(each)
    return (op.div(out, total) if reduction == _MEAN else out), total


@rule(
    "nll_loss_backward nll_loss2d_backward",
    "mean: weight·−(gradient / total weight), in images (−weight / total weight)·gradient; else "
    "−weight·gradient",
)
def _nll_backward(
    op: Operator,
    g: T,
    x: T,
    target: T,
    weight: T | None,
    reduction: int,
    ignore: int,
    total: T,
) -> T:
    op.check(g, x)
    scores, flat, kept = _classes(x, target, ignore)
    g = g.expand(flat.shape) if g.dim() == 0 else g.reshape(-1)
    weights = None if weight is None else weight[flat]
    if reduction == _MEAN and op.name == "nll_loss2d_backward":
        share = op.mul(op.div(-1.0 if weights is None else -weights, total), g)
    else:
        share = -(op.div(g, total) if reduction == _MEAN else g)
        share = share if weights is None else op.mul(weights, share)
    share = torch.where(kept, share, torch.zeros((), dtype=x.dtype))
    out = torch.zeros_like(scores).scatter(1, flat[:, None], share[:, None])
    if x.dim() == 1:
        return out[0]
    return out.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1).contiguous()


@rule("soft_margin_loss_backward", "z = exp(−y·x); y·z·(−1 / n) / (z + 1)·gradient")
def _soft_margin_backward(op: Operator, g: T, x: T, y: T, reduction: int) -> T:
    op.check(g, x, y)
    z = op.function("exp", op.mul(-y, x))
    share = op.mul(op.mul(y, z), -1 / max(x.numel(), 1) if reduction == _MEAN else -1.0)
    return op.mul(op.div(share, op.add(z, 1)), g)


@rule(
    "multi_margin_loss",
    "margin − score of the class + score where it is positive (p = 2: squared), times the weight; "
    "a chain over the classes, divided by their number; sum or mean in float64",
)
def _multi_margin(
    op: Operator,
    x: T,
    target: T,
    p: float = 1,
    margin: float = 1,
    weight: T | None = None,
    reduction: int = _MEAN,
) -> T:
    op.check(x)
    refuse_as_torch(op.func, (x, target, p, margin, weight, reduction), {})
    rows, classes = torch.atleast_2d(x), target.reshape(-1, 1)
    rest = op.add(op.sub(margin, rows.gather(1, classes)), rows)
    share = rest if p == 1 else op.mul(rest, rest)
    if weight is not None:
        share = op.mul(share, weight[classes])
    others = torch.arange(rows.shape[1]) != classes
    share = torch.where((rest > 0) & others, share, torch.zeros((), dtype=x.dtype))
    each = op.div(op.chain("add", share.t().contiguous()), rows.shape[1])
    return op.to(_reduced(op, each.double(), reduction), x.dtype).view(
        target.shape if reduction == _NONE else ()
    )


@rule(
    "multi_margin_loss_backward",
    "1 / n where the margin is not kept (p = 2: times twice the rest), times the weight; the "
    "class: minus a chain over the others; then the gradient",
)
def _multi_margin_backward(
    op: Operator,
    g: T,
    x: T,
    target: T,
    p: float,
    margin: float,
    weight: T | None = None,
    reduction: int = _MEAN,
) -> T:
    op.check(g, x)
    rows, classes = torch.atleast_2d(x), target.reshape(-1, 1)
    n = rows.shape[1] * (rows.shape[0] if reduction == _MEAN else 1)
    rest = op.add(op.sub(margin, rows.gather(1, classes)), rows)
    share = torch.full_like(rows, 1 / n) if p == 1 else op.mul(2 / n, rest)
    if weight is not None:
        share = op.mul(share, weight[classes])
    others = torch.arange(rows.shape[1]) != classes
    share = torch.where((rest > 0) & others, share, torch.zeros((), dtype=x.dtype))
    of_class = op.chain("add", -share.t().contiguous())[:, None]
    out = share.scatter(1, classes, of_class)
    return op.mul(out, g if g.dim() == 0 else g.reshape(-1, 1)).view(x.shape)


def _label_pairs(op: Operator, x: T, target: T) -> tuple[T, T, T, T]:
    """(N, labels, classes): 1 − score of the label + score of the class, and where it counts;
    the labels (N, classes), those after the first −1 as 0; which classes are labels."""
    rows, labels = torch.atleast_2d(x), torch.atleast_2d(target)
    kept = (labels == -1).cumsum(1) == 0
    labels = torch.where(kept, labels, torch.zeros((), dtype=labels.dtype))
    chosen = torch.zeros_like(labels).scatter_add(1, labels, kept.to(labels.dtype)) > 0
    rest = op.add(op.sub(1, rows.gather(1, labels))[:, :, None], rows[:, None])
    return rest, (rest > 0) & kept[:, :, None] & ~chosen[:, None], labels, chosen


@rule(
    "multilabel_margin_loss_forward",
    "1 − score of the label + score of the class where it is positive; sums as `sum`, divided by "
    "the number of classes, for the mean by the number of rows",
)
def _multilabel_margin(op: Operator, x: T, target: T, reduction: int) -> tuple[T, T]:
    op.check(x)
    rest, active, _, chosen = _label_pairs(op, x, target)
    rest = torch.where(active, rest, torch.zeros((), dtype=x.dtype))
    rows, _, classes = rest.shape
    out = op.div(op.sum(rest, [1, 2] if reduction == _NONE else None), classes)
    out = op.div(out, rows) if reduction == _MEAN else out
    if reduction == _NONE and x.dim() < 2:
        out = out[0]
    return out, chosen.to(x.dtype).view(target.shape)


@rule(
    "multilabel_margin_loss_backward",
    "±(1 / n) added for each pair of classes whose margin is not kept, then the gradient",
)
def _multilabel_margin_backward(
    op: Operator, g: T, x: T, target: T, reduction: int, is_target: T
) -> T:
    op.check(g, x)
    rest, active, labels, _ = _label_pairs(op, x, target)
    rows, _, classes = rest.shape
    n = classes * (rows if reduction == _MEAN else 1)
    share = torch.where(active, torch.full((), 1 / n, dtype=x.dtype), torch.zeros_like(rest))
    others = torch.arange(classes).expand(rest.shape)
    index = torch.stack([labels[:, :, None].expand(rest.shape), others], -1)
    source = torch.stack([-share, share], -1)
    out = op.scatter_add(torch.zeros_like(rest[:, 0]), index.flatten(1), source.flatten(1))
    return op.mul(out, g if g.dim() == 0 else g.reshape(-1, 1)).view(x.shape)
