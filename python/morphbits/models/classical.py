"""The classical registration (`models.classical_torch`) as a model: `MODEL=classical`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morphbits.models.on_network_grid import OnNetworkGrid

NAME = "classical"


@dataclass(frozen=True)
class Classical(OnNetworkGrid):
    """Affine and deformable registration by gradient descent; it reads no file. Blocks of voxels
    are averaged along the fixed file's axes."""

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def identity(self, checksum: Callable[[Path], str]) -> dict[str, Any]:
        """Its schedule, and the axes that images are brought into."""
        from morphbits.models.classical_torch import Schedule

        schedule = {key: str(value) for key, value in asdict(Schedule()).items()}
        axes = self._orientation or "fixed"
        return {"model": NAME, "model_orientation": axes, "schedule": schedule}

    @property
    def stages(self) -> frozenset[str]:
        from morphbits.models.classical_torch import Schedule

        parts = (("affine", Schedule().affine), ("deformable", Schedule().deformable))
        levels = [f"{part}-{level}" for part, of in parts for level, _ in of]
        return self.fewer_bits | {"affine", "deformable", *levels}

    @property
    def fewer_bits(self) -> frozenset[str]:
        from morphbits.models.classical_torch import Schedule

        squarings = [f"squaring-{k}" for k in range(1, Schedule().squarings + 1)]
        return frozenset(("integration", *squarings, "sampling"))

    def in_words(self) -> str:
        return "classical: affine and deformable, by gradient descent on the images (no network)"

    def network(self) -> Any:
        from morphbits.models.classical_torch import Classical, Schedule

        return Classical(Schedule())

    def multiplications(self, voxels: int) -> None:
        """Hardly any of its operations are a convolution's, whose speed is known."""

    def memory(self, voxels: int, engine: str) -> int:
        """The process, and what autograd keeps of an iteration on the finest level."""
        return 400_000_000 + 4 * 450 * voxels
