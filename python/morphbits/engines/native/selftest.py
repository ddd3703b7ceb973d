"""What is asked of the kernels at every load, before a result may be trusted.

A compiler that fuses, contracts or moves an operation across a change of the rounding direction
breaks random rounding without a message. So every operation of every compiled variant is done in
every mode on values that tell up, down and nearest apart, and compared with exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch

from morphbits.engines.native.kernels import functions, reference, sums
from morphbits.engines.native.kernels.gpu import NoKernel
from morphbits.engines.native.kernels.library import (
    Rounding,
    available_variants,
    convolution,
    elementwise,
)
from morphbits.engines.native.kernels.precision import FLOAT32, Format
from morphbits.engines.native.orders.accumulation import terms
from morphbits.errors import UserError

_LANES = (
    37  # more than a vector and no multiple of one, so that whole and partial vectors are asked
)


_FORMATS = (
    (torch.float32, FLOAT32),
    (torch.float64, FLOAT32),
    (torch.float32, Format(11)),
    (torch.float32, Format(23)),
)


tested: set[torch.device | None] = set()


def once(device: torch.device | None = None) -> None:
    """The self-test of the processor's kernels, or of a GPU's, the first time it is asked for."""
    if device not in tested:
        self_test(device)
        tested.add(device)


def self_test(device: torch.device | None = None, only: str | None = None) -> None:
    """Raise UserError if any kernel of any variant that runs here (of one, if `only` names it), or
    of the GPU `device`, does not round as it should."""
    if device is not None:
        with device:
            _test_variant(None, f"on {device}; its compiler or driver is not to be trusted")
        return
    for variant in (only,) if only else (*available_variants(), "naive"):
        _test_variant(
            variant,
            f"variant {variant}; the compiler broke the kernels: build them with gcc, or choose "
            "another variant by MORPHBITS_VARIANT=portable",
        )


def _test_variant(variant: str | None, where: str) -> None:
    for dtype, format in _FORMATS:
        kind = dtype if format == FLOAT32 else format
        for name, exact, compute in _cases(dtype, 0.5 ** (_bits(dtype, format) - 1)):
            down, up = reference.neighbours(exact, kind)
            expected = {
                "upward": {up},
                "downward": {down},
                "toward_zero": {down if exact > 0 else up},
                "nearest": {reference.nearest(exact, kind)},
                "random": {down, up},
                "nearness": {down, up},
            }
            for mode, values in expected.items():
                rounding = Rounding(mode, variant=variant, key=1, format=format)
                try:
                    found = set(compute(rounding).flatten().tolist())
                except NoKernel:  # the GPU has not all of them, and says so when they are used
                    continue
                if found != values:
                    raise UserError(
                        f"the native engine's self-test failed: {name}, mode {mode}, {kind} gave "
                        f"{sorted(found)} instead of {sorted(values)}, {where}"
                    )


def _bits(dtype: torch.dtype, format: Format) -> int:
    return 53 if dtype == torch.float64 else format.bits


def _cases(dtype: torch.dtype, ulp: float) -> Iterator[tuple]:
    """(name, exact result, function of a Rounding that returns _LANES results of this one
    operation); `ulp` is the distance from 1 to the next number."""
    # a remainder near half of the last place: mode nearness, too, shows both among _LANES draws
    pairs = {
        "add": [(1.0, 0.4375 * ulp), (-1.0, -0.4375 * ulp), (1.0, -0.21875 * ulp)],
        "sub": [(1.0, -0.4375 * ulp), (-1.0, 0.4375 * ulp)],
        "mul": [(1 + 3 * ulp, 1.5 - 5 * ulp), (-1 - 3 * ulp, 1.5 - 5 * ulp)],
        "div": [(1.0, 3.0), (-1.0, 3.0)],
    }
    exact = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }
    for name, operands in pairs.items():
        for a, b in operands:
            x, y = (torch.full((_LANES,), v, dtype=dtype) for v in (a, b))

            def compute(
                r: Rounding, name: str = name, x: torch.Tensor = x, y: torch.Tensor = y
            ) -> torch.Tensor:
                return elementwise(r, name, x, y)

            yield name, exact[name](Fraction(a), Fraction(b)), compute
    if dtype == torch.float32:
        wide = torch.full((_LANES,), 1 / 3, dtype=torch.float64)
        yield "narrow", Fraction(1 / 3), lambda r: elementwise(r, "narrow", wide)
    for sign in (1, -1):
        # a chain of two products from zero, 1·1 (exact) and then the fused operation under test
        image = torch.tensor([1.0, 0.4375], dtype=dtype).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 9)
        weight = (
            torch.tensor([sign, sign * ulp], dtype=dtype)
            .view(1, 2, 1, 1, 1)
            .expand(_LANES, 2, 1, 1, 1)
        )

        def convolve(
            r: Rounding, x: torch.Tensor = image, w: torch.Tensor = weight
        ) -> torch.Tensor:
            return convolution(
                r, x, w, None, (1, 1, 1), (0, 0, 0), (1, 1, 1), terms("sequential", 1, 2)
            )

        yield "fma in a convolution", sign * (1 + Fraction(0.4375) * Fraction(ulp)), convolve
        bias = torch.full((_LANES,), sign * 0.4375 * ulp, dtype=dtype)

        def add_bias(
            r: Rounding, x: torch.Tensor = image, w: torch.Tensor = weight, b: torch.Tensor = bias
        ) -> torch.Tensor:
            first = (x[:, :1], w[:, :1])
            return convolution(
                r, *first, b, (1, 1, 1), (0, 0, 0), (1, 1, 1), terms("sequential", 1, 1)
            )

        yield "bias of a convolution", sign * (1 + Fraction(0.4375) * Fraction(ulp)), add_bias
    if ulp == torch.finfo(dtype).eps:  # these know no formats of fewer bits
        yield from _sums(dtype)
        yield from _scalar(dtype)


def _sums(dtype: torch.dtype) -> Iterator[tuple]:
    """Chains, products of matrices (whose first product is exact) and the sum of two chains."""
    ulp = torch.finfo(dtype).eps
    for sign in (1, -1):
        exact = sign * (1 + Fraction(0.4375) * Fraction(ulp))
        pair = torch.tensor([sign * 1.0, sign * 0.4375 * ulp], dtype=dtype)
        terms_ON = pair.repeat_interleave(_LANES)[None]
        yield "add in a chain", exact, lambda r, x=terms_ON: sums.reduce(r, "add", x, _LANES)
        factor = torch.tensor([1 + 3 * ulp, sign * (1.5 - 5 * ulp)], dtype=dtype)
        factors_ON = factor.repeat_interleave(_LANES)[None]
        product = Fraction(1 + 3 * ulp) * Fraction(sign * (1.5 - 5 * ulp))
        yield "mul in a chain", product, lambda r, x=factors_ON: sums.reduce(r, "mul", x, _LANES)
        left = torch.tensor([[[1.0, 0.4375]]], dtype=dtype)
        right = torch.tensor([[[sign], [sign * ulp]]], dtype=dtype).expand(1, 2, _LANES)
        for name, ends in (
            ("fma in a product of matrices", sums.segments(2, None)),
            ("add in a product of matrices", sums.segments(2, 1)),
        ):
            yield (
                name,
                exact,
                lambda r, a=left, b=right, e=ends: sums.matrix_product(r, a, b, e),
            )
        place, to = torch.arange(_LANES), torch.full((1, _LANES), float(sign), dtype=dtype)
        source = torch.full((1, _LANES), sign * 0.4375 * ulp, dtype=dtype)
        yield (
            "scattered add",
            exact,
            lambda r, t=to, i=place, s=source: sums.scatter_add(r, t, i, s),
        )


def _scalar(dtype: torch.dtype) -> Iterator[tuple]:
    """A function of the C library and one with a vector core, without an exact result: one of
    each sign."""
    sinh = Fraction("24.080971976612558038834034197338914958257574390389")  # of 3.875
    for sign in (1, -1):
        x, y = (
            torch.full((_LANES,), 3.0 * sign, dtype=dtype),
            torch.full((_LANES,), -1.0, dtype=dtype),
        )
        yield "pow", Fraction(sign, 3), lambda r, a=x, b=y: functions.function(r, "pow", a, b)
        z = torch.full((_LANES,), 3.875 * sign, dtype=dtype)
        yield "sinh", sign * sinh, lambda r, a=z: functions.function(r, "sinh", a)
