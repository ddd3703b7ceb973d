"""A float64 shadow of what torch computes: the error of one execution, and where it arises.

Every floating-point tensor has a second one in float64, to which the same operators are applied.
Where the program decides (ReLU, max-pool, floor, a comparison), the shadow follows what the
program's own numbers decide; the difference of the two is then the rounding error of this one
execution, as the numbers went. Method: shadow values, as in FpDebug (Benz, Hildebrandt & Hack,
PLDI 2012), Herbgrind (arXiv 1705.10416) and NSan (arXiv 2102.12782).

A shadow belongs to a storage: views, and what is written into them, need nothing of their own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from morphbits import stages
from morphbits.engines.decisions import base_name, decided, from_operands, kind_of
from morphbits.engines.native.rules.registry import RULES, short_name

BITS = 24  # of float32
COLUMNS = 1 << 28  # bytes that a convolution in float64 may take for its copies
SLOPE = float(np.float32(0.01))  # of leaky_relu, unless given
REFLECTION = 2  # of a sampler's paddings
ALL = BITS + 1  # the place in a histogram of sums that are 0, of terms that are not
_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_ADDITIONS = frozenset(("add", "sub", "rsub"))
_CHECKED = _ADDITIONS | {"mul", "div", "sqrt"}
_SUMS = frozenset(
    "addmm addmv avg_pool2d avg_pool3d baddbmm bmm convolution dot mean mm mv sum".split()
)
# whose result is one of whole numbers, or jumps: the shadow has the program's
_JUMPS = frozenset("floor ceil trunc round sign sgn heaviside lt le gt ge eq ne".split())
# whose result is the operand or a constant
_SELECT = frozenset("relu relu6 threshold clamp clamp_min clamp_max hardtanh".split())
_BEND = frozenset("leaky_relu prelu _prelu_kernel".split())


def _histogram() -> np.ndarray:
    return np.zeros(ALL + 1, np.int64)


@dataclass
class Counts:
    """What was counted in one stage: elements, not calls.

    additions: of two tensors or of a tensor and a number, and subtractions. lost: of these, by the
    bits that cancelled: exponent of the larger operand less that of the result, 0 to 24; in the
    last place those whose result is 0 and whose operands are not.
    sums: results of convolutions, products of matrices, sums, means. sums_lost: of these, by
    log2(Σ|terms| / |Σ terms|), rounded down.
    results: of all operators that round. subnormal: of these.
    operations: additions, multiplications, divisions and square roots, element by element. exact:
    of these, those whose result needs no rounding.
    decisions, flipped: by kind; those that the shadow would take otherwise.
    """

    additions: int = 0
    lost: np.ndarray = field(default_factory=_histogram)
    sums: int = 0
    sums_lost: np.ndarray = field(default_factory=_histogram)
    results: int = 0
    subnormal: int = 0
    operations: int = 0
    exact: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    flipped: Counter[str] = field(default_factory=Counter)


class Shadow(TorchDispatchMode):
    """While it is active, floating-point tensors have shadows, and `counts` grows by stage.

        >>> with Shadow() as shadow:
        ...     third = torch.ones(1) / 3
        >>> shadow.of(third).item() == 1 / 3, third.item() == 1 / 3
        (True, False)

    Entered inside of a region of `random_rounding`, it shadows what the region computes. Numbers
    written in the program (0.2) are the float32 ones that it computes with; random numbers, and
    what is read from outside, are exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self.unshadowed: Counter[str] = Counter()
        """calls of operators that float64 cannot follow: their results are taken as exact"""
        self._kept: dict[int, tuple[StorageWeakRef, Tensor, torch.dtype]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The shadow of a tensor; its own values, where nothing rounded was computed."""
        with no_dispatch():
            return self._of(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = _floating((args, kwargs))
        if not given:  # a source: its numbers are the program's input
            return func(*args, **kwargs)
        with no_dispatch():
            # of float32 numbers those that the program writes are float32 ones
            rounded = any(x.dtype in _NARROW for x in given)
            wide_args, wide_kwargs = tree_map(lambda x: self._widened(x, rounded), (args, kwargs))
            written = _written(func, args, kwargs)
            before = args
            if written and written[0] is args[0]:
                before = (args[0].clone(), *args[1:])
            kind = kind_of(func, args)
        result = func(*args, **kwargs)
        with no_dispatch():
            results = _floating(result)
            new = [x for x in results if self._entry(x) is None]
            if not (new or written or kind):  # a view
                return result
            counts = self.counts["".join(stages.current()[-1:])]
            if short_name(func) in RULES:
                _count(counts, func, before, kwargs, results or written)
            if kind is not None:
                exact = None
                if not from_operands(func, kind):
                    first = wide_args[0].clone() if written else wide_args[0]
                    exact = func(first, *wide_args[1:], **wide_kwargs)
                own, other = decided(func, before, result), decided(func, wide_args, exact)
                counts.decisions[kind] += own.numel()
                counts.flipped[kind] += int((own != other).sum())
            shadows = self._shadows(func, before, result, wide_args, wide_kwargs, written)
            for x, shadow in zip(results, shadows, strict=True):
                if any(x is other for other in new):
                    self._keep(x, shadow)
        return result

    def _shadows(
        self, func: Any, before: Any, result: Any, args: Any, kwargs: Any, written: list[Tensor]
    ) -> list[Tensor]:
        """The operator's results in float64; what it writes into is written."""
        name = base_name(func)
        outputs = _floating(result)
        try:
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise NotImplementedError
            if name in _JUMPS or kwargs.get("rounding_mode"):
                values = outputs[0].to(torch.float64) if outputs else None
            elif name in _SELECT:
                values = outputs[0].to(torch.float64)
                selected = list(zip(_floating(before), _floating(args), strict=True))
                for own, exact in reversed(selected):  # the first is taken where several are alike
                    values = torch.where(own == outputs[0], exact, values)
            elif name in _BEND:
                slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", SLOPE)
                values = torch.where(before[0] > 0, args[0], args[0] * slope)
            elif kind_of(func, before) == "max-pool" and outputs:
                indices = result[1]
                space = 3 if "3d" in name else 2
                flat = args[0].flatten(-space).gather(-1, indices.flatten(-space))
                values = flat.view(indices.shape)
            elif name == "convolution":
                values = _convolution(func, *args)
            elif kind_of(func, before) == "nearest":
                values = _nearest(func, before, args)
            else:
                shadows = _floating(func(*args, **kwargs))
                if len(shadows) != len(outputs):
                    raise NotImplementedError
                return shadows
            if written and values is not None:
                args[0].copy_(values)
            return [] if values is None else [values]
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            self.unshadowed[str(func.overloadpacket.__name__)] += 1
            for x in written:
                self._keep(x)
            return [x.to(torch.float64) for x in outputs]

    def _widened(self, x: Any, rounded: bool) -> Any:
        if isinstance(x, Tensor):
            return self._of(x) if _is_floating(x) else x
        if isinstance(x, torch.dtype):
            return _WIDE.get(x, x)
        return float(np.float32(x)) if rounded and isinstance(x, float) else x

    def _of(self, tensor: Tensor) -> Tensor:
        entry = self._entry(tensor)
        flat = self._keep(tensor) if entry is None else entry
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _entry(self, tensor: Tensor) -> Tensor | None:
        """The shadow of the tensor's storage."""
        storage = tensor.untyped_storage()
        entry = self._kept.get(storage._cdata)
        if entry is None or entry[2] != tensor.dtype:
            return None
        return entry[1] if entry[1].numel() == _elements(tensor) else None

    def _keep(self, tensor: Tensor, values: Tensor | None = None) -> Tensor:
        """Give the tensor's storage a shadow with these values, or with the tensor's own."""
        # the address of a storage is not taken again while a weak reference to it is kept
        for key in [key for key, (storage, *_) in self._kept.items() if storage.expired()]:
            del self._kept[key]
        wide = _WIDE.get(tensor.dtype, tensor.dtype)
        if values is not None and values.dtype == wide and _alike(tensor, values):
            flat = values.as_strided((values.numel(),), (1,), 0)
        else:
            whole = tensor.as_strided((_elements(tensor),), (1,), 0)
            flat = whole.to(wide, copy=True)
            if values is not None:
                shape = tensor.shape, tensor.stride(), tensor.storage_offset()
                flat.as_strided(*shape).copy_(values)
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = StorageWeakRef(storage), flat, tensor.dtype
        return flat


def _convolution(
    func: Any,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *rest: Any,
) -> Tensor:
    """A convolution in slabs along the first axis of space: torch's own in float64 copies each
    number once for every tap."""
    columns = image.numel() * weight[0, 0].numel() * image.element_size()
    parts = min(-(-columns // COLUMNS), image.shape[2])
    if transposed or parts == 1:
        return func(image, weight, bias, stride, padding, dilation, transposed, *rest)
    edge, *others = list(padding) * (1 if len(padding) > 1 else image.ndim - 2)
    border = image.new_zeros((*image.shape[:2], edge, *image.shape[3:]))
    padded = torch.cat([border, image, border], 2)
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    rows = (padded.shape[2] - reach) // stride[0] + 1
    step, results = -(-rows // parts), []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        slab = padded[:, :, start * stride[0] : (stop - 1) * stride[0] + reach]
        results.append(func(slab, weight, bias, stride, [0, *others], dilation, transposed, *rest))
    return torch.cat(results, 2)


def _nearest(func: Any, before: Sequence[Any], args: Sequence[Any]) -> Tensor:
    """A sampler of single voxels, at those that the program's coordinates decide."""
    image, _, mode, padding, corners = args
    if corners and padding == REFLECTION:  # about other places than without
        raise NotImplementedError
    voxels = decided(func, before, None).movedim(1, -1).to(torch.float64)
    size = torch.tensor(image.shape[:1:-1], dtype=torch.float64)
    return func(image, (2 * voxels + 1) / size - 1, mode, padding, False)  # type: ignore[no-any-return]


def _is_floating(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.layout is torch.strided
        and (x.dtype.is_floating_point or x.dtype.is_complex)
    )


def _floating(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if _is_floating(x)]


def _elements(tensor: Tensor) -> int:
    """Of the tensor's storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _alike(tensor: Tensor, values: Tensor) -> bool:
    """Whether both fill their storages, in one order."""
    return (
        tensor.stride() == values.stride()
        and tensor.storage_offset() == values.storage_offset() == 0
        and tensor.numel() == _elements(tensor) == _elements(values)
    )


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the operator writes into."""
    found = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _floating(value)
    for argument in func._schema.arguments[len(args) :]:
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _floating(kwargs.get(argument.name))
    return found


def _count(
    counts: Counts, func: Any, args: Any, kwargs: Mapping[str, Any], results: list[Tensor]
) -> None:
    """Add one call of an operator that rounds. `args` are its operands before it ran."""
    for result in results:
        if result.dtype in _NARROW:
            counts.results += result.numel()
            tiny = torch.finfo(result.dtype).tiny
            counts.subnormal += int(((result != 0) & (result.abs() < tiny)).sum())
    name = base_name(func)
    if not results or results[0].dtype not in _NARROW or kwargs.get("rounding_mode"):
        return
    if name in _SUMS:
        magnitudes = func(*tree_map(_magnitude, args), **kwargs)
        ratio = magnitudes.double() / results[0].double().abs()
        lost = ratio.clamp(1, 2.0**BITS).log2().floor().masked_fill(results[0] == 0, ALL)
        counts.sums += lost.numel()
        counts.sums_lost += _by_bits(lost.masked_fill(magnitudes == 0, 0))
    elif name in _CHECKED:
        operands = [_double(x) for x in args[:2]]
        result = results[0].double()
        if name in _ADDITIONS:
            alpha = _double(kwargs.get("alpha", args[2] if len(args) > 2 else 1))
            first, second = reversed(operands) if name == "rsub" else operands
            second = second * alpha if name == "add" else -second * alpha
            first, second = torch.broadcast_tensors(first, second)
            counts.additions += result.numel()
            counts.lost += _by_bits(_cancelled(first, second, result))
            exact = (result == first + second) & (_error_of_sum(first, second) == 0)
        elif name == "mul":  # of two 24-bit numbers, exact in float64
            exact = result == operands[0] * operands[1]
        elif name == "div":  # not within 2^-48 of a number of 24 bits unless it is one
            exact = result == operands[0] / operands[1]
        else:
            exact = result == operands[0].sqrt()
        counts.operations += result.numel()
        counts.exact += int(exact.sum())


def _double(x: Any) -> Tensor:
    """An operand as the operator has it: numbers of the program rounded to float32."""
    return x.double() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float32).double()


def _magnitude(x: Any) -> Any:
    return x.abs() if _is_floating(x) else x


def _cancelled(first: Tensor, second: Tensor, result: Tensor) -> Tensor:
    """Exponent of the larger operand less that of the result, 0 to BITS; ALL where nothing is
    left."""
    larger = torch.maximum(first.abs(), second.abs())
    lost = (larger.frexp().exponent - result.frexp().exponent).clamp(0, BITS)
    return lost.masked_fill(result == 0, ALL).masked_fill(larger == 0, 0)


def _error_of_sum(first: Tensor, second: Tensor) -> Tensor:
    """What a float64 sum loses (Møller and Knuth's two-sum)."""
    total = first + second
    part = total - first
    return (first - (total - part)) + (second - part)


def _by_bits(lost: Tensor) -> np.ndarray:
    return torch.bincount(lost.flatten().long(), minlength=ALL + 1).numpy()
