"""Operators that compute each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from morphbits.engines.native.kernels import functions
from morphbits.engines.native.kernels.functions import FUNCTIONS
from morphbits.engines.native.kernels.library import Rounding, elementwise
from morphbits.engines.native.rules.arithmetic import SIXTEEN_BITS, Operator, broadcast, type_of
from morphbits.engines.native.rules.promotion import common, stored
from morphbits.engines.native.rules.registry import refuse_as_torch, refused, rule
from morphbits.errors import UserError

_ONE = "one operation an element"


def write(op: Operator, to: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """`result` in the place of `to`, brought to its type by the mode."""
    return to.copy_(op.to(result, to.dtype))


def _binary(operation: str) -> Callable[..., Any]:
    def formula(op: Operator, x: Any, y: Any, alpha: float) -> Any:
        dtype = type_of(x, y)
        return op.operation(operation, dtype, x, op.mul(y, alpha) if alpha != 1 else y)

    def handler(op: Operator, a: Any, b: Any, alpha: float = 1, **options: Any) -> Any:
        rounding_mode = options.get("rounding_mode")
        in_place = op.name.endswith("_")
        try:
            shape = broadcast(a, b)
        except RuntimeError:
            refused(op.func, a, b)
        x, y = op.alike(a, b)
        dtype = type_of(x, y)
        if in_place and not (shape == a.shape and torch.can_cast(dtype, a.dtype)):
            refused(op.func, a, b)
        if op.name == "rsub":
            x, y = y, x
        op.check(*(v for v in (x, y) if not isinstance(v, int | float)))
        if rounding_mode is not None:
            x, y = op.tensors(x, y)
            whole = _whole_quotient(op, x, y, rounding_mode)
            return write(op, a, whole) if in_place else whole
        if in_place and a.dtype != dtype:
            return write(op.named("to"), a, formula(op, x, y, alpha))
        return op.formula(formula, x, y, alpha, into=a if in_place else None)

    return handler


def _whole_quotient(op: Operator, a: torch.Tensor, b: torch.Tensor, rounding: str) -> torch.Tensor:
    """a / b as a whole number, toward zero or downward, in the operations of torch."""
    if rounding == "trunc":
        return op.div(a, b).trunc()
    exact = Rounding("nearest", threads=op.context.threads)
    rest = functions.function(exact, "fmod", a, b)
    quotient = op.div(op.sub(a, rest), b)
    other_side = (rest != 0) & ((b < 0) != (rest < 0))
    quotient = torch.where(other_side, op.sub(quotient, 1), quotient)
    below = quotient.floor()
    whole = torch.where(op.sub(quotient, below) > 0.5, op.add(below, 1), below)
    signed = torch.where(a.signbit() == b.signbit(), 0.0, -0.0).to(whole.dtype)
    whole = torch.where(quotient == 0, signed, whole)
    none = b == 0  # where the quotient is infinite or NaN
    return torch.where(none, torch.where(none, a, 0.0) / torch.where(none, b, 1.0), whole)


rule("add add_", f"{_ONE}; a factor alpha is one more")(_binary("add"))
rule("sub sub_ rsub", f"{_ONE}; a factor alpha is one more")(_binary("sub"))
rule("mul mul_", _ONE)(_binary("mul"))
rule("div div_", f"{_ONE}; a whole quotient as torch finds it")(_binary("div"))


@rule("floor_divide floor_divide_", "as `div` to a whole quotient")
def _floor_divide(op: Operator, a: Any, b: Any) -> Any:
    return _binary("div")(op, a, b, rounding_mode="floor")


@rule("leaky_relu leaky_relu_", "one multiplication an element, used where it is negative")
def _leaky_relu(op: Operator, a: torch.Tensor, negative_slope: float = 0.01) -> torch.Tensor:
    op.check(a)
    slope = torch.tensor(negative_slope, dtype=a.dtype)
    rounding = op.rounding(a.numel())
    return elementwise(rounding, "leaky_relu", a, slope, in_place=op.name.endswith("_"))


@rule("leaky_relu_backward", "one multiplication an element, used where it is negative")
def _leaky_relu_backward(
    op: Operator,
    gradient: torch.Tensor,
    x: torch.Tensor,
    negative_slope: float,
    self_is_result: bool,
) -> torch.Tensor:
    op.check(gradient, x)
    return op.formula(_leaky_relu_slope, gradient, x, float(negative_slope))


def _leaky_relu_slope(op: Operator, g: torch.Tensor, x: torch.Tensor, slope: float) -> Any:
    return torch.where(op.positive(x), g, op.mul(g, slope))


@rule("_to_copy", "one rounding an element that loses bits", sixteen_bits=True)
def _to_copy(op: Operator, a: torch.Tensor, **options: Any) -> torch.Tensor:
    dtype = options.get("dtype") or a.dtype
    if dtype == a.dtype or not dtype.is_floating_point:
        return op.func(a, **options)
    if dtype not in (torch.float32, torch.float64, *SIXTEEN_BITS):
        raise UserError(
            f"the native engine has no rule for a conversion from {a.dtype} to {dtype}"
        )
    return op.func(op.named("to").to(a, dtype), **options)


@rule("copy", "one rounding an element that loses bits", sixteen_bits=True)
def _copied(
    op: Operator, to: torch.Tensor, a: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    return _copy(Operator(op.context, torch.ops.aten.copy_.default), to.clone(), a, non_blocking)


@rule("copy_", "one rounding an element that loses bits", sixteen_bits=True)
def _copy(
    op: Operator, to: torch.Tensor, a: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    converted = _to_copy(Operator(op.context, torch.ops.aten._to_copy.default), a, dtype=to.dtype)
    return op.func(to, converted, non_blocking)


def functional(formula: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A handler of an operator and its in-place form from a formula (`Operator.formula`) of
    tensors of one floating-point type, and numbers: others are brought to that of torch first."""

    def handler(op: Operator, *args: Any, **kwargs: Any) -> Any:
        to = args[0]
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        dtype = tensors[0].dtype
        if not dtype.is_floating_point or any(x.dtype != dtype for x in tensors):
            refuse_as_torch(op.func, args, kwargs)
            dtype = common(tensors, [x for x in args if isinstance(x, float)])
            dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
            args = tuple(op.wide(x, dtype) if isinstance(x, torch.Tensor) else x for x in args)
        op.check(*(x for x in args if isinstance(x, torch.Tensor)))
        if op.name.endswith("_") and to.dtype == dtype:
            return op.formula(formula, *args, into=to, **kwargs)
        result = op.formula(formula, *args, **kwargs)
        return write(op, to, result) if op.name.endswith("_") else op.to(result, dtype)

    return handler


