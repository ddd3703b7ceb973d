"""Decisions that a computation takes from its numbers: ReLU, max-pool, floor, nearest, less than.

An operator whose result jumps or bends where a number crosses a bound decides something of each
element. A rounding error may decide otherwise: the decision flips (CADNA and Shaman call a
comparison that the error can turn an unstable branching).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from morphbits import stages

KINDS = {
    "ReLU": "relu relu6 leaky_relu prelu _prelu_kernel threshold rrelu_with_noise",
    "max-pool": "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d "
    "adaptive_max_pool3d argmax argmin",
    "floor": "floor ceil trunc",
    "nearest": "round",
    "comparison": "lt le gt ge eq ne",
}
_KIND = {name: kind for kind, names in KINDS.items() for name in names.split()}
_SAMPLERS = ("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
_NEAREST = 1  # of grid_sampler's modes; the others take the voxels around floor


def base_name(func: Any) -> str:
    """An operator's name, without the _ of one that writes into its operand."""
    name = str(func.overloadpacket.__name__)
    return name if name.startswith("__") else name.removesuffix("_")


def kind_of(func: Any, args: Sequence[Any]) -> str | None:
    """What kind of decision the operator takes; None if it takes none."""
    name = base_name(func)
    if name in _SAMPLERS:
        return "nearest" if args[2] == _NEAREST else "floor"
    kind = _KIND.get(name)
    first = args[0] if args else None
    floating = isinstance(first, Tensor) and first.dtype.is_floating_point
    return kind if floating else None


def from_operands(func: Any, kind: str | None) -> bool:
    """Whether what it decides is seen in its operands, not in its result."""
    return kind == "ReLU" or (kind is not None and base_name(func) in _SAMPLERS)


def decided(func: Any, args: Sequence[Any], result: Any) -> Tensor:
    """What an operator that decides (`kind_of`) decided, an element each: a sign, an index or a
    whole number. `args` are its operands before it ran."""
    name = base_name(func)
    if name in _SAMPLERS:
        return _voxels(args[0], args[1], args[2] == _NEAREST, bool(args[4]))
    kind = _KIND[name]
    if kind == "ReLU":
        bound = args[1] if name == "threshold" else 0
        return torch.gt(args[0], bound)
    if name.startswith(("max_pool", "adaptive")):
        return result[1].to(torch.int32)
    return result.to(torch.bool if kind == "comparison" else torch.int32)


def _voxels(image: Tensor, grid: Tensor, nearest: bool, corners: bool) -> Tensor:
    """The voxel of which a sampler reads, or the lower one of those: (N, axis, *space)."""
    size = torch.tensor(image.shape[:1:-1], dtype=grid.dtype, device=grid.device)
    places = (grid + 1) / 2 * (size - 1) if corners else ((grid + 1) * size - 1) / 2
    return (places.round() if nearest else places.floor()).to(torch.int32).movedim(-1, 1)


class Decisions(TorchDispatchMode):
    """While it is active, `heard(stage, kind, decisions)` is told of every operator that decides.

    Entered inside of a region of `random_rounding`, it sees what the perturbed numbers decide.
    """

    def __init__(self, heard: Callable[[str, str, Tensor], None]) -> None:
        super().__init__()
        self._heard = heard

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kind = kind_of(func, args)
        early = from_operands(func, kind)
        if early:  # it may write into its operand
            with no_dispatch():
                found = decided(func, args, None)
        result = func(*args, **(kwargs or {}))
        if kind is not None:
            if not early:
                with no_dispatch():
                    found = decided(func, args, result)
            self._heard("".join(stages.current()[-1:]), kind, found)
        return result
