"""Linear sampling of volumes and its derivatives, unperturbed, with the bytes of torch's operator
in half of its time: for trainings in which nothing is perturbed.

B batch, C channels, X Y Z voxels of the image, D H W grid of the points, V their coordinates as
`grid_sample` takes them (corner voxels at -1 and 1); float32. Outside the image its border
goes on.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from morphbits.engines.native.kernels.build import library_path
from morphbits.engines.native.kernels.library import load

_I64, _PTR = ctypes.c_int64, ctypes.c_void_p


class _Call(ctypes.Structure):
    _fields_ = (
        ("channels", _I64),
        ("points", _I64),
        ("size", _I64 * 3),
        *(
            (name, _PTR)
            for name in ("image", "place", "gradient", "value", "to_image", "to_place")
        ),
    )


@cache
def _available() -> bool:
    """Whether the kernels were compiled, and for x86-64: on other processors torch's compiler may
    have fused multiplications and additions, which gives other bytes."""
    return platform.machine() in ("x86_64", "AMD64") and library_path().exists()


def takes(image: Tensor, points: Tensor) -> bool:
    """Whether the kernel supports image (B, C, X, Y, Z) and points (B, D, H, W, V)."""
    return (
        all(x.is_cpu and x.dtype == torch.float32 and x.numel() for x in (image, points))
        and image.dim() == 5
        and image[0, 0].numel() < 2**31
        and _available()
    )


def sampled(image_BCXYZ: Tensor, points_BDHWV: Tensor) -> Tensor:
    """The image at the points (B, C, D, H, W)."""
    batch, channels = image_BCXYZ.shape[:2]
    value = points_BDHWV.new_empty((batch, channels, *points_BDHWV.shape[1:4]))
    _call(image_BCXYZ, points_BDHWV, value=value)
    return value


def gradients(
    image_BCXYZ: Tensor, points_BDHWV: Tensor, gradient_BCDHW: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of image and points from that of the values, as far as they are wanted."""
    to_image = image_BCXYZ.new_zeros(image_BCXYZ.shape) if wanted[0] else None
    to_place = points_BDHWV.new_empty(points_BDHWV.shape) if wanted[1] else None
    out = {"gradient": gradient_BCDHW, "to_image": to_image, "to_place": to_place}
    _call(image_BCXYZ, points_BDHWV, **out)
    return to_image, to_place


def _call(image_BCXYZ: Tensor, points_BDHWV: Tensor, **tensors: Tensor | None) -> None:
    given = {"image": image_BCXYZ, "place": points_BDHWV, **tensors}
    whole = {name: x.contiguous() for name, x in given.items() if x is not None}
    for one in range(len(image_BCXYZ)):
        call = _Call(
            channels=image_BCXYZ.shape[1],
            points=points_BDHWV[0, ..., 0].numel(),
            size=tuple(image_BCXYZ.shape[2:]),
            **{name: x[one].data_ptr() for name, x in whole.items()},
        )
        load().morphbits_plain_sampling(ctypes.byref(call))
