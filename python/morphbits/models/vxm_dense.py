"""SynthMorph of 2022, from a voxelmorph `.h5` file, as a model of the suite (`models.model`)."""

from __future__ import annotations

import filecmp
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from morphbits import images
from morphbits.config import DEMO_MODEL
from morphbits.images import Image
from morphbits.models.on_network_grid import OnNetworkGrid
from morphbits.models.weights import model_orientation, read_architecture

# Litres that a head has, and no brain. Extracted brains: two scans 1.6 and 2.0 (extracted
# loosely), 35 phantoms 1.7 to 2.0, the MNI152 template 1.9; made heads with a neck: 2.9 to 3.3.
LARGEST_BRAIN = 2.4


@dataclass(frozen=True)
class VxmDense(OnNetworkGrid):
    """The network in the file `path`."""

    frameworks: ClassVar[tuple[str, ...]] = ("torch", "tensorflow")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def _orientation(self) -> str:
        return model_orientation(self.path, self.config.model_orientation)

    @property
    def _multiple(self) -> int:
        """More where a network has more than four levels."""
        return max(images.MULTIPLE, read_architecture(self.path).multiple)

    def identity(self, checksum: Callable[[Path], str]) -> dict[str, Any]:
        """The file's checksum, and the axes that images are brought into for it."""
        return {"model": checksum(self.path), "model_orientation": self._orientation or "fixed"}

    @property
    def stages(self) -> frozenset[str]:
        architecture = read_architecture(self.path)
        parts = (("encoder", architecture.enc), ("decoder", architecture.dec))
        convolutions = [f"{part}-{k}" for part, of in parts for k in range(1, len(of) + 1)]
        squarings = [f"squaring-{k}" for k in range(1, architecture.int_steps + 1)]
        others = ("network", "flow", "integration", "rescaling", "sampling")
        return frozenset((*convolutions, *squarings, *others))

    def in_words(self) -> str:
        count = read_architecture(self.path).parameters()
        axes = self._orientation
        lie = (
            f"trained in axes {axes}" if axes else "in the fixed image's axes (MODEL_ORIENTATION=)"
        )
        return f"{self.path}, {count:,} parameters, {lie}"

    def doubt(self, image: Image) -> str:
        """The demo model knows extracted brains, not whole heads."""
        if not _is_demo(self.path) or (volume := images.litres(image)) <= LARGEST_BRAIN:
            return ""
        return (
            f"warning: {volume:.1f} litres of it are brighter than its background, so this seems "
            "to be a whole head; the demo model registers extracted brains only (make preprocess)"
        )

    def network(self) -> Any:
        return _network(self.path, os.stat(self.path).st_mtime_ns)

    def multiplications(self, voxels: int) -> int:
        return read_architecture(self.path).multiplications(voxels)

    def memory(self, voxels: int, engine: str) -> int:
        """The process, and float32 values per voxel of the grid.

        The widest moment is the first convolution's output, which the framework's own kernels hold
        twice (their layout and torch's), or else the sampling of warps. Measured at 160×192×224:
        first layer 16 wide 1.83 GB (both), 64 wide 2.89 GB (native) and 3.98 GB (torch), 256 wide
        9.36 GB (native). There the pooling needs most: the features, an eighth of them, and twice
        that for its indices.
        """
        width = read_architecture(self.path).enc[0]
        native = max(width + 26, width + width * 3 // 8 + 2)
        convolution = native if engine == "native" else 2 * width + 4
        return 400_000_000 + 4 * voxels * max(convolution, 52)


@functools.cache
def _is_demo(model: Path) -> bool:
    return filecmp.cmp(model, DEMO_MODEL, shallow=False)


@functools.lru_cache(maxsize=1)
def _network(path: Path, modified: int) -> Any:
    from morphbits.models.synthmorph_torch import SynthMorph

    return SynthMorph.load(path).eval()
