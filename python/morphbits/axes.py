"""Axes of voxels: their order and direction, named as in "RAS" and "LIA".

The letters say where the first, second and third voxel axis point: right or left, anterior or
posterior, superior or inferior. An oblique grid has the name of the closest upright one.

Axes: X Y Z voxels, V the three components of a warp. Affines take voxel indices to RAS mm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
#: All 48 names.
NAMES = tuple(
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
)
_DIGITS = 5  # of cosines that decide between two names: headers hold seven


@dataclass(frozen=True)
class Turn:
    """Another order and direction of axes: axis k of the result is axis `axes[k]` of what is
    given, backwards where `flips[k]`. Nothing is interpolated."""

    axes: tuple[int, ...] = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)

    def array(self, given: NDArray[Any]) -> NDArray[Any]:
        """A volume (X, Y, Z[, …]) in the new axes."""
        turned = given.transpose(*self.axes, *range(3, given.ndim))
        return np.ascontiguousarray(turned[self._slices()])

    def affine(self, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The affine of such a volume; `shape` is that of what is given."""
        turned = np.array(affine, dtype=np.float64)
        for k, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            column = affine[:3, axis]
            turned[:3, k] = -column if flip else column
            if flip and affine.shape[1] > 3:
                turned[:3, 3] += column * (shape[axis] - 1)
        return turned

    def array_back(self, turned: NDArray[Any]) -> NDArray[Any]:
        """A volume in the new axes, as it was given."""
        back = turned[self._slices()].transpose(*np.argsort(self.axes), *range(3, turned.ndim))
        return np.ascontiguousarray(back)

    def warp_back(self, turned_XYZV: NDArray[Any]) -> NDArray[Any]:
        """A warp in voxels along the new axes, in voxels along those that were given."""
        back = np.empty_like(turned_XYZV)
        for k, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            back[..., axis] = -turned_XYZV[..., k] if flip else turned_XYZV[..., k]
        return self.array_back(back)

    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)


_TURNS = tuple(
    Turn(axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
)


def name_of(affine: NDArray[np.float64]) -> str:
    """The name of a grid's axes: that of the upright grid with the largest sum of cosines.

    Several can be equally close (45°); then where the axes point decides, which does not depend on
    the order and direction in which a file has them.
    """
    cosines = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))

    def closeness(turn: Turn) -> tuple[float, ...]:
        columns = turn.affine(cosines, (1, 1, 1))
        return tuple(round(float(c), _DIGITS) for c in (np.trace(columns), *columns.flat))

    to_ras = max(_TURNS, key=closeness)
    name = dict(zip(to_ras.axes, map(_letter, "RAS", to_ras.flips), strict=True))
    return "".join(name[axis] for axis in range(3))


def turn_to(affine: NDArray[np.float64], name: str) -> Turn:
    """What brings a grid's axes closest to those of `name`."""
    own = name_of(affine)
    flips = tuple(letter not in own for letter in name)
    return Turn(tuple(map(own.index, map(_letter, name, flips))), flips)


def _letter(letter: str, flip: bool) -> str:
    return _OPPOSITE[letter] if flip else letter
