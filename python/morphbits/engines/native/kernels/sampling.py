"""Linear sampling of an image at points, and its derivatives, in one call into C.

What is drawn for it, and in which order, is written in csrc/sampling.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from morphbits.engines.native.kernels import plans, program
from morphbits.engines.native.kernels.library import TYPES, Rounding, check_status, load
from morphbits.engines.native.kernels.precision import FLOAT32

T = torch.Tensor
Counts = tuple[int, int]  # numbers of draws and of elementary operations
_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Sampling(ctypes.Structure):
    _fields_ = (
        *((name, _I32) for name in ("type", "dims", "aligned", "border")),
        *((name, _I64) for name in ("start", "channels", "points")),
        ("size", _I64 * 3),
        *((name, _PTR) for name in ("image", "place", "gradient")),
        *((name, _PTR) for name in ("value", "to_image", "to_place", "count")),
    )


@dataclass(frozen=True)
class Sampling:
    """An image (channels, voxels) of `size` along its axes, and points (points, axes) in it."""

    rounding: Rounding
    image_CN: T
    grid_MV: T
    size: Sequence[int]
    padding: str
    align: bool

    def has_kernel(self) -> bool:
        """Whether the kernel computes this; elsewhere the rule does it operation by operation."""
        return (
            program.takes(self.rounding, self.image_CN, self.grid_MV)
            and self.rounding.format == FLOAT32
            and self.padding != "reflection"
            and prod(self.size) < 2**31
            and max(self.size) < 2**24  # whole numbers of float32
        )

    def values(self, start: int) -> tuple[T, Counts]:
        """The image at the points (channels, points). start: number of the first draw in the
        random stream."""
        out = self.image_CN.new_empty((len(self.image_CN), len(self.grid_MV)))
        return out, self._call(start, value=out)

    def gradients(
        self, start: int, gradient_CM: T, wanted: Sequence[bool]
    ) -> tuple[T | None, T | None, Counts]:
        """The gradients of image and points from that of the values, as far as they are wanted."""
        to_image = self.image_CN.new_zeros(self.image_CN.shape) if wanted[0] else None
        to_grid = self.grid_MV.new_empty(self.grid_MV.shape) if wanted[1] else None
        out = {"gradient": gradient_CM.contiguous(), "to_image": to_image, "to_place": to_grid}
        return to_image, to_grid, self._call(start, **out)

    def _call(self, start: int, **tensors: T | None) -> Counts:
        counts = (_I64 * 2)()
        plans.refuse()  # how many draws there are depends on the points
        image, grid = self.image_CN.contiguous(), self.grid_MV.contiguous()
        given = {"image": image, "place": grid, **tensors}
        arguments = _Sampling(
            type=TYPES[image.dtype],
            dims=len(self.size),
            aligned=self.align,
            border=self.padding == "border",
            start=start,
            channels=len(image),
            points=len(grid),
            size=(*self.size, 1)[:3],
            count=ctypes.addressof(counts),
            **{name: None if x is None else x.data_ptr() for name, x in given.items()},
        )
        function = load().morphbits_sampling
        check_status(function(ctypes.byref(self.rounding.as_c()), ctypes.byref(arguments)))
        return counts[0], counts[1]
