"""How well a model registers phantoms it never saw: overlap, distance to the true warp, folds.

The phantoms are those of a dataset (`morphbits.datasets.phantom`), made in memory; the template is
the fixed image. Registration is the exact port's, as `morphbits register` does it unperturbed.

Arrays: X Y Z space, V warp component; labels int32, images and warps float32, warps in voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from morphbits import config
from morphbits.config import RegisterConfig
from morphbits.datasets import phantom
from morphbits.files import csv_of, sha256, write_atomically
from morphbits.images import Image
from morphbits.models.weights import model_orientation
from morphbits.registration import prepare, register
from morphbits.stats import accuracy
from morphbits.training import TrainConfig

# Phantoms of seed 1, which are those that a dataset holds by default.
HELD_OUT = {"4mm": range(1, 9), "2mm": range(1, 9), "1mm": range(1, 3)}
CURVE = 13  # epochs at most, besides the last, of which the accuracy is computed
ASSESSED = {"4mm": ("4mm",), "2mm": ("2mm", "1mm"), "1mm": ("1mm",)}  # by the training's size
CAUTION = (
    "Trained for minutes on T1-like phantoms, all of them deformations of one template, against "
    "that same template. It registers such phantoms. It is not SynthMorph: not contrast-agnostic, "
    "not trained on different anatomies, and no tool for real studies."
)

TISSUES = {1: "csf", 2: "gm", 3: "wm"}


@dataclass(frozen=True)
class Accuracy:
    """One phantom, before and after registration: Dice of each tissue, mean distance to the true
    warp in the fixed brain (mm); and the number of voxels in the brain where the warp folds."""

    dice: dict[str, tuple[float, float]]
    error_mm: tuple[float, float]
    folds: int


def register_phantom(
    model: Path, subject: phantom.Phantom, size: str
) -> tuple[Accuracy, np.ndarray]:
    """How well the model registers a phantom to the template, and the warp (X, Y, Z, V)."""
    base = phantom.template(size)
    fixed, moving = Image(base.image, base.affine), Image(subject.image, subject.affine)
    plain = RegisterConfig(threads=torch.get_num_threads())
    warp = register(prepare(moving, fixed, model, plain), model, plain).warp_XYZV
    return accuracy_of(subject, warp, size), warp


def accuracy_of(subject: phantom.Phantom, warp: np.ndarray, size: str) -> Accuracy:
    """How well `warp` (X, Y, Z, V) registers a phantom to the template."""
    base = phantom.template(size)
    moved = accuracy.moved_labels(Image(subject.labels, subject.affine), Image(warp, base.affine))
    before, after = (
        accuracy.dice(labels, base.labels, TISSUES) for labels in (subject.labels, moved)
    )
    brain = base.labels > 0
    errors = [
        accuracy.warp_error(guess, subject.warp, base.affine, brain).mean
        for guess in (np.zeros_like(warp), warp)
    ]
    return Accuracy(
        {name: (before[label], after[label]) for label, name in TISSUES.items()},
        (errors[0], errors[1]),
        accuracy.folding(warp, brain).voxels,
    )


@dataclass(frozen=True)
class Assessment:
    """A model on phantoms of one size: means over them of what Accuracy has, sum of the folds."""

    size: str
    seed: int
    phantoms: list[int]
    dice: dict[str, tuple[float, float]]
    error_mm: tuple[float, float]
    folds: int

    def toml(self) -> str:
        """Its lines in model.toml."""
        pairs = {f"dice_{name}": pair for name, pair in self.dice.items()}
        lines = [f"seed = {self.seed}", f"phantoms = {self.phantoms}"]
        for name, (before, after) in {**pairs, "true_warp_error_mm": self.error_mm}.items():
            lines.append(f"{name} = {{ before = {before:.3f}, after = {after:.3f} }}")
        return "\n".join([*lines, f"folded_voxels = {self.folds}", ""])

    def sentence(self) -> str:
        """How well the model registers, in one sentence for its user."""
        tissues = [f"{name.upper()} {a:.3f} → {b:.3f}" for name, (a, b) in self.dice.items()]
        return (
            f"on {len(self.phantoms)} phantoms of {self.size} that it has not seen, before → "
            f"after registration: distance to the true warp {self.error_mm[0]:.2f} → "
            f"{self.error_mm[1]:.2f} mm, Dice {', '.join(tissues)}; {self.folds} folded voxels"
        )

    def row(self, epoch: int) -> dict[str, float]:
        """Its row of accuracy.csv; epoch 0 is before registration."""
        when = min(epoch, 1)
        dice = {f"dice_{name}": pair[when] for name, pair in self.dice.items()}
        folds = {"folded_voxels": self.folds * when}
        return {"epoch": epoch, **dice, "true_warp_error_mm": self.error_mm[when], **folds}


def assess(
    models: Sequence[Path], size: str, subjects: Iterable[int], seed: int = 1
) -> list[Assessment]:
    """How well each of the models registers the phantoms `subjects` of dataset `seed`, in the
    order of `models`. Each phantom is made once."""
    subjects = list(subjects)
    outcomes_SM = []
    for index in subjects:
        subject = phantom.make_phantom(seed, index, size)
        outcomes_SM.append([register_phantom(model, subject, size)[0] for model in models])

    def mean(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
        before, after = np.mean(list(pairs), axis=0).tolist()
        return before, after

    found = []
    for outcomes in zip(*outcomes_SM, strict=True):
        dice = {name: mean(o.dice[name] for o in outcomes) for name in TISSUES.values()}
        error, folds = mean(o.error_mm for o in outcomes), sum(o.folds for o in outcomes)
        found.append(Assessment(size, seed, subjects, dice, error, folds))
    return found


def describe(path: Path, recipe: TrainConfig, processes: int = 1) -> list[Assessment]:
    """Write what is known of the model in `path` beside it: model.toml, and accuracy.csv, with
    rows for epochs whose models were kept. Returns how well it registers, by size."""
    kept = {p.stem.removeprefix("epoch-"): p for p in path.parent.glob("epoch-*.h5")}
    kept_at = {int(epoch): p for epoch, p in kept.items() if epoch.isdecimal()}
    epochs = _spread(sorted(epoch for epoch in kept_at if epoch < recipe.epochs))
    size, *others = ASSESSED[recipe.size]
    by_epoch = assess([*(kept_at[epoch] for epoch in epochs), path], size, HELD_OUT[size])
    found = [by_epoch[-1], *(assess([path], other, HELD_OUT[other])[0] for other in others)]

    text = f'caution = "{CAUTION}"\n' if recipe.source == "phantom-pairs" else ""
    text += f'sha256 = "{sha256(path)}"\n'
    text += f'orientation = "{model_orientation(path)}"\n'
    text += f"parameters = {recipe.architecture().parameters()}\nprocesses = {processes}\n"
    text += f"\n[recipe]\n{config.to_toml(recipe)}"
    text += f'\n[versions]\ntorch = "{torch.__version__}"\n'
    text += "".join(f'\n[accuracy."{each.size}"]\n{each.toml()}' for each in found)
    write_atomically(path.with_suffix(".toml"), text.encode())

    named = zip([*epochs, recipe.epochs], by_epoch, strict=True)
    rows = [found[0].row(0), *(each.row(epoch) for epoch, each in named)]
    write_atomically(path.parent / "accuracy.csv", csv_of(rows))
    return found


def _spread(epochs: list[int]) -> list[int]:
    """At most CURVE of them, the latest among them."""
    return epochs[:: -max(1, -(-len(epochs) // CURVE))][::-1]
