"""What a tensor must be that a kernel reads: real numbers of a dense array in memory.

Classes with a dispatch of their own (DTensor and other wrappers) are asked first: an operator on
them becomes operators on their parts, which are perturbed. What else has no such memory is refused
by name, before a pointer is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import copysign
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from morphbits.engines.native.rules.registry import is_floating, onednn
from morphbits.errors import UserError

_TRACERS = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)
DEVICES = ("cpu", "cuda")

_FLOATING = frozenset([torch.float32, torch.float64])
_REAL = _FLOATING | {torch.float16, torch.bfloat16}
_WHOLE = frozenset([torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64])
_PLAIN_NUMBERS = frozenset([int, float, bool, type(None), str])
_keys = torch._C._dispatch_keys
_dense: set[int] = set()  # sets of dispatch keys of plain dense tensors in the CPU's memory


def leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments, and what is in those that are lists."""
    found: list[Any] = []
    for x in (*args, *kwargs.values()):
        if type(x) is list or type(x) is tuple:
            if any(isinstance(y, list | tuple | dict) for y in x):
                return tree_leaves((args, kwargs))
            found.extend(x)
        elif isinstance(x, dict):
            return tree_leaves((args, kwargs))
        else:
            found.append(x)
    return found


class Described:
    """A call of an operator. kind: all on which the steps of its rule depend, except the region's
    options; tensors: the operands, each once; addresses: theirs; floating: whether one of them has
    floating-point numbers.
    """

    __slots__ = ("addresses", "floating", "kind", "tensors")

    def __init__(self, func: Any) -> None:
        self.kind: list[Any] = [func, torch.get_default_dtype()]
        self.tensors: list[torch.Tensor] = []
        self.addresses: list[int] = []
        self.floating = False

    def enter(self, x: Any) -> bool:
        """Add an argument; False if it is no number, and no plain dense tensor in memory."""
        if isinstance(x, torch.Tensor):
            keys, dtype = _keys(x).raw_repr(), x.dtype
            if keys not in _dense and not _is_dense(x, keys):
                return False
            address, shape = x.data_ptr(), x.shape
            if not address and x.numel():
                return False
            if dtype in _REAL:
                self.floating = True
            elif dtype not in _WHOLE:
                return False
            self.kind += (shape, x.stride(), dtype)
            self.tensors.append(x)
            self.addresses.append(address)
            return True
        kind = type(x)
        if kind is float:
            self.kind += (kind, x, copysign(1, x))
        elif kind in _PLAIN_NUMBERS or (kind is torch.dtype and x in _REAL):
            self.kind += (kind, x)
        elif kind is list or kind is tuple:
            self.kind += (kind, len(x))
            return all(map(self.enter, x))
        else:
            return False
        return True


def described(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Described | None:
    """The call, if its tensors are dense and real, in the CPU's memory, of floating-point numbers,
    whole numbers or booleans, its other arguments are numbers or types, and torch is not tracing;
    otherwise None."""
    call = Described(func)
    for x in args:
        if not call.enter(x):
            return None
    for name, x in kwargs.items():
        call.kind.append(name)
        if not call.enter(x):
            return None
    for key in _TRACERS:
        if torch._C._get_dispatch_mode(key) is not None:
            return None
    numbers = [*map(id, call.tensors)]
    if len(numbers) > 1 and len(each := list(dict.fromkeys(numbers))) < len(numbers):
        call.kind.append(tuple(map(each.index, numbers)))
        places = [*map(numbers.index, each)]
        call.tensors = [call.tensors[n] for n in places]
        call.addresses = [call.addresses[n] for n in places]
    return call


def plain_types(given: Iterable[Any]) -> set[torch.dtype] | None:
    """The types of the tensors, if these are dense, real, of float32 or float64 or of whole
    numbers, and in memory of the CPU, everything else is a number, and nothing is recorded by
    torch; else None. What holds here need not be asked one by one."""
    types = set()
    for x in given:
        if isinstance(x, torch.Tensor):
            keys = _keys(x).raw_repr()
            if keys not in _dense and not _is_dense(x, keys):
                return None
            if not x.data_ptr() and x.numel():
                return None
            types.add(x.dtype)
        elif type(x) not in _PLAIN_NUMBERS:
            return None
    if not types <= _FLOATING and not types <= _FLOATING | _WHOLE:
        return None
    for key in _TRACERS:
        if torch._C._get_dispatch_mode(key) is not None:
            return None
    return types


def _is_dense(x: torch.Tensor, keys: int) -> bool:
    """Whether these dispatch keys are those of a plain dense tensor."""
    special = x.is_nested or x.is_quantized or x.is_mkldnn or x._is_zerotensor()
    special = special or x.is_conj() or x.is_neg() or x.is_meta
    if special or x.layout != torch.strided or x.device.type != "cpu":
        return False
    if wrappers([type(x)]):
        return False
    _dense.add(keys)
    return True


def wrappers(types: Iterable[type]) -> list[type]:
    """Of the operands' types, those with a dispatch of their own."""
    none = torch._C._disabled_torch_dispatch_impl
    return [kind for kind in types if getattr(kind, "__torch_dispatch__", none) is not none]


def without_values(kinds: Sequence[type]) -> bool:
    """Whether these wrappers have shapes alone and nothing is recorded."""
    recorded = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    return FakeTensor in kinds and not recorded


def hold_no_values(func: Any, given: Iterable[Any], device: Any = None) -> bool:
    """Whether an operator works on shapes alone, or makes (on `device`) what has no more;
    UserError if on values that the kernels cannot read, or for a record of it."""
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    floating = [x for x in tensors if is_floating(x)]
    if floating and all(x.is_meta for x in floating):
        return True
    if device is not None and torch.device(device).type == "meta":
        return True
    if any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS):
        raise UserError(
            f"the native engine has no rule for {func} while torch traces it (make_fx, "
            "torch.export, torch.func.linearize): its kernels would be missing in the trace; "
            "trace before, and run what was traced inside"
        )
    refuse_unreadable(func, tensors)
    return False


def refuse_kinds(func: Any, given: Iterable[Any]) -> None:
    """UserError for nested and quantized tensors, which torch's own code may take apart."""
    for x in (x for x in given if isinstance(x, torch.Tensor)):
        for kind in ("nested", "quantized"):
            if getattr(x, f"is_{kind}"):
                raise UserError(f"the native engine has no rule for {func} on {kind} tensors")


def refuse_unreadable(func: Any, tensors: Sequence[torch.Tensor]) -> None:
    """UserError unless each tensor is a dense array in memory that is its own."""
    refuse_kinds(func, tensors)
    for x in tensors:
        if x.is_mkldnn:
            raise onednn()
        if x.layout != torch.strided or x.device.type not in DEVICES:
            kind = x.layout if x.layout != torch.strided else f"{x.device.type} (device)"
            raise UserError(f"the native engine has no rule for {func} on {kind} tensors")
        if x.numel() and not x.data_ptr() and not x._is_zerotensor():
            raise UserError(
                f"the native engine was given a tensor for {func} whose memory was given back "
                "(its storage was resized to 0, as FSDP does)"
            )
