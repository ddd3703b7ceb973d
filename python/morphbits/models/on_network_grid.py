"""What models have in common whose images are prepared by `images.prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

from morphbits import images
from morphbits.config import Arithmetic
from morphbits.images import Image, NetworkGrid, Prepared


@dataclass(frozen=True)
class OnNetworkGrid:
    """A part of a `models.model.Model`, computed by torch on a grid around the fixed image's."""

    path: Path
    config: Arithmetic
    frameworks: ClassVar[tuple[str, ...]] = ("torch",)

    @property
    def _orientation(self) -> str:
        """The axes that images are brought into; "" for the fixed file's."""
        asked = self.config.model_orientation
        return "" if asked in ("auto", "fixed") else asked

    @property
    def fewer_bits(self) -> frozenset[str] | None:
        return None

    @property
    def _multiple(self) -> int:
        """Of voxels, that the grid is along each axis."""
        return images.MULTIPLE

    def doubt(self, image: Image) -> str:
        return ""

    def prepare(self, moving: Image, fixed: Image) -> Prepared:
        """See `images.prepare`."""
        return images.prepare(
            moving,
            fixed,
            self.config.align,
            self.config.crop,
            self._orientation,
            self._multiple,
        )

    def voxels(self, fixed_shape: tuple[int, ...]) -> int:
        return prod(NetworkGrid.around(fixed_shape, multiple=self._multiple).size)