@rule("addcmul addcmul_", "value·b, times c, then the addition")
@functional
def _addcmul(op: Operator, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    return op.add(a, op.mul(op.mul(value, b), c))


@rule("addcdiv addcdiv_", "value·b, divided by c, then the addition")
@functional
def _addcdiv(op: Operator, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    return op.add(a, op.div(op.mul(value, b), c))


def lerp(op: Operator, a: torch.Tensor, b: torch.Tensor, weight: Any) -> torch.Tensor:
    """Between `a` (weight 0) and `b` (1), as torch does."""
    number, weight = weight, torch.as_tensor(weight, dtype=a.dtype)
    distance = op.sub(b, a)
    if weight.dim() == 0:
        given = isinstance(number, torch.Tensor)
        if abs(float(weight) if given else stored(number, a.dtype)) < 0.5:
            return op.add(a, op.mul(number, distance))
        return op.sub(b, op.mul(distance, op.sub(1, weight)))
    from_a = op.add(a, op.mul(weight, distance))
    from_b = op.sub(b, op.mul(distance, op.sub(1, weight)))
    return torch.where(weight.abs() < 0.5, from_a, from_b)


rule("lerp lerp_", "|weight| < ½: a + weight·(b − a), else b − (b − a)·(1 − weight)")(
    functional(lerp)
)


@rule("sqrt sqrt_", _ONE)
@functional
def _sqrt(op: Operator, a: torch.Tensor) -> torch.Tensor:
    return op.sqrt(a)


@rule("square square_", _ONE)
@functional
def _square(op: Operator, a: torch.Tensor) -> torch.Tensor:
    return op.mul(a, a)


@rule("reciprocal reciprocal_", _ONE)
@functional
def _reciprocal(op: Operator, a: torch.Tensor) -> torch.Tensor:
    return op.div(1, a)


@rule("rsqrt rsqrt_", "the root, then the division")
@functional
def _rsqrt(op: Operator, a: torch.Tensor) -> torch.Tensor:
    return op.div(1, op.sqrt(a))


@rule(
    "pow pow_",
    "exponents −2, −1, −½, ½, 1, 2 and 3 by products, roots and quotients as torch does; others "
    "in float64, one rounding",
)
@functional
def _pow(op: Operator, a: Any, exponent: Any) -> torch.Tensor:
    if not isinstance(exponent, int | float | bool):
        return op.function("pow", a, exponent)
    match float(exponent):
        case 0.0:
            return torch.ones_like(a)
        case 1.0:
            return a.clone()
        case 2.0:
            return op.mul(a, a)
        case 3.0:
            return op.mul(op.mul(a, a), a)
        case 0.5:
            return op.sqrt(a)
        case -0.5:
            return op.div(1, op.sqrt(a))
        case -1.0:
            return op.div(1, a)
        case -2.0:
            return op.div(1, op.mul(a, a))
    return op.function("pow", a, exponent)


@rule("logaddexp2", "the greater + log1p(2 to the power of −|a − b|)·(1 / log 2)")
@functional
def _logaddexp2(op: Operator, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    rest = op.function("log1p", op.function("exp2", -op.sub(a, b).abs()))
    out = op.add(torch.maximum(a, b), op.mul(rest, 1 / math.log(2)))
    return torch.where(a.isinf() & (a == b), a, out)


def _times_log(op: Operator, x: Any, y: Any, name: str) -> torch.Tensor:
    a, b = op.tensors(x, y)
    zero = torch.where(b.isnan(), b, torch.zeros((), dtype=b.dtype))
    return torch.where(a == 0, zero, op.mul(a, op.function(name, b)))


@rule("xlogy xlogy_", "x·log(y)")
@functional
def _xlogy(op: Operator, x: Any, y: Any) -> torch.Tensor:
    return _times_log(op, x, y, "log")


@rule("special_xlog1py", "x·log1p(y)")
@functional
def _xlog1py(op: Operator, x: Any, y: Any) -> torch.Tensor:
    return _times_log(op, x, y, "log1p")


@rule("special_entr", "−x·log(x)")
@functional
def _entr(op: Operator, a: torch.Tensor) -> torch.Tensor:
    low = torch.where(a == 0, 0.0, -torch.inf).to(a.dtype)
    entropy = op.mul(-a, op.function("log", torch.where(a > 0, a, 1.0).to(a.dtype)))
    return torch.where(a.isnan(), a, torch.where(a > 0, entropy, low))


@rule("ldexp ldexp_", "2 to the power of the exponent, then the product")
@functional
def _ldexp(op: Operator, a: Any, exponent: Any) -> torch.Tensor:
    x, y = op.tensors(a, exponent)
    return op.mul(x, op.function("exp2", y))


@rule(
    "round round_",
    "to decimals: times 10 to their power, whole, divided by it; else exact",
    sixteen_bits=True,
)
def _round(op: Operator, a: torch.Tensor, **options: int) -> torch.Tensor:
    name, decimals = op.name, options.get("decimals", 0)
    if not decimals:
        return op.func(a, **options)
    x = a.to(torch.promote_types(a.dtype, torch.float32))
    op.check(x)
    power = float(10 ** abs(decimals))
    if decimals > 0:
        out = op.div(op.mul(x, power).round(), power)
    else:
        out = op.mul(op.div(x, power).round(), power)
    return write(op, a, out) if name.endswith("_") else op.to(out, a.dtype)


_PSI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)


@rule(
    "digamma digamma_",
    "−1/x − 1/(x + 1) … up to 10, then log(x) − ½/x − a series in 1/x²; below 0 reflected",
)
@functional
def _digamma(op: Operator, a: torch.Tensor) -> torch.Tensor:
    return _digamma_of(op, a)


def _digamma_of(op: Operator, a: torch.Tensor) -> torch.Tensor:
    """As Cephes' psi, which torch has from there."""
    negative = a < 0
    x = torch.where(negative, op.sub(1, a), a)
    down = torch.zeros_like(x)
    for _ in range(10):
        low = x < 10
        if not bool(low.any()):
            break
        down = torch.where(low, op.sub(down, op.div(1, x)), down)
        x = torch.where(low, op.add(x, 1), x)
    z = op.div(1, op.mul(x, x))
    series = torch.full_like(x, _PSI[-1])
    for term in _PSI[-2::-1]:
        series = op.add(op.mul(series, z), term)
    tail = op.mul(series, z)
    out = op.sub(op.sub(op.add(down, op.function("log", x)), op.div(0.5, x)), tail)
    # π / tan(π·x) of the rest of x, in float64
    angle = op.mul((a - a.trunc()).double(), math.pi)
    reflected = op.sub(out, op.to(op.div(math.pi, op.function("tan", angle)), x.dtype))
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
def _polygamma(op: Operator, *args: Any) -> torch.Tensor:
    n, a = args if isinstance(args[0], int) else args[::-1]
    if n not in (0, 1):
        raise UserError(f"the native engine has no rule for polygamma of order {n}; use 0 or 1")
    return (_digamma_of if n == 0 else _trigamma)(op, a)


def _trigamma(op: Operator, a: torch.Tensor) -> torch.Tensor:
    low = a < 0.5
    sine = op.function("sin", op.mul(math.pi, a))
    result = torch.where(low, -op.div(math.pi * math.pi, op.mul(sine, sine)), 0.0).to(a.dtype)
    x = torch.where(low, op.sub(1, a), a)
    for _ in range(6):
        result = op.add(result, op.div(1, op.mul(x, x)))
        x = op.add(x, 1)
    ixx = op.div(1, op.mul(x, x))
    series = op.sub(1 / 30, op.mul(ixx, 1 / 42))
    series = op.mul(ixx, op.sub(1 / 6, op.mul(ixx, series)))
    tail = op.div(op.add(op.add(1, op.div(1, op.mul(2, x))), series), x)
    result = op.add(result, tail)
    return torch.where(low, -result, result)


_ERFINV = (
    (-0.140543331, 0.914624893, -1.645349621, 0.886226899),
    (0.012229801, -0.329097515, 1.442710462, -2.118377725, 1.0),
    (1.641345311, 3.429567803, -1.624906493, -1.970840454),
    (1.637067800, 3.543889200, 1.0),
)


def _horner(op: Operator, coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = op.add(op.mul(total, x), coefficient)
    return total


@rule(
    "erfinv erfinv_",
    "a rational function of y² (|y| ≤ 0.7) or of √−log((1 − |y|) / 2), then twice Newton: "
    "x − (erf(x) − y) / (2/√π·exp(−x·x))",
)
@functional
def _erfinv(op: Operator, a: torch.Tensor) -> torch.Tensor:
    size = a.abs()
    z = op.mul(a, a)
    near = op.div(op.mul(a, _horner(op, _ERFINV[0], z)), _horner(op, _ERFINV[1], z))
    z = op.sqrt(-op.function("log", op.div(op.sub(1, size), 2)))
    far = op.div(_horner(op, _ERFINV[2], z).copysign(a), _horner(op, _ERFINV[3], z))
    x = torch.where(size <= 0.7, near, far)
    for _ in range(2):
        slope = op.mul(2 / math.sqrt(math.pi), op.function("exp", op.mul(-x, x)))
        x = op.sub(x, op.div(op.sub(op.function("erf", x), a), slope))
    x = torch.where(size == 1, torch.full_like(x, torch.inf).copysign(a), x)
    return torch.where(size > 1, torch.nan, x).to(a.dtype)


_LIBRARY = "the C library's, computed in a wider type; one rounding"
for _name in FUNCTIONS:
    if _name not in ("pow", "atan2", "hypot", "fmod"):

        @functional
        def _unary(op: Operator, a: torch.Tensor, _name: str = _name) -> torch.Tensor:
            return op.function(_name, a)

        rule(f"{_name} {_name}_", _LIBRARY)(_unary)


@rule("remainder remainder_", "exact, but for one addition where the signs differ")
@functional
def _remainder(op: Operator, a: Any, b: Any) -> torch.Tensor:
    x, y = op.tensors(a, b)
    rest = op.function("fmod", x, y)
    return torch.where((rest != 0) & ((y < 0) != (rest < 0)), op.add(rest, y), rest)


for _name in ("atan2", "hypot", "fmod"):

    @functional
    def _of_two(op: Operator, a: Any, b: Any, _name: str = _name) -> torch.Tensor:
        return op.function(_name, a, b)

    rule(f"{_name} {_name}_", _LIBRARY)(_of_two)


@rule("threshold_backward", "selects, rounds nothing", sixteen_bits=True)
def _threshold_backward(
    op: Operator, gradient: torch.Tensor, x: torch.Tensor, threshold: float
) -> torch.Tensor:
    return torch.where(x <= threshold, torch.zeros((), dtype=gradient.dtype), gradient)
