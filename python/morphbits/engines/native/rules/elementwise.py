"""Operators that compute each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from morphbits.engines.native.kernels import functions
from morphbits.engines.native.kernels.functions import FUNCTIONS
from morphbits.engines.native.kernels.library import Rounding, elementwise
from morphbits.engines.native.rules.arithmetic import HALVES, Hand
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.promotion import common
from morphbits.engines.native.rules.registry import check, refuse_as_torch, refused, rule
from morphbits.errors import UserError

_ONE = "one operation an element"


def write(context: Context, name: str, to: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """`result` in the place of `to`, brought to its type by the mode."""
    return to.copy_(Hand(context, name).to(result, to.dtype))


def _binary(operation: str) -> Callable[..., Any]:
    def handler(
        context: Context, func: Any, a: Any, b: Any, alpha: float = 1, **options: Any
    ) -> Any:
        name = func.overloadpacket.__name__
        dtype = torch.result_type(a, b)
        if not dtype.is_floating_point:  # a quotient of whole numbers
            dtype = torch.get_default_dtype()
        rounding_mode = options.get("rounding_mode")
        in_place = name.endswith("_")
        try:
            shape = np.broadcast_shapes(*(v.shape for v in (a, b) if hasattr(v, "shape")))
        except ValueError:
            refused(func, a, b)
        if in_place and not (shape == a.shape and torch.can_cast(dtype, a.dtype)):
            refused(func, a, b)
        hand = Hand(context, name)
        x, y = (hand.to(v, dtype) for v in (a, b))
        if name == "rsub":
            x, y = y, x
        check(func, x, y)
        if rounding_mode is not None:
            whole = _whole_quotient(hand, x, y, rounding_mode)
            return write(context, name, a, whole) if in_place else whole
        if alpha != 1:
            scale = torch.tensor(alpha, dtype=dtype)
            y = elementwise(context.next_rounding(name, y.numel()), "mul", y, scale)
        rounding = context.next_rounding(name, prod(shape))
        if in_place and a.dtype != dtype:
            wide = elementwise(rounding, operation, x, y)
            return write(context, "to", a, wide)
        return elementwise(rounding, operation, x, y, in_place)

    return handler


def _whole_quotient(h: Hand, a: torch.Tensor, b: torch.Tensor, rounding: str) -> torch.Tensor:
    """a / b as a whole number, toward zero or downward, in the operations of torch."""
    if rounding == "trunc":
        return h.div(a, b).trunc()
    rest = functions.function(Rounding("nearest", threads=h.mode.threads), "fmod", a, b)  # exact
    quotient = h.div(h.sub(a, rest), b)
    other_side = (rest != 0) & ((b < 0) != (rest < 0))
    quotient = torch.where(other_side, h.sub(quotient, 1), quotient)
    below = quotient.floor()
    whole = torch.where(h.sub(quotient, below) > 0.5, h.add(below, 1), below)
    signed = torch.where(a.signbit() == b.signbit(), 0.0, -0.0).to(whole.dtype)
    whole = torch.where(quotient == 0, signed, whole)
    none = b == 0  # where the quotient is infinite or NaN
    return torch.where(none, torch.where(none, a, 0.0) / torch.where(none, b, 1.0), whole)


rule("add add_", f"{_ONE}; a factor alpha is one more")(_binary("add"))
rule("sub sub_ rsub", f"{_ONE}; a factor alpha is one more")(_binary("sub"))
rule("mul mul_", _ONE)(_binary("mul"))
rule("div div_", f"{_ONE}; a whole quotient as torch finds it")(_binary("div"))


@rule("floor_divide floor_divide_", "as `div` to a whole quotient")
def _floor_divide(context: Context, func: Any, a: Any, b: Any) -> Any:
    return _binary("div")(context, func, a, b, rounding_mode="floor")


@rule("leaky_relu leaky_relu_", "one multiplication an element, used where it is negative")
def _leaky_relu(
    context: Context, func: Any, a: torch.Tensor, negative_slope: float = 0.01
) -> torch.Tensor:
    check(func, a)
    name = func.overloadpacket.__name__
    slope = torch.tensor(negative_slope, dtype=a.dtype)
    rounding = context.next_rounding(name, a.numel())
    return elementwise(rounding, "leaky_relu", a, slope, in_place=name.endswith("_"))


@rule("leaky_relu_backward", "one multiplication an element, used where it is negative")
def _leaky_relu_backward(
    context: Context,
    func: Any,
    gradient: torch.Tensor,
    x: torch.Tensor,
    negative_slope: float,
    self_is_result: bool,
) -> torch.Tensor:
    check(func, gradient, x)
    scaled = Hand(context, "leaky_relu_backward").mul(gradient, float(negative_slope))
    return torch.where(x > 0, gradient, scaled)


@rule("_to_copy", "one rounding an element that loses bits", halves=True)
def _to_copy(context: Context, func: Any, a: torch.Tensor, **options: Any) -> torch.Tensor:
    dtype = options.get("dtype") or a.dtype
    if dtype == a.dtype or not dtype.is_floating_point:
        return func(a, **options)
    if dtype not in (torch.float32, torch.float64, *HALVES):
        raise UserError(
            f"the native engine has no rule for a conversion from {a.dtype} to {dtype}"
        )
    return func(Hand(context, "to").to(a, dtype), **options)


@rule("copy", "one rounding an element that loses bits", halves=True)
def _copied(
    context: Context, func: Any, to: torch.Tensor, a: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    return _copy(context, torch.ops.aten.copy_.default, to.clone(), a, non_blocking)


@rule("copy_", "one rounding an element that loses bits", halves=True)
def _copy(
    context: Context, func: Any, to: torch.Tensor, a: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    converted = _to_copy(context, torch.ops.aten._to_copy.default, a, dtype=to.dtype)
    return func(to, converted, non_blocking)


def functional(formula: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A handler of an operator and its in-place form from a formula of (hand, arguments), whose
    tensors have one floating-point type: others are brought to that of torch first."""

    def handler(context: Context, func: Any, *args: Any, **kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        hand, to = Hand(context, name), args[0]
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        dtype = tensors[0].dtype
        if not dtype.is_floating_point or any(x.dtype != dtype for x in tensors):
            refuse_as_torch(func, args, kwargs)
            dtype = common(tensors, [x for x in args if isinstance(x, float)])
            dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
            args = tuple(hand.wide(x, dtype) if isinstance(x, torch.Tensor) else x for x in args)
        check(func, *(x for x in args if isinstance(x, torch.Tensor)))
        result = formula(hand, *args, **kwargs)
        return write(context, name, to, result) if name.endswith("_") else hand.to(result, dtype)

    return handler


@rule("addcmul addcmul_", "value·b, times c, then the addition")
@functional
def _addcmul(h: Hand, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    return h.add(a, h.mul(h.mul(value, b), c))


@rule("addcdiv addcdiv_", "value·b, divided by c, then the addition")
@functional
def _addcdiv(h: Hand, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    return h.add(a, h.div(h.mul(value, b), c))


def lerp(h: Hand, a: torch.Tensor, b: torch.Tensor, weight: Any) -> torch.Tensor:
    """Between `a` (weight 0) and `b` (1), as torch does."""
    if not isinstance(weight, torch.Tensor):
        weight = torch.tensor(weight, dtype=a.dtype)
    distance = h.sub(b, a)
    near = weight.abs() < 0.5
    if weight.dim() == 0:
        if near:
            return h.add(a, h.mul(weight, distance))
        return h.sub(b, h.mul(distance, h.sub(1, weight)))
    from_a = h.add(a, h.mul(weight, distance))
    from_b = h.sub(b, h.mul(distance, h.sub(1, weight)))
    return torch.where(near, from_a, from_b)


rule("lerp lerp_", "|weight| < ½: a + weight·(b − a), else b − (b − a)·(1 − weight)")(
    functional(lerp)
)


@rule("sqrt sqrt_", _ONE)
@functional
def _sqrt(h: Hand, a: torch.Tensor) -> torch.Tensor:
    return h.sqrt(a)


@rule("square square_", _ONE)
@functional
def _square(h: Hand, a: torch.Tensor) -> torch.Tensor:
    return h.mul(a, a)


@rule("reciprocal reciprocal_", _ONE)
@functional
def _reciprocal(h: Hand, a: torch.Tensor) -> torch.Tensor:
    return h.div(1, a)


@rule("rsqrt rsqrt_", "the root, then the division")
@functional
def _rsqrt(h: Hand, a: torch.Tensor) -> torch.Tensor:
    return h.div(1, h.sqrt(a))


@rule(
    "pow pow_",
    "exponents −2, −1, −½, ½, 1, 2 and 3 by products, roots and quotients as torch does; others "
    "by the C library, one rounding",
)
@functional
def _pow(h: Hand, a: Any, exponent: Any) -> torch.Tensor:
    if isinstance(exponent, torch.Tensor):
        return h.function("pow", a, exponent)
    match float(exponent):
        case 0.0:
            return torch.ones_like(a)
        case 1.0:
            return a.clone()
        case 2.0:
            return h.mul(a, a)
        case 3.0:
            return h.mul(h.mul(a, a), a)
        case 0.5:
            return h.sqrt(a)
        case -0.5:
            return h.div(1, h.sqrt(a))
        case -1.0:
            return h.div(1, a)
        case -2.0:
            return h.div(1, h.mul(a, a))
    return h.function("pow", a, exponent)


@rule("logaddexp2", "the greater + log1p(2 to the power of −|a − b|)·(1 / log 2)")
@functional
def _logaddexp2(h: Hand, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    rest = h.function("log1p", h.function("exp2", -h.sub(a, b).abs()))
    out = h.add(torch.maximum(a, b), h.mul(rest, 1 / math.log(2)))
    return torch.where(a.isinf() & (a == b), a, out)


def _times_log(h: Hand, x: Any, y: Any, name: str) -> torch.Tensor:
    a, b = h.tensors(x, y)
    zero = torch.where(b.isnan(), b, torch.zeros((), dtype=b.dtype))
    return torch.where(a == 0, zero, h.mul(a, h.function(name, b)))


@rule("xlogy xlogy_", "x·log(y)")
@functional
def _xlogy(h: Hand, x: Any, y: Any) -> torch.Tensor:
    return _times_log(h, x, y, "log")


@rule("special_xlog1py", "x·log1p(y)")
@functional
def _xlog1py(h: Hand, x: Any, y: Any) -> torch.Tensor:
    return _times_log(h, x, y, "log1p")


@rule("special_entr", "−x·log(x)")
@functional
def _entr(h: Hand, a: torch.Tensor) -> torch.Tensor:
    low = torch.where(a == 0, 0.0, -torch.inf).to(a.dtype)
    entropy = h.mul(-a, h.function("log", torch.where(a > 0, a, 1.0).to(a.dtype)))
    return torch.where(a.isnan(), a, torch.where(a > 0, entropy, low))


@rule("ldexp ldexp_", "2 to the power of the exponent, then the product")
@functional
def _ldexp(h: Hand, a: Any, exponent: Any) -> torch.Tensor:
    x, y = h.tensors(a, exponent)
    return h.mul(x, h.function("exp2", y))


@rule(
    "round round_",
    "to decimals: times 10 to their power, whole, divided by it; else exact",
    halves=True,
)
def _round(context: Context, func: Any, a: torch.Tensor, **options: int) -> torch.Tensor:
    name, decimals = func.overloadpacket.__name__, options.get("decimals", 0)
    if not decimals:
        return func(a, **options)
    h, x = Hand(context, name), a.to(torch.promote_types(a.dtype, torch.float32))
    check(func, x)
    power = float(10 ** abs(decimals))
    if decimals > 0:
        out = h.div(h.mul(x, power).round(), power)
    else:
        out = h.mul(h.div(x, power).round(), power)
    return write(context, name, a, out) if name.endswith("_") else h.to(out, a.dtype)


_PSI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)


@rule(
    "digamma digamma_",
    "−1/x − 1/(x + 1) … up to 10, then log(x) − ½/x − a series in 1/x²; below 0 reflected",
)
@functional
def _digamma(h: Hand, a: torch.Tensor) -> torch.Tensor:
    return _digamma_of(h, a)


def _digamma_of(h: Hand, a: torch.Tensor) -> torch.Tensor:
    """As Cephes' psi, which torch has from there."""
    negative = a < 0
    x = torch.where(negative, h.sub(1, a), a)
    down = torch.zeros_like(x)
    for _ in range(10):
        low = x < 10
        if not bool(low.any()):
            break
        down = torch.where(low, h.sub(down, h.div(1, x)), down)
        x = torch.where(low, h.add(x, 1), x)
    z = h.div(1, h.mul(x, x))
    series = torch.full_like(x, _PSI[-1])
    for term in _PSI[-2::-1]:
        series = h.add(h.mul(series, z), term)
    tail = h.mul(series, z)
    out = h.sub(h.sub(h.add(down, h.function("log", x)), h.div(0.5, x)), tail)
    # π / tan(π·x) of the rest of x, in float64
    angle = h.mul((a - a.trunc()).double(), math.pi)
    reflected = h.sub(out, h.to(h.div(math.pi, h.function("tan", angle)), x.dtype))
    out = torch.where(negative, reflected, out)
    whole = negative & (a == a.trunc())
    out = torch.where(whole, torch.nan, out)
    return torch.where(a == 0, torch.where(a.signbit(), torch.inf, -torch.inf), out).to(a.dtype)


@rule(
    "polygamma polygamma_",
    "0: as digamma; 1: 1/x² + 1/(x + 1)² … of six, then a series in 1/x²; below ½ reflected; "
    "higher ones have no rule",
)
@functional
def _polygamma(h: Hand, *args: Any) -> torch.Tensor:
    n, a = args if isinstance(args[0], int) else args[::-1]
    if n not in (0, 1):
        raise UserError(f"the native engine has no rule for polygamma of order {n}; use 0 or 1")
    return (_digamma_of if n == 0 else _trigamma)(h, a)


def _trigamma(h: Hand, a: torch.Tensor) -> torch.Tensor:
    low = a < 0.5
    sine = h.function("sin", h.mul(math.pi, a))
    result = torch.where(low, -h.div(math.pi * math.pi, h.mul(sine, sine)), 0.0).to(a.dtype)
    x = torch.where(low, h.sub(1, a), a)
    for _ in range(6):
        result = h.add(result, h.div(1, h.mul(x, x)))
        x = h.add(x, 1)
    ixx = h.div(1, h.mul(x, x))
    series = h.sub(1 / 30, h.mul(ixx, 1 / 42))
    series = h.mul(ixx, h.sub(1 / 6, h.mul(ixx, series)))
    tail = h.div(h.add(h.add(1, h.div(1, h.mul(2, x))), series), x)
    result = h.add(result, tail)
    return torch.where(low, -result, result)


_ERFINV = (
    (-0.140543331, 0.914624893, -1.645349621, 0.886226899),
    (0.012229801, -0.329097515, 1.442710462, -2.118377725, 1.0),
    (1.641345311, 3.429567803, -1.624906493, -1.970840454),
    (1.637067800, 3.543889200, 1.0),
)


def _horner(h: Hand, coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = h.add(h.mul(total, x), coefficient)
    return total


@rule(
    "erfinv erfinv_",
    "a rational function of y² (|y| ≤ 0.7) or of √−log((1 − |y|) / 2), then twice Newton: "
    "x − (erf(x) − y) / (2/√π·exp(−x·x))",
)
@functional
def _erfinv(h: Hand, a: torch.Tensor) -> torch.Tensor:
    size = a.abs()
    z = h.mul(a, a)
    near = h.div(h.mul(a, _horner(h, _ERFINV[0], z)), _horner(h, _ERFINV[1], z))
    z = h.sqrt(-h.function("log", h.div(h.sub(1, size), 2)))
    far = h.div(_horner(h, _ERFINV[2], z).copysign(a), _horner(h, _ERFINV[3], z))
    x = torch.where(size <= 0.7, near, far)
    for _ in range(2):
        slope = h.mul(2 / math.sqrt(math.pi), h.function("exp", h.mul(-x, x)))
        x = h.sub(x, h.div(h.sub(h.function("erf", x), a), slope))
    x = torch.where(size == 1, torch.full_like(x, torch.inf).copysign(a), x)
    return torch.where(size > 1, torch.nan, x).to(a.dtype)


_LIBRARY = "the C library's, computed in a wider type; one rounding"
for _name in FUNCTIONS:
    if _name not in ("pow", "atan2", "hypot", "fmod"):

        @functional
        def _unary(h: Hand, a: torch.Tensor, _name: str = _name) -> torch.Tensor:
            return h.function(_name, a)

        rule(f"{_name} {_name}_", _LIBRARY)(_unary)


@rule("remainder remainder_", "exact, but for one addition where the signs differ")
@functional
def _remainder(h: Hand, a: Any, b: Any) -> torch.Tensor:
    x, y = h.tensors(a, b)
    rest = h.function("fmod", x, y)
    return torch.where((rest != 0) & ((y < 0) != (rest < 0)), h.add(rest, y), rest)


for _name in ("atan2", "hypot", "fmod"):

    @functional
    def _of_two(h: Hand, a: Any, b: Any, _name: str = _name) -> torch.Tensor:
        return h.function(_name, a, b)

    rule(f"{_name} {_name}_", _LIBRARY)(_of_two)


@rule("threshold_backward", "selects, rounds nothing", halves=True)
def _threshold_backward(
    context: Context, func: Any, gradient: torch.Tensor, x: torch.Tensor, threshold: float
) -> torch.Tensor:
    return torch.where(x <= threshold, torch.zeros((), dtype=gradient.dtype), gradient)
