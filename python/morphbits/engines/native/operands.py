"""What a tensor must be that a kernel reads: real numbers of a dense array in memory.

Classes with a dispatch of their own (DTensor and other wrappers) are asked first: an operator on
them becomes operators on their parts, which are perturbed. What else has no such memory is refused
by name, before a pointer is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from morphbits.engines.native.rules.registry import is_floating, onednn
from morphbits.errors import UserError

_TRACERS = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)
DEVICES = ("cpu", "cuda")


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
