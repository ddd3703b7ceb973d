"""The weighted sum of the eight corners around a point, by which `models.spatial` samples volumes.

Computed in two programs where torch's operators are forty, each with a pass over memory: the same
elementary operations, with the same random bits, counted under the same names.

Arrays: C channels, N voxels of the volume, X Y Z points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch

from morphbits.engines.native.kernels import program
from morphbits.engines.native.kernels.program import Recorder, computed
from morphbits.engines.native.rules.context import Context

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]  # along X, Y, Z: of lower corner and upper


def corners(
    context: Context,
    volume_CN: torch.Tensor,
    indices: Pairs,
    weights: Pairs,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """The volume at the points (C, X, Y, Z): see `models.spatial._interpolate`; NotImplemented
    where the operations cannot be recorded.

    indices: int64, into N; weights: of the volume's type; both broadcast to `shape` (X, Y, Z).
    """
    like, dtype = context.unkeyed, volume_CN.dtype
    if not program.takes(like, volume_CN, *(x for pair in weights for x in pair)):
        return NotImplemented
    whole, recorder = (len(volume_CN), *shape), Recorder(context.start)
    points, places, draws = [], [], []
    for x, y, z in product((0, 1), repeat=3):
        first, second = (context.draw(name, prod(shape)) for name in ("mul", "mul_"))
        draws.append([context.draw(name, prod(whole)) for name in ("mul_", "add_")])
        weight = weights[0][x], weights[1][y]
        plane = recorder.operation(like, first, "mul", dtype, shape, *weight)
        points.append(recorder.operation(like, second, "mul", dtype, shape, plane, weights[2][z]))
        places.append((indices[0][x] + indices[1][y] + indices[2][z]).expand(shape).reshape(-1))
        del plane
    recorder.run()
    total: Any = None
    for weight_XYZ, index_N, (first, second) in zip(points, places, draws, strict=True):
        value_CXYZ = volume_CN.index_select(1, index_N).view(whole)
        operands = value_CXYZ, computed(weight_XYZ)
        term = recorder.operation(like, first, "mul", dtype, whole, *operands)
        sum_of = (term, 0) if total is None else (total, term)  # as TensorFlow adds the first
        total = recorder.operation(like, second, "add", dtype, whole, *sum_of)
        del term
    del sum_of
    recorder.run()
    return total.tensor()
