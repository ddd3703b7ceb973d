"""torch's own database of operators (OpInfo) under the engine: samples of each entry, forward, in
place, into `out` and backward, in modes nearest and random; what is refused or known to differ is
listed with its reason in `opinfo_known`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from support.opinfo_known import UNSET, VALUES
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from morphbits.engines.native import random_rounding
from morphbits.errors import UserError

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64)
SAMPLES = 6  # of an entry's first 60, evenly spaced

# Of the greatest number of a result, or of 1. float32 and float64: some hundred operations, each
# off by a last place, on terms up to 2⁴ times the result; where operands have several types, of
# the coarsest. bfloat16: some ten operators of a forward and a backward pass, each off by a last
# place of 8 bits; float16, of 11.
BOUNDS = {
    torch.float32: 2.0**-12,
    torch.float64: 2.0**-40,
    torch.bfloat16: 2.0**-4,
    torch.float16: 2.0**-7,
}

Region = Callable[[], AbstractContextManager[Any]]
Call = Callable[
    [Region, torch.dtype | None], list[Tensor]
]  # operands in the type, if one is given


@dataclass(frozen=True)
class Outcome:
    """Of one sample; kind: same, refused, differs, unperturbed or crashed."""

    entry: str
    form: str
    type: str
    kind: str
    what: str = ""


@cache
def database() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


def name_of(entry: Any) -> str:
    return f"{entry.name}.{entry.variant_test_name}".rstrip(".")


def outcomes(entry: Any, types: tuple[torch.dtype, ...] = TYPES) -> Iterator[Outcome]:
    """Of every sample that torch itself computes."""
    for dtype in types:
        if dtype not in entry.supported_dtypes("cpu"):
            continue
        torch.manual_seed(1)
        samples = list(islice(entry.sample_inputs("cpu", dtype, requires_grad=False), 60))
        for i in range(min(SAMPLES, len(samples))):
            sample = samples[i * len(samples) // min(SAMPLES, len(samples))]
            for form, call in _forms(entry, sample, dtype):
                kind, what = _outcome(name_of(entry), call)
                if kind:
                    yield Outcome(
                        name_of(entry), form, str(dtype).removeprefix("torch."), kind, what
                    )


def _copied(x: Any, dtype: torch.dtype | None = None) -> Any:
    """The same values in new memory; floating-point numbers in `dtype`, if it is given."""

    def copy(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if dtype is None or not (t.is_floating_point() or t.is_complex()):
            return t.detach().clone()
        return t.detach().clone().to(torch.promote_types(t.dtype, dtype))

    return tree_map(copy, x)


def _forms(entry: Any, sample: Any, dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    given = (sample.input, sample.args, sample.kwargs)

    def called(function: Callable[..., Any]) -> Call:
        def call(region: Region, wide: torch.dtype | None) -> list[Tensor]:
            first, args, kwargs = _copied(given, wide)
            torch.manual_seed(5)
            with region():
                result = function(first, *args, **kwargs)
            return _tensors(result)

        return call

    def into(region: Region, wide: torch.dtype | None) -> list[Tensor]:
        first, args, kwargs = _copied(given, wide)
        to = tree_map(
            lambda t: torch.zeros_like(t) if isinstance(t, Tensor) else t,
            entry(*_copied((first, *args)), **_copied(kwargs)),
        )
        torch.manual_seed(5)
        with region():
            entry(first, *args, out=to, **kwargs)
        return _tensors(to)

    def backward(region: Region, wide: torch.dtype | None) -> list[Tensor]:
        first, args, kwargs = _copied(given, wide)
        leaves = [x for x in tree_leaves((first, args, kwargs)) if _is_real(x)]
        for x in leaves:
            x.requires_grad_()
        torch.manual_seed(5)
        with region():
            result = entry(first, *args, **kwargs)
            if sample.output_process_fn_grad is not None:
                result = sample.output_process_fn_grad(result)
        results = [x for x in tree_leaves(result) if _is_real(x) and x.requires_grad]
        weights = [  # exact in every type
            ((torch.arange(x.numel()) % 33 + 16) / 32).to(x.dtype).view(x.shape) for x in results
        ]
        with region():
            gradients = torch.autograd.grad(results, leaves, weights, allow_unused=True)
        return _tensors(gradients)

    yield "forward", called(entry)
    if entry.get_inplace() is not None:
        yield "in place", called(entry.get_inplace())
    if entry.supports_out:
        yield "out", into
    if dtype.is_floating_point and entry.supports_autograd:
        yield "backward", backward


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _tensors(x: Any) -> list[Tensor]:
    return [t.detach() for t in tree_leaves(x) if isinstance(t, Tensor)]


def _outcome(name: str, call: Call) -> tuple[str, str]:
    try:
        expected = call(nullcontext, None)
    except Exception:
        return "", ""  # torch does not compute it
    counts: list[int] = []

    @contextmanager
    def counted(mode: str) -> Iterator[None]:
        with random_rounding(mode, seed=3) as stats:
            yield
        counts.append(stats.operations)

    for mode in ("nearest", "random"):
        try:
            found = call(lambda m=mode: counted(m), None)
        except UserError as refusal:
            return "refused", refused_operator(str(refusal))
        except Exception as error:
            return "crashed", f"{mode}: {type(error).__name__}: {error}"[:200]
        difference = "" if name in UNSET else _difference(found, expected)
        if difference:
            return "differs", f"{mode}: {difference}"
    if not any(counts) and name not in UNSET | VALUES and _rounds(call, expected):
        return "unperturbed", ""
    return "same", ""


def refused_operator(refusal: str) -> str:
    """The operator that a refusal names, or nothing."""
    named = re.search(r"\b(?:aten|torch_nn)\.(\w+)|\b(polygamma)\b", refusal)
    return (named[1] or named[2]) if named else ""


def _difference(found: list[Tensor], expected: list[Tensor]) -> str:
    """What is not torch's: number, type, shape, strides or values; nothing where all is."""
    if len(found) != len(expected):
        return f"{len(found)} results, not {len(expected)}"
    coarsest = max((BOUNDS.get(x.dtype, 0.0) for x in expected), default=0.0)
    for a, b in zip(found, expected, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        if a.layout != torch.strided or not a.numel():
            continue
        steps = [[s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in (a, b)]
        if steps[0] != steps[1]:
            return f"strides {a.stride()}, not {b.stride()}"
        bound = BOUNDS.get(b.dtype.to_real() if b.is_complex() else b.dtype)
        if bound is None:
            if not torch.equal(a, b):
                return "other values"
            continue
        bound = max(bound, coarsest)
        a, b = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (a, b))
        size = max(1.0, float(b.abs().nan_to_num(0, 0, 0).max()))
        if not torch.allclose(a, b, rtol=bound, atol=bound * size, equal_nan=True):
            off = (a - b).abs().nan_to_num(torch.inf)
            return f"off by {float(off.max()):.3g} of {size:.3g}"
    return ""


def _rounds(call: Call, expected: list[Tensor]) -> bool:
    """Whether the results are other ones where operands and results are of a wider type."""
    torch.set_default_dtype(torch.float64)
    try:
        wide = call(nullcontext, torch.float64)
    except Exception:
        return False  # torch does not compute it there
    finally:
        torch.set_default_dtype(torch.float32)
    return any(
        a.shape == b.shape
        and (a.is_floating_point() or a.is_complex())
        and not torch.equal(*(x.to(torch.complex128).nan_to_num(7) for x in (a, b)))
        for a, b in zip(expected, wide, strict=False)
    )
