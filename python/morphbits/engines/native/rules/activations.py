"""Activations and their gradients, in the operations and the order of torch's CPU kernels
(Activation.cpp, UnaryOpsKernel.cpp, BinaryOpsKernel.cpp, SoftMaxKernel.cpp)."""

from __future__ import annotations

import math
from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import Hand
from morphbits.engines.native.rules.elementwise import functional, write
from morphbits.engines.native.rules.registry import check, rule

T = torch.Tensor


def sigmoid(h: Hand, x: T) -> T:
    """1 / (1 + exp(−x))."""
    return h.div(1, h.add(1, h.function("exp", -x)))


rule("sigmoid sigmoid_", "1 / (1 + exp(−x))")(functional(sigmoid))


@rule("sigmoid_backward", "gradient·(1 − y)·y")
@functional
def _sigmoid_backward(h: Hand, g: T, y: T) -> T:
    return h.mul(h.mul(g, h.sub(1, y)), y)


@rule("tanh_backward", "gradient·(1 − y·y)")
@functional
def _tanh_backward(h: Hand, g: T, y: T) -> T:
    return h.mul(g, h.sub(1, h.mul(y, y)))


@rule("gelu gelu_", "x·½·(1 + erf(x·√½)), or ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x·x·x)))")
@functional
def _gelu(h: Hand, x: T, *, approximate: str = "none") -> T:
    if approximate == "tanh":
        inner = _gelu_inner(h, x)
        return h.mul(h.mul(0.5, x), h.add(1, h.function("tanh", inner)))
    erf = h.function("erf", h.mul(x, math.sqrt(0.5)))
    return h.mul(h.mul(x, 0.5), h.add(1, erf))


def _gelu_inner(h: Hand, x: T) -> T:
    cube = h.mul(h.mul(x, x), x)
    return h.mul(math.sqrt(2 / math.pi), h.add(x, h.mul(0.044715, cube)))


