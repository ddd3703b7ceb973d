"""Activations and their gradients, in the operations and the order of torch's CPU kernels
(Activation.cpp, UnaryOpsKernel.cpp, BinaryOpsKernel.cpp, SoftMaxKernel.cpp)."""

from __future__ import annotations

import math
from typing import Any

import torch

from morphbits.engines.native.kernels.precision import FLOAT32
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.elementwise import functional, write
from morphbits.engines.native.rules.registry import rule

T = torch.Tensor


def sigmoid(op: Operator, x: T) -> T:
    """1 / (1 + exp(−x))."""
    return op.div(1, op.add(1, op.function("exp", op.neg(x))))


rule("sigmoid sigmoid_", "1 / (1 + exp(−x))")(functional(sigmoid))


@rule("sigmoid_backward", "gradient·(1 − y)·y")
@functional
def _sigmoid_backward(op: Operator, g: T, y: T) -> T:
    return op.mul(op.mul(g, op.sub(1, y)), y)


@rule("tanh_backward", "gradient·(1 − y·y)")
@functional
def _tanh_backward(op: Operator, g: T, y: T) -> T:
    return op.mul(g, op.sub(1, op.mul(y, y)))


@rule("gelu gelu_", "x·½·(1 + erf(x·√½)), or ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x·x·x)))")
@functional
def _gelu(op: Operator, x: T, *, approximate: str = "none") -> T:
    if approximate == "tanh":
        inner = _gelu_inner(op, x)
        return op.mul(op.mul(0.5, x), op.add(1, op.function("tanh", inner)))
    erf = op.function("erf", op.mul(x, math.sqrt(0.5)))
    return op.mul(op.mul(x, 0.5), op.add(1, erf))


def _gelu_inner(op: Operator, x: T) -> T:
    cube = op.mul(op.mul(x, x), x)
    return op.mul(math.sqrt(2 / math.pi), op.add(x, op.mul(0.044715, cube)))


