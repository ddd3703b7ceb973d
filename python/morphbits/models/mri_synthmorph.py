"""SynthMorph of FreeSurfer 8 (`mri_synthmorph`) as models of the suite (`models.model`).

``joint``, ``affine``, ``rigid`` and ``deform`` are its `-m` options. The weights lie in a folder:
the model's path is that folder and the name, ``/opt/freesurfer/models/joint``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from morphbits import bids
from morphbits.config import Arithmetic
from morphbits.errors import UserError
from morphbits.images import Image, Prepared
from morphbits.models import keras_files, network_space
from morphbits.models.keras_files import Layers

AFFINE, RIGID = "synthmorph.affine.2.h5", "synthmorph.rigid.1.h5"
DEFORM = "synthmorph.deform.3.h5"
FILES = {"joint": (AFFINE, DEFORM), "affine": (AFFINE,), "rigid": (RIGID,), "deform": (DEFORM,)}
LEVELS = 4  # of pooling, in the affine network
SQUARINGS = 7  # of the velocity field


def located(name: str) -> Path:
    """The model of this name, in the first folder that has its weights: that of `make models` or
    FreeSurfer's; the former where none has."""
    folders = [bids.models_folder(Path("data"))]
    if home := os.environ.get("FREESURFER_HOME"):
        folders.append(Path(home, "models"))
    whole = [folder for folder in folders if all((folder / f).is_file() for f in FILES[name])]
    return [*whole, *folders][0] / name


@dataclass(frozen=True)
class MriSynthMorph:
    """The model `path.name` with weights in the folder `path.parent`."""

    path: Path
    config: Arithmetic
    frameworks: ClassVar[tuple[str, ...]] = ("torch",)

    def __post_init__(self) -> None:
        for name in ("align", "crop", "model_orientation"):
            if getattr(self.config, name) != Arithmetic.__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name.replace('_', '-')} does nothing with model {self.path.name}, which "
                    "resamples both images about their centres as mri_synthmorph does: leave it "
                    "out"
                )

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.path.parent / name for name in FILES[self.path.name])

    @property
    def _deforms(self) -> bool:
        return self.path.name in ("joint", "deform")

    @property
    def _affine(self) -> Layers | None:
        return None if self.path.name == "deform" else keras_files.affine_layers(self.files[0])

    @property
    def _deform(self) -> Layers | None:
        if not self._deforms:
            return None
        return keras_files.specialized(self.files[-1], self.config.regularization)

    def identity(self, checksum: Callable[[Path], str]) -> dict[str, Any]:
        """Its name and options, and checksums of the numbers of its networks (the hypernetwork's
        output, not the file of 3.5 GB)."""
        parts = {"affine": self._affine, "deform": self._deform}
        found = {f"{name}_weights": keras_files.digest(x) for name, x in parts.items() if x}
        regularization = {"regularization": self.config.regularization} if self._deforms else {}
        return {"model": self.path.name, "extent": self.config.extent, **regularization, **found}

    @property
    def stages(self) -> frozenset[str]:
        names = {"composition"}
        if self._affine:
            names |= {"affine", "fit"}
        if self._deforms:
            names |= {"rescaling"}
        if self._affine and self._deforms:
            names |= {"mid-space", "moving-halfway", "fixed-halfway"}
        return self.fewer_bits | names

    @property
    def fewer_bits(self) -> frozenset[str]:
        names = ["sampling"]
        if affine := self._affine:
            names += ["moving-features", "fixed-features"]
            names += [
                f"{role}-{k + 1}" for role in ("moving", "fixed") for k in range(len(affine))
            ]
        if deform := self._deform:
            levels = (len(deform) - 1) // 3
            layers = [f"encoder-{k + 1}" for k in range(levels)]
            layers += [f"decoder-{k + 1}" for k in range(len(deform) - levels - 1)]
            names += [layer + suffix for layer in (*layers, "flow") for suffix in ("", "-swapped")]
            names += ["network", "forward", "swapped", "integration"]
            names += [f"squaring-{k + 1}" for k in range(SQUARINGS)]
        return frozenset(names)

    def in_words(self) -> str:
        networks = [layers for layers in (self._affine, self._deform) if layers]
        count = sum(k.size + b.size for layers in networks for k, b in layers)
        at = f", regularization {self.config.regularization:g}" if self._deforms else ""
        cube = f"in a cube of {self.config.extent} mm"
        return f"{self.path.name} of mri_synthmorph, {count:,} parameters, {cube}{at}"

    def doubt(self, image: Image) -> str:
        """It was trained on whole heads and brains."""
        return ""

    def prepare(self, moving: Image, fixed: Image) -> Prepared:
        """See `network_space`; the deformable model expects images that are aligned."""
        return network_space.prepare(
            moving, fixed, self.config.extent, one_centre=self.path.name == "deform"
        )

    def voxels(self, fixed_shape: tuple[int, ...]) -> int:
        return int(self.config.extent**3)

    def network(self) -> Any:
        stamps = tuple(keras_files.stamp(file) for file in self.files)
        return _network(self.path, self.config.regularization, stamps)

    def multiplications(self, voxels: int) -> int:
        """Of the convolutions, which see every second voxel along each axis."""
        return sum(products for products, _ in self._costs(voxels // 8))

    def _costs(self, half: int) -> list[tuple[int, int]]:
        """Of each convolution on such a half grid: multiplications for both images, and values in
        its input and output."""
        costs = []
        if affine := self._affine:
            for number, (kernel, _) in enumerate(affine):
                grid = half // 8 ** min(number, LEVELS)
                costs.append((2 * grid * kernel.size, grid * sum(kernel.shape[3:])))
        if deform := self._deform:
            levels = (len(deform) - 1) // 3
            for number, (kernel, _) in enumerate(deform):
                level = number if number <= levels else max(0, 2 * levels - number)
                grid = half // 8**level
                costs.append((2 * grid * kernel.size, grid * sum(kernel.shape[3:])))
        return costs

    def memory(self, voxels: int, engine: str) -> int:
        """The process with its weights, and the widest moment: a convolution's input and output
        (twice in the framework's own kernels, which have a layout of their own), or joining
        features of two levels, or the sampling of warps (see `vxm_dense`)."""
        widest = max(values for _, values in self._costs(voxels // 8))
        convolution = 4 * widest * (3 if engine == "ieee" else 2)  # 64³ 0.92 GB, 96³ 1.40 (native)
        return 800_000_000 + max(convolution, 4 * voxels * 52)


@functools.lru_cache(maxsize=1)
def _network(path: Path, regularization: float, stamps: tuple[tuple[int, int], ...]) -> Any:
    import torch

    from morphbits.models.joint_torch import Affine, Joint

    def weights(layers: Layers) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (torch.from_numpy(k).permute(4, 3, 0, 1, 2).contiguous(), torch.from_numpy(b))
            for k, b in layers
        ]

    folder, kind = path.parent, path.name
    affine = [weights(keras_files.affine_layers(folder / f)) for f in FILES[kind] if f != DEFORM]
    if kind in ("affine", "rigid"):
        return Affine(affine[0], rigid=kind == "rigid").eval()
    deform = weights(keras_files.specialized(folder / DEFORM, regularization))
    return Joint(deform, *affine).eval()