@rule("gelu_backward", "gradient·(cdf + x·pdf), or torch's formula of the tanh form")
@functional
def _gelu_backward(h: Hand, g: T, x: T, *, approximate: str = "none") -> T:
    if approximate == "tanh":
        tanh = h.function("tanh", _gelu_inner(h, x))
        left, right = h.mul(0.5, x), h.add(1, tanh)
        slope = h.sub(1, h.mul(tanh, tanh))
        inner = h.mul(
            math.sqrt(2 / math.pi), h.add(1, h.mul(h.mul(h.mul(3 * 0.044715, x), x), 1.0))
        )
        outer = h.mul(h.mul(left, slope), inner)
        return h.mul(g, h.add(h.mul(0.5, right), outer))
    cdf = h.mul(h.add(1, h.function("erf", h.mul(x, math.sqrt(0.5)))), 0.5)
    pdf = h.mul(h.function("exp", h.mul(h.mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return h.mul(g, h.add(cdf, h.mul(x, pdf)))


@rule("silu silu_", "x / (1 + exp(−x))")
@functional
def _silu(h: Hand, x: T) -> T:
    return h.div(x, h.add(1, h.function("exp", -x)))


@rule("silu_backward", "gradient·s·(1 + x·(1 − s)), s the sigmoid")
@functional
def _silu_backward(h: Hand, g: T, x: T) -> T:
    s = sigmoid(h, x)
    return h.mul(h.mul(g, s), h.add(1, h.mul(x, h.sub(1, s))))


@rule("elu elu_", "x·scale, or expm1(x·input_scale)·(alpha·scale)")
@functional
def _elu(h: Hand, x: T, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> T:
    low = h.mul(h.function("expm1", h.mul(x, input_scale)), alpha * scale)
    return torch.where(x <= 0, low, h.mul(x, scale))


@rule("celu celu_", "as elu with input_scale 1 / alpha")
@functional
def _celu(h: Hand, x: T, alpha: float = 1) -> T:
    low = h.mul(h.function("expm1", h.mul(x, 1 / alpha)), alpha)
    return torch.where(x <= 0, low, x)


@rule("elu_backward", "gradient times the slope, from x or from y")
@functional
def _elu_backward(
    h: Hand, g: T, alpha: float, scale: float, input_scale: float, is_result: bool, x: T
) -> T:
    if is_result:
        low = h.mul(h.mul(g, input_scale), h.add(x, alpha * scale))
    else:
        slope = h.function("exp", h.mul(x, input_scale))
        low = h.mul(h.mul(h.mul(g, input_scale), alpha * scale), slope)
    return torch.where(x > 0, h.mul(g, scale), low)


@rule("softplus", "log1p(exp(x·beta)) / beta, or x")
@functional
def _softplus(h: Hand, x: T, beta: float = 1, threshold: float = 20) -> T:
    scaled = h.mul(x, beta)
    low = h.function("log1p", h.function("exp", scaled))
    low = low if beta == 1 else h.div(low, beta)
    return torch.where(scaled > threshold, x, low)


@rule("softplus_backward", "gradient·z / (z + 1), z = exp(x·beta), or the gradient")
@functional
def _softplus_backward(h: Hand, g: T, x: T, beta: float, threshold: float) -> T:
    scaled = h.mul(x, beta)
    z = h.function("exp", scaled)
    return torch.where(scaled > threshold, g, h.div(h.mul(g, z), h.add(z, 1)))


@rule("mish mish_", "x·tanh(log1p(exp(x)))")
@functional
def _mish(h: Hand, x: T) -> T:
    return h.mul(x, h.function("tanh", h.function("log1p", h.function("exp", x))))


@rule("mish_backward", "gradient·(t + x·s·(1 − t·t)), s the sigmoid, t = tanh(log1p(exp(x)))")
@functional
def _mish_backward(h: Hand, g: T, x: T) -> T:
    s = sigmoid(h, x)
    t = h.function("tanh", h.function("log1p", h.function("exp", x)))
    return h.mul(g, h.add(t, h.mul(h.mul(x, s), h.sub(1, h.mul(t, t)))))


@rule("hardsigmoid hardsigmoid_", "clamp(x + 3, 0, 6) / 6")
@functional
def _hardsigmoid(h: Hand, x: T) -> T:
    return h.div(h.add(x, 3).clamp(0, 6), 6)


@rule("hardsigmoid_backward", "gradient·(1/6) inside")
@functional
def _hardsigmoid_backward(h: Hand, g: T, x: T) -> T:
    zero = torch.zeros((), dtype=g.dtype)
    sixth = float(torch.tensor(1 / 6))  # a float32 constant in torch, whatever the type
    return torch.where((x > -3) & (x < 3), h.mul(g, sixth), zero)


@rule("hardswish hardswish_", "x·clamp(x + 3, 0, 6) / 6")
@functional
def _hardswish(h: Hand, x: T) -> T:
    return h.div(h.mul(x, h.add(x, 3).clamp(0, 6)), 6)


@rule("hardswish_backward", "gradient·(x / 3 + ½) inside")
@functional
def _hardswish_backward(h: Hand, g: T, x: T) -> T:
    inside = h.mul(g, h.add(h.div(x, 3), 0.5))
    zero = torch.zeros((), dtype=g.dtype)
    return torch.where(x <= -3, zero, torch.where(x >= 3, g, inside))


@rule("softshrink", "x ± lambd outside, 0 inside")
@functional
def _softshrink(h: Hand, x: T, lambd: float = 0.5) -> T:
    inside = torch.where(x.isnan(), x, torch.zeros((), dtype=x.dtype))
    return torch.where(
        x > lambd, h.sub(x, lambd), torch.where(x < -lambd, h.add(x, lambd), inside)
    )


@rule("native_dropout", "one multiplication by 1 / (1 − p) an element")
def _dropout(mode: Any, func: Any, x: T, p: float, train: bool | None = None) -> tuple[T, T]:
    check(func, x)
    kept = torch.ones(x.shape, dtype=torch.bool)
    if not x.numel() or train is False:
        return x.clone(), kept
    kept.bernoulli_(1 - p)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return Hand(mode, "native_dropout").mul(x * kept, scale), kept


@rule(
    "rrelu_with_noise rrelu_with_noise_",
    "one multiplication where x is not positive, by a random slope, at inference by their mean",
)
def _rrelu(
    mode: Any,
    func: Any,
    x: T,
    noise: T,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> T:
    name = func.overloadpacket.__name__
    check(func, x)
    h, negative = Hand(mode, name), x <= 0
    if training:  # a slope is drawn where it is used, in row-major order, as in torch
        slopes = torch.empty(int(negative.sum()), dtype=torch.float64)
        slopes.uniform_(lower, upper, generator=generator)
        noise.fill_(1).masked_scatter_(negative, slopes.to(noise.dtype))
        out = torch.where(negative, h.mul(x, noise), x)
    else:
        out = torch.where(negative, h.mul(x, (lower + upper) / 2), x)
    return write(mode, name, x, out) if name.endswith("_") else out


@rule("rrelu_with_noise_backward", "one multiplication an element")
@functional
def _rrelu_backward(
    h: Hand, g: T, x: T, noise: T, lower: float, upper: float, training: bool, is_result: bool
) -> T:
    if training and upper - lower > 1e-6:
        return h.mul(noise, g)
    return torch.where(x > 0, g, h.mul(g, (lower + upper) / 2))


@rule("_prelu_kernel", "weight·x where it is not positive")
@functional
def _prelu(h: Hand, x: T, weight: T) -> T:
    return torch.where(x > 0, x, h.mul(weight, x))


@rule("_prelu_kernel_backward", "weight·gradient and x·gradient where x is not positive")
def _prelu_backward(mode: Any, func: Any, g: T, x: T, weight: T) -> tuple[T, T]:
    h = Hand(mode, "_prelu_kernel_backward")
    zero = torch.zeros((), dtype=g.dtype)
    to_x = torch.where(x > 0, g, h.mul(weight, g))
    return to_x, torch.where(x > 0, zero, h.mul(x, g))


@rule("log_sigmoid_forward", "min(x, 0) − log1p(exp(−|x|))")
def _log_sigmoid(mode: Any, func: Any, x: T) -> tuple[T, T]:
    h = Hand(mode, "log_sigmoid_forward")
    z = h.function("exp", -x.abs())
    return h.sub(x.clamp(max=0), h.function("log1p", z)), z


@rule("log_sigmoid_backward", "gradient·(m − s·(z / (1 + z))), z = exp(−|x|)")
@functional
def _log_sigmoid_backward(h: Hand, g: T, x: T, buffer: T) -> T:
    z = buffer if buffer.numel() else h.function("exp", -x.abs())
    negative = x < 0
    most = negative.to(x.dtype)
    ratio = h.div(z, h.add(1, z))
    return h.mul(g, h.sub(most, torch.where(negative, ratio, -ratio)))


@rule("glu", "a·(1 / (1 + exp(−b)))")
@functional
def _glu(h: Hand, x: T, dim: int = -1) -> T:
    a, b = x.chunk(2, dim)
    return h.mul(a, sigmoid(h, b))


@rule("glu_backward", "s·gradient and (1 − s)·s·gradient·a")
@functional
def _glu_backward(h: Hand, g: T, x: T, dim: int) -> T:
    a, b = x.chunk(2, dim)
    s = sigmoid(h, b)
    to_a = h.mul(s, g)
    return torch.cat([to_a, h.mul(h.mul(h.sub(1, s), to_a), a)], dim)


_SOFT = "x − max, exp, a sum as `sum`, one division"


@rule("_softmax", _SOFT)
def _softmax(mode: Any, func: Any, x: T, dim: int, half_to_float: bool) -> T:
    h = Hand(mode, "_softmax")
    if x.numel() == 0:
        return x.clone()
    e = h.function("exp", h.sub(x, x.amax(dim, keepdim=True)))
    return h.div(e, h.sum(e, [dim], keepdim=True))


@rule("_safe_softmax", f"{_SOFT}; rows of −∞ become 0")
def _safe_softmax(mode: Any, func: Any, x: T, dim: int, dtype: Any = None) -> T:
    h = Hand(mode, "_safe_softmax")
    x = h.to(x, dtype or x.dtype)
    if x.numel() == 0:
        return x.clone()
    masked = (x == -torch.inf).all(dim, keepdim=True)
    e = h.function("exp", h.sub(x, x.amax(dim, keepdim=True)))
    out = h.div(e, h.sum(e, [dim], keepdim=True))
    return torch.where(masked, torch.zeros((), dtype=x.dtype), out)


@rule("_log_softmax", "x − max − log(sum(exp(x − max)))")
def _log_softmax(mode: Any, func: Any, x: T, dim: int, half_to_float: bool) -> T:
    h = Hand(mode, "_log_softmax")
    if x.numel() == 0:
        return x.clone()
    shifted = h.sub(x, x.amax(dim, keepdim=True))
    total = h.sum(h.function("exp", shifted), [dim], keepdim=True)
    return h.sub(shifted, h.function("log", total))


@rule("_softmax_backward_data", "(gradient − sum(gradient·y))·y")
def _softmax_backward(mode: Any, func: Any, g: T, y: T, dim: int, dtype: Any) -> T:
    h = Hand(mode, "_softmax_backward_data")
    return h.mul(h.sub(g, h.sum(h.mul(g, y), [dim], keepdim=True)), y)


@rule("_log_softmax_backward_data", "gradient − exp(y)·sum(gradient)")
def _log_softmax_backward(mode: Any, func: Any, g: T, y: T, dim: int, dtype: Any) -> T:
    h = Hand(mode, "_log_softmax_backward_data")
    return h.sub(g, h.mul(h.function("exp", y), h.sum(g, [dim], keepdim=True)))