@rule("gelu_backward", "gradient·(cdf + x·pdf), or torch's formula of the tanh form")
@functional
def _gelu_backward(op: Operator, g: T, x: T, *, approximate: str = "none") -> T:
    if approximate == "tanh":
        tanh = op.function("tanh", _gelu_inner(op, x))
        left, right = op.mul(0.5, x), op.add(1, tanh)
        slope = op.sub(1, op.mul(tanh, tanh))
        inner = op.mul(
            math.sqrt(2 / math.pi), op.add(1, op.mul(op.mul(op.mul(3 * 0.044715, x), x), 1.0))
        )
        outer = op.mul(op.mul(left, slope), inner)
        return op.mul(g, op.add(op.mul(0.5, right), outer))
    cdf = op.mul(op.add(1, op.function("erf", op.mul(x, math.sqrt(0.5)))), 0.5)
    pdf = op.mul(op.function("exp", op.mul(op.mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return op.mul(g, op.add(cdf, op.mul(x, pdf)))


@rule("silu silu_", "x / (1 + exp(−x))")
@functional
def _silu(op: Operator, x: T) -> T:
    return op.div(x, op.add(1, op.function("exp", op.neg(x))))


@rule("silu_backward", "gradient·s·(1 + x·(1 − s)), s the sigmoid")
@functional
def _silu_backward(op: Operator, g: T, x: T) -> T:
    s = sigmoid(op, x)
    return op.mul(op.mul(g, s), op.add(1, op.mul(x, op.sub(1, s))))


@rule("elu elu_", "x·scale, or expm1(x·input_scale)·(alpha·scale)")
@functional
def _elu(op: Operator, x: T, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> T:
    low = op.mul(op.function("expm1", op.mul(x, input_scale)), alpha * scale)
    return torch.where(x <= 0, low, op.mul(x, scale))


@rule("celu celu_", "as elu with input_scale 1 / alpha")
@functional
def _celu(op: Operator, x: T, alpha: float = 1) -> T:
    low = op.mul(op.function("expm1", op.mul(x, 1 / alpha)), alpha)
    return torch.where(x <= 0, low, x)


@rule("elu_backward", "gradient times the slope, from x or from y")
@functional
def _elu_backward(
    op: Operator, g: T, alpha: float, scale: float, input_scale: float, is_result: bool, x: T
) -> T:
    if is_result:
        low = op.mul(op.mul(g, input_scale), op.add(x, alpha * scale))
    else:
        slope = op.function("exp", op.mul(x, input_scale))
        low = op.mul(op.mul(op.mul(g, input_scale), alpha * scale), slope)
    return torch.where(x > 0, op.mul(g, scale), low)


@rule("softplus", "log1p(exp(x·beta)) / beta, or x")
@functional
def _softplus(op: Operator, x: T, beta: float = 1, threshold: float = 20) -> T:
    scaled = op.mul(x, beta)
    low = op.function("log1p", op.function("exp", scaled))
    low = low if beta == 1 else op.div(low, beta)
    return torch.where(scaled > threshold, x, low)


@rule("softplus_backward", "gradient·z / (z + 1), z = exp(x·beta), or the gradient")
@functional
def _softplus_backward(op: Operator, g: T, x: T, beta: float, threshold: float) -> T:
    scaled = op.mul(x, beta)
    z = op.function("exp", scaled)
    return torch.where(scaled > threshold, g, op.div(op.mul(g, z), op.add(z, 1)))


@rule("mish mish_", "x·tanh(log1p(exp(x)))")
@functional
def _mish(op: Operator, x: T) -> T:
    return op.mul(x, op.function("tanh", op.function("log1p", op.function("exp", x))))


@rule("mish_backward", "gradient·(t + x·s·(1 − t·t)), s the sigmoid, t = tanh(log1p(exp(x)))")
@functional
def _mish_backward(op: Operator, g: T, x: T) -> T:
    s = sigmoid(op, x)
    t = op.function("tanh", op.function("log1p", op.function("exp", x)))
    return op.mul(g, op.add(t, op.mul(op.mul(x, s), op.sub(1, op.mul(t, t)))))


@rule("hardsigmoid hardsigmoid_", "clamp(x + 3, 0, 6) / 6")
@functional
def _hardsigmoid(op: Operator, x: T) -> T:
    return op.div(op.add(x, 3).clamp(0, 6), 6)


@rule("hardsigmoid_backward", "gradient·(1/6) inside")
@functional
def _hardsigmoid_backward(op: Operator, g: T, x: T) -> T:
    zero = torch.zeros((), dtype=g.dtype)
    sixth = float(torch.tensor(1 / 6))  # a float32 constant in torch, whatever the type
    return torch.where((x > -3) & (x < 3), op.mul(g, sixth), zero)


@rule("hardswish hardswish_", "x·clamp(x + 3, 0, 6) / 6")
@functional
def _hardswish(op: Operator, x: T) -> T:
    return op.div(op.mul(x, op.add(x, 3).clamp(0, 6)), 6)


@rule("hardswish_backward", "gradient·(x / 3 + ½) inside")
@functional
def _hardswish_backward(op: Operator, g: T, x: T) -> T:
    inside = op.mul(g, op.add(op.div(x, 3), 0.5))
    zero = torch.zeros((), dtype=g.dtype)
    return torch.where(x <= -3, zero, torch.where(x >= 3, g, inside))


@rule("softshrink", "x ± lambd outside, 0 inside")
@functional
def _softshrink(op: Operator, x: T, lambd: float = 0.5) -> T:
    inside = torch.where(x.isnan(), x, torch.zeros((), dtype=x.dtype))
    return torch.where(
        x > lambd, op.sub(x, lambd), torch.where(x < -lambd, op.add(x, lambd), inside)
    )


@rule("native_dropout", "one multiplication by 1 / (1 − p) an element")
def _dropout(op: Operator, x: T, p: float, train: bool | None = None) -> tuple[T, T]:
    op.check(x)
    kept = torch.ones(x.shape, dtype=torch.bool)
    if not x.numel() or train is False:
        return x.clone(), kept
    kept.bernoulli_(1 - p)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return op.mul(x * kept, scale), kept


@rule(
    "rrelu_with_noise rrelu_with_noise_",
    "one multiplication where x is not positive, by a random slope, at inference by their mean",
)
def _rrelu(
    op: Operator,
    x: T,
    noise: T,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> T:
    op.check(x)
    negative = x <= 0
    if training:  # a slope is drawn where it is used, in row-major order, as in torch
        slopes = torch.empty(int(negative.sum()), dtype=torch.float64)
        slopes.uniform_(lower, upper, generator=generator)
        noise.fill_(1).masked_scatter_(negative, slopes.to(noise.dtype))
        out = torch.where(negative, op.mul(x, noise), x)
    else:
        out = torch.where(negative, op.mul(x, (lower + upper) / 2), x)
    return write(op, x, out) if op.name.endswith("_") else out


@rule("rrelu_with_noise_backward", "one multiplication an element")
@functional
def _rrelu_backward(
    op: Operator, g: T, x: T, noise: T, lower: float, upper: float, training: bool, is_result: bool
) -> T:
    if training and upper - lower > 1e-6:
        return op.mul(noise, g)
    return torch.where(x > 0, g, op.mul(g, (lower + upper) / 2))


@rule("_prelu_kernel", "weight·x where it is not positive")
@functional
def _prelu(op: Operator, x: T, weight: T) -> T:
    how = op.context.unkeyed
    if how.flush or how.operands != FLOAT32:  # the operation below would compare the converted x
        return torch.where(op.positive(x), x, op.mul(weight, x))
    return op.operation("leaky_relu", x.dtype, x, weight)


@rule("_prelu_kernel_backward", "weight·gradient and x·gradient where x is not positive")
def _prelu_backward(op: Operator, g: T, x: T, weight: T) -> tuple[T, T]:
    op.check(g, x, weight)
    return op.formula(_prelu_slopes, g, x, weight)


def _prelu_slopes(op: Operator, g: T, x: T, weight: T) -> tuple[T, T]:
    positive = op.positive(x)
    return (
        torch.where(positive, g, op.mul(weight, g)),
        torch.where(positive, 0.0, op.mul(x, g)),
    )


@rule("log_sigmoid_forward", "min(x, 0) − log1p(exp(−|x|))")
def _log_sigmoid(op: Operator, x: T) -> tuple[T, T]:
    z = op.function("exp", -x.abs())
    return op.sub(x.clamp(max=0), op.function("log1p", z)), z


@rule("log_sigmoid_backward", "gradient·(m − s·(z / (1 + z))), z = exp(−|x|)")
@functional
def _log_sigmoid_backward(op: Operator, g: T, x: T, buffer: T) -> T:
    z = buffer if buffer.numel() else op.function("exp", -x.abs())
    negative = x < 0
    most = negative.to(x.dtype)
    ratio = op.div(z, op.add(1, z))
    return op.mul(g, op.sub(most, torch.where(negative, ratio, -ratio)))


@rule("glu", "a·(1 / (1 + exp(−b)))")
@functional
def _glu(op: Operator, x: T, dim: int = -1) -> T:
    a, b = x.chunk(2, dim)
    return op.mul(a, sigmoid(op, b))


@rule("glu_backward", "s·gradient and (1 − s)·s·gradient·a")
@functional
def _glu_backward(op: Operator, g: T, x: T, dim: int) -> T:
    a, b = x.chunk(2, dim)
    s = sigmoid(op, b)
    to_a = op.mul(s, g)
    return torch.cat([to_a, op.mul(op.mul(op.sub(1, s), to_a), a)], dim)


_SOFT = "x − max, exp, a sum as `sum`, one division"


@rule("_softmax", _SOFT)
def _softmax(op: Operator, x: T, dim: int, half_to_float: bool) -> T:
    if x.numel() == 0:
        return x.clone()
    return op.formula(_shares, x, x.amax(dim, keepdim=True), dim)


def _shares(op: Operator, x: T, greatest: T, dim: int) -> T:
    e = op.function("exp", op.sub(x, greatest))
    return op.div(e, op.sum(e, [dim], keepdim=True))


@rule("_safe_softmax", f"{_SOFT}; rows of −∞ become 0")
def _safe_softmax(op: Operator, x: T, dim: int, dtype: Any = None) -> T:
    x = op.to(x, dtype or x.dtype)
    if x.numel() == 0:
        return x.clone()
    masked = (x == -torch.inf).all(dim, keepdim=True)
    out = op.formula(_shares, x, x.amax(dim, keepdim=True), dim)
    return torch.where(masked, torch.zeros((), dtype=x.dtype), out)


@rule("_log_softmax", "x − max − log(sum(exp(x − max)))")
def _log_softmax(op: Operator, x: T, dim: int, half_to_float: bool) -> T:
    if x.numel() == 0:
        return x.clone()
    return op.formula(_log_shares, x, x.amax(dim, keepdim=True), dim)


def _log_shares(op: Operator, x: T, greatest: T, dim: int) -> T:
    shifted = op.sub(x, greatest)
    total = op.sum(op.function("exp", shifted), [dim], keepdim=True)
    return op.sub(shifted, op.function("log", total))


@rule("_softmax_backward_data", "(gradient − sum(gradient·y))·y")
def _softmax_backward(op: Operator, g: T, y: T, dim: int, dtype: Any) -> T:
    return op.formula(_softmax_slope, g, y, dim)


def _softmax_slope(op: Operator, g: T, y: T, dim: int) -> T:
    return op.mul(op.sub(g, op.sum(op.mul(g, y), [dim], keepdim=True)), y)


@rule("_log_softmax_backward_data", "gradient − exp(y)·sum(gradient)")
def _log_softmax_backward(op: Operator, g: T, y: T, dim: int, dtype: Any) -> T:
    return op.formula(_log_softmax_slope, g, y, dim)


def _log_softmax_slope(op: Operator, g: T, y: T, dim: int) -> T:
    return op.sub(g, op.mul(op.function("exp", y), op.sum(g, [dim], keepdim=True)))
