"""Steps of optimizers: operators on lists of tensors, and the fused ones.

A `_foreach_*` operator is the operator of each tensor of its list, in the list's order, as torch's
own CPU kernels do it. A fused step is the algorithm of the same optimizer without fusion
(torch/optim/adam.py, sgd.py, adagrad.py), operation by operation; a gradient scaler's scale is
divided out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from morphbits.engines.native.kernels.plans import unperturbed
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.elementwise import lerp
from morphbits.engines.native.rules.registry import RULES, refused, rule

aten = torch.ops.aten


# Operators in place on lists of tensors and of numbers, which only enter their arithmetic.
CHANGING = frozenset(
    getattr(aten, f"_foreach_{name}_").ScalarList
    for name in "add sub mul div addcmul addcdiv".split()
)
_OF_NUMBERS = {"maximum": "clamp_min", "minimum": "clamp_max"}


def _foreach(base: str) -> Any:
    """A handler that applies the operator `base` to each tensor of a list."""

    def handler(op: Operator, *args: Any, **kwargs: Any) -> Any:
        asked, in_place = args, op.name.endswith("_")
        if op.func._overloadname == "Tensor" and base in ("addcmul", "addcdiv"):
            args = (*args[:-1], args[-1].tolist())  # a value for each, in one tensor
        elif op.func._overloadname == "ScalarList" and isinstance(args[-1], torch.Tensor):
            args = (*args[:-1], [x.to(y.dtype) for x, y in zip(args[-1], args[0], strict=True)])
        lists = next(a for a in args if isinstance(a, (list, tuple)))
        given = (*args, *kwargs.values())
        if any(isinstance(a, (list, tuple)) and len(a) != len(lists) for a in given):
            refused(op.func, *asked, **kwargs)
        results = []
        for i in range(len(lists)):
            mine = [a[i] if _per_tensor(a, len(lists)) else a for a in args]
            options = {k: v[i] if _per_tensor(v, len(lists)) else v for k, v in kwargs.items()}
            if "scalars" in options:
                mine.append(options.pop("scalars"))
            if base in ("addcmul", "addcdiv") and len(mine) == 4:
                options["value"] = mine.pop()
            kind = base if isinstance(mine[-1], torch.Tensor) else _OF_NUMBERS.get(base, base)
            if isinstance(options.get("value"), torch.Tensor):  # torch takes numbers only
                results.append(RULES[base].handler(op.named(base), *mine, **options))
            else:
                results.append(op.redispatch(getattr(aten, kind), *mine, **options))
            if in_place:
                if not torch.can_cast(results[-1].dtype, lists[i].dtype):
                    refused(op.func, *args, **kwargs)
                op.redispatch(aten.copy_, lists[i], results[-1])
        return None if in_place else results

    return handler


def numbers_as_tensor(args: Any) -> Any:
    """The arguments of an operator of CHANGING, with its list of numbers as one tensor: numbers
    that change in each step would make new plans. A factor of 1 rounds nothing and stays one."""
    *lists, numbers = args
    types = {x.dtype for x in tree_leaves(lists) if isinstance(x, torch.Tensor)}
    floats = all(type(x) is float and x != 1 for x in numbers) and len(numbers) == len(lists[0])
    if types not in ({torch.float32}, {torch.float64}) or not floats:
        return args
    return *lists, torch.tensor(numbers, dtype=torch.float64)


def _per_tensor(argument: Any, count: int) -> bool:
    return isinstance(argument, (list, tuple)) and len(argument) == count


for _base in (
    "add sub mul div sqrt addcmul addcdiv lerp pow reciprocal neg abs exp log clamp_min clamp_max "
    "sign floor ceil round trunc tanh sigmoid erf sin cos expm1 log1p log2 log10 maximum minimum "
    "rsqrt acos asin atan cosh erfc lgamma sinh tan"
).split():
    rule(f"_foreach_{_base} _foreach_{_base}_", f"`{_base}` of each tensor", sixteen_bits=True)(
        _foreach(_base)
    )
rule("_foreach_mm", "`mm` of each pair", sixteen_bits=True)(_foreach("mm"))
rule("_foreach_copy", "`copy` of each tensor", sixteen_bits=True)(_foreach("copy"))


@rule("_foreach_copy_", "`copy_` of each tensor", sixteen_bits=True)
def _foreach_copy(op: Operator, to: Any, source: Any, non_blocking: bool = False) -> None:
    if len(to) != len(source):
        refused(op.func, to, source)
    for a, b in zip(to, source, strict=True):
        op.redispatch(aten.copy_, a, b)


@rule("_foreach_zero_", "rounds nothing", sixteen_bits=True)
def _foreach_zero(op: Operator, tensors: Any) -> None:
    for a in tensors:
        a.zero_()


def _norms(base: str) -> Any:
    def handler(
        op: Operator, tensors: Any, ord: float = 2, dtype: Any = None
    ) -> list[torch.Tensor]:
        norm = getattr(aten, base)
        return [op.redispatch(norm, a, ord, None, False, dtype=dtype) for a in tensors]

    return handler


for _name, _base in (("norm", "linalg_vector_norm"), ("powsum", "linalg__powsum")):
    rule(f"_foreach_{_name}", f"`{_base}` of each tensor", sixteen_bits=True)(_norms(_base))


def _overflowed(found_inf: torch.Tensor | None) -> bool:
    """Whether a gradient scaler found that the step is to be left out."""
    return found_inf is not None and bool(found_inf != 0)


def _gradient(
    op: Operator,
    p: torch.Tensor,
    gradient: torch.Tensor,
    grad_scale: torch.Tensor | None,
    maximize: bool,
    weight_decay: float = 0,
) -> torch.Tensor:
    """What a step follows: the gradient divided by its scale (and kept so), its sign, decay."""
    if grad_scale is not None:
        gradient.copy_(op.div(gradient, grad_scale.reshape(()).to(gradient.dtype)))
    g = -gradient if maximize else gradient
    return op.add(g, op.mul(p, weight_decay)) if weight_decay else g


@rule(
    "_fused_adam_ _fused_adamw_",
    "as Adam without fusion: lerp, mul, addcmul, sqrt, div, add, addcdiv; the corrections of the "
    "bias in Python's float64",
)
def _fused_adam(
    op: Operator,
    params: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    averages: Sequence[torch.Tensor],
    squares: Sequence[torch.Tensor],
    greatest: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    *,
    lr: Any,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    if _overflowed(found_inf):
        return
    rate, decoupled = float(lr), op.name == "_fused_adamw_"
    for i, (p, gradient) in enumerate(zip(params, gradients, strict=True)):
        op.check(p, gradient)
        decay = 0 if decoupled else weight_decay
        g = _gradient(op, p, gradient, grad_scale, maximize, decay)
        if weight_decay and decoupled:
            p.copy_(op.mul(p, 1 - rate * weight_decay))
        sizes = partial(_adams_sizes, rate=rate, beta1=beta1, beta2=beta2, dtype=p.dtype)
        root, size = unperturbed(sizes, steps[i])
        greatest_i = greatest[i] if amsgrad else None
        given = p, g, averages[i], squares[i], greatest_i, root, size, beta1, beta2, eps
        changed = [averages[i], squares[i], p, *(greatest[i : i + 1] if amsgrad else [])]
        for to, result in zip(changed, op.formula(_adam, *given), strict=True):
            to.copy_(result)


def _adams_sizes(
    step: torch.Tensor, rate: float, beta1: float, beta2: float, dtype: torch.dtype
) -> torch.Tensor:
    """The root of the squares' correction, and the step's size with that of the averages."""
    number = float(step)
    sizes = (1 - beta2**number) ** 0.5, -rate / (1 - beta1**number)
    return torch.tensor(sizes, dtype=dtype)


def _adam(
    op: Operator, p: Any, g: Any, average: Any, square: Any, greatest: Any, root: Any, size: Any,
    beta1: float, beta2: float, eps: float,
) -> Any:  # fmt: skip
    average = lerp(op, average, g, 1 - beta1)
    square = op.add(op.mul(square, beta2), op.mul(op.mul(1 - beta2, g), g))
    largest = square if greatest is None else torch.maximum(greatest, square)
    denominator = op.add(op.div(op.sqrt(largest), root), eps)
    step = op.div(op.mul(size, average), denominator)
    return average, square, op.add(p, step), *([] if greatest is None else [largest])


@rule(
    "morphbits::keras_adam_",
    "Keras' Adam (training/optimizers.py): sub, mul, add; square, sub, mul, add; mul, sqrt, add, "
    "div, sub",
)
def _keras_adam(
    op: Operator, parameter: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor,
    square: torch.Tensor, size: torch.Tensor, *numbers: float,
) -> None:  # fmt: skip
    given = parameter, gradient, mean, square, size
    op.check(*given)
    results = op.formula(_keras, *given, *numbers)
    for to, result in zip((mean, square, parameter), results, strict=True):
        to.copy_(result)


def _keras(
    op: Operator, p: Any, g: Any, mean: Any, square: Any, size: Any,
    beta1: float, beta2: float, eps: float,
) -> Any:  # fmt: skip
    mean = op.add(mean, op.mul(op.sub(g, mean), 1 - beta1))
    square = op.add(square, op.mul(op.sub(op.mul(g, g), square), 1 - beta2))
    step = op.div(op.mul(mean, size), op.add(op.sqrt(square), eps))
    return mean, square, op.sub(p, step)


@rule("_fused_sgd_", "as SGD without fusion: decay, momentum, step; a factor and an addition each")
def _fused_sgd(
    op: Operator,
    params: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    *,
    weight_decay: float,
    momentum: float,
    lr: Any,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    if _overflowed(found_inf):
        return
    for i, (p, gradient) in enumerate(zip(params, gradients, strict=True)):
        op.check(p, gradient)
        g = _gradient(op, p, gradient, grad_scale, maximize, weight_decay)
        if momentum:
            if is_first_step:
                buffers[i].copy_(g)
            else:
                buffers[i].copy_(op.add(op.mul(buffers[i], momentum), op.mul(g, 1 - dampening)))
            g = op.add(g, op.mul(buffers[i], momentum)) if nesterov else buffers[i]
        p.copy_(op.add(p, op.mul(g, -float(lr))))


@rule("_fused_adagrad_", "as Adagrad without fusion: addcmul, sqrt, add, addcdiv")
def _fused_adagrad(
    op: Operator,
    params: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    totals: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    *,
    lr: Any,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    if _overflowed(found_inf):
        return
    for i, (p, gradient) in enumerate(zip(params, gradients, strict=True)):
        op.check(p, gradient)
        g = _gradient(op, p, gradient, grad_scale, maximize, weight_decay)
        rate = float(lr) / (1 + (float(steps[i]) - 1) * lr_decay)
        totals[i].copy_(op.add(totals[i], op.mul(g, g)))
        denominator = op.add(op.sqrt(totals[i]), eps)
        p.copy_(op.add(p, op.div(op.mul(-rate, g), denominator)))


@rule("_amp_foreach_non_finite_check_and_unscale_", "one operation an element", sixteen_bits=True)
def _unscale(
    op: Operator,
    gradients: Sequence[torch.Tensor],
    found_inf: torch.Tensor,
    inverse: torch.Tensor,
) -> None:
    factor = inverse.reshape(())
    for g in gradients:
        if not bool(g.isfinite().all()):
            found_inf.fill_(1)
        wide = g.to(torch.promote_types(g.dtype, torch.float32))  # exact
        g.copy_(op.to(op.mul(wide, factor.to(wide.dtype)), g.dtype))


@rule("_amp_update_scale_", "one product, where the scale changes")
def _update_scale(
    op: Operator,
    scale: torch.Tensor,
    tracker: torch.Tensor,
    found_inf: torch.Tensor,
    growth: float,
    backoff: float,
    interval: int,
) -> torch.Tensor:
    if bool(found_inf != 0):
        tracker.zero_()
        return scale.copy_(op.mul(scale, backoff))
    if int(tracker) + 1 < interval:
        tracker.add_(1)
        return scale
    tracker.zero_()
    grown = op.mul(scale, growth)
    return scale.copy_(grown) if bool(grown.isfinite()) else scale
