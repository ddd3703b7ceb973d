"""What the suite asks of a registration network, and which networks there are.

A model is named by a path (`MODEL=`, `--model`). To add a kind of model: a class with what `Model`
asks for, and its line in `open_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from morphbits import stages
from morphbits.config import Arithmetic
from morphbits.errors import UserError
from morphbits.images import Image, Prepared
from morphbits.models import classical, mri_synthmorph
from morphbits.models.classical import Classical
from morphbits.models.mri_synthmorph import MriSynthMorph
from morphbits.models.plugin import Plugin
from morphbits.models.vxm_dense import VxmDense
from morphbits.wording import alternatives


class Model(Protocol):
    """A registration network, and what an experiment must know of it.

    What it reads is looked at when it is asked for, not before.
    """

    frameworks: ClassVar[tuple[str, ...]]  # that can compute it

    @property
    def files(self) -> tuple[Path, ...]:
        """What it reads."""

    def identity(self, checksum: Callable[[Path], str]) -> dict[str, Any]:
        """What of it can change a byte of a sample: part of the sample's configuration, with the
        key ``model``. ``checksum`` is that of a file."""

    @property
    def stages(self) -> frozenset[str]:
        """Names of the parts that its network announces; empty where they are not known."""

    @property
    def fewer_bits(self) -> frozenset[str] | None:
        """Stages that can be computed in fewer bits than float32's, None for all: sums over an
        image, products and solvers of small matrices and gradients have no rule for that."""

    def in_words(self) -> str:
        """What a run says of it."""

    def doubt(self, image: Image) -> str:
        """A sentence where the model was not made for such an image; else empty."""

    def prepare(self, moving: Image, fixed: Image) -> Prepared:
        """The pair as the network takes it, and the way back."""

    def voxels(self, fixed_shape: tuple[int, ...]) -> int:
        """Of the grid that the network sees for a fixed image of this shape."""

    def network(self) -> Any:
        """The torch module: (moving, fixed) → (moved (B, 1, X, Y, Z), warp (B, V, X, Y, Z) in
        voxels of its grid), which announces its parts by `morphbits.stages`."""

    def multiplications(self, voxels: int) -> int | None:
        """Of one registration on a grid of so many voxels, where that is known."""

    def memory(self, voxels: int, engine: str) -> int:
        """Bytes that one registration needs on such a grid, with those of the process."""


def open_model(where: Path, config: Arithmetic) -> Model:
    """The model of that name with the options of the configuration."""
    where = located(where)
    if ":" in where.name:
        model: Model = Plugin(where, config)
    elif where.name in mri_synthmorph.FILES:
        model = MriSynthMorph(where, config)
    elif where.name == classical.NAME:
        model = Classical(where, config)
    else:
        model = VxmDense(where, config)
    if config.framework not in model.frameworks:
        raise UserError(
            f"model {where.name} is computed by {' or '.join(model.frameworks)}, not by "
            f"{config.framework}: leave --framework out"
        )
    for spec in fields(Arithmetic):
        models = spec.metadata["models"]
        if models and where.name not in models and getattr(config, spec.name) != spec.default:
            raise UserError(
                f"--{spec.name} does nothing with model {where.name}; it is for "
                f"{alternatives(models)}: leave it out"
            )
    _check_stages(model, where, config)
    return model


def _check_stages(model: Model, where: Path, config: Arithmetic) -> None:
    """UserError for stages that the model does not have, and for a precision that some do not."""
    chosen = stages.select(config.perturb)
    if chosen.names and (known := model.stages) and (missing := chosen.names - known):
        raise UserError(
            f"--perturb {config.perturb}: model {where.name} has no stage "
            f"{', '.join(sorted(missing))}; its stages are: {', '.join(sorted(known))}"
        )
    able = model.fewer_bits
    some = chosen.kind == "only" and able is not None and chosen.names <= able
    if config.precision not in ("24", "tf32") and able is not None and not some:
        raise UserError(
            f"--precision {config.precision}: model {where.name} can be computed in fewer bits in "
            f"some stages only: give --perturb only:{','.join(sorted(able))}, or some of these"
        )


def word(where: Path) -> str:
    """The model in names of experiments."""
    return where.name.removesuffix(".h5")


def located(where: Path) -> Path:
    """A path that names the model wherever it is read: the folder of `joint` and its like, looked
    for; others as they are."""
    alone = where.name in mri_synthmorph.FILES and where.parent == Path()
    return mri_synthmorph.located(where.name) if alone else where
