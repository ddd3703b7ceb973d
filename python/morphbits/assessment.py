"""How well a model registers phantoms it never saw: overlap, distance to the true warp, folds.

The phantoms are those of a dataset (`morphbits.datasets.phantom`), made in memory; the template is
the fixed image. Registration is the exact port's, as `morphbits register` does it unperturbed.

Arrays: X Y Z space, V warp component; labels int32, images and warps float32, warps in voxels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from morphbits import config
from morphbits.config import RegisterConfig
from morphbits.datasets import phantom
from morphbits.files import sha256
from morphbits.images import Image
from morphbits.models.weights import model_orientation
from morphbits.registration import prepare, register
from morphbits.stats import accuracy
from morphbits.training import TrainConfig

# Phantoms of seed 1, which are those that a dataset holds by default.
HELD_OUT = {"4mm": range(1, 9), "2mm": range(1, 9), "1mm": range(1, 3)}
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


def assess_phantom(model: Path, seed: int, index: int, size: str) -> Accuracy:
    """Register phantom `index` of the dataset with `seed` to the template."""
    return register_phantom(model, seed, index, size)[0]


def register_phantom(model: Path, seed: int, index: int, size: str) -> tuple[Accuracy, np.ndarray]:
    """The same, and the warp (X, Y, Z, V)."""
    base, subject = phantom.template(size), phantom.make_phantom(seed, index, size)
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


def assess(path: Path, size: str, subjects: Iterable[int], seed: int = 1) -> str:
    """The model in `path` on phantoms of a dataset: lines of TOML, means over subjects."""
    subjects = list(subjects)
    outcomes = [assess_phantom(path, seed, index, size) for index in subjects]

    def pair(values: Iterable[tuple[float, float]]) -> str:
        before, after = np.mean(list(values), axis=0)
        return f"{{ before = {before:.3f}, after = {after:.3f} }}"

    lines = [f"seed = {seed}", f"phantoms = {subjects}"]
    lines += [f"dice_{name} = {pair(o.dice[name] for o in outcomes)}" for name in TISSUES.values()]
    lines.append(f"true_warp_error_mm = {pair(o.error_mm for o in outcomes)}")
    lines.append(f"folded_voxels = {sum(o.folds for o in outcomes)}")
    return "\n".join(lines) + "\n"


def describe(path: Path, recipe: TrainConfig, processes: int = 1) -> Path:
    """Write what is known of the model in `path` beside it, as TOML; returns that file."""
    text = f'caution = "{CAUTION}"\n' if recipe.source == "phantom-pairs" else ""
    text += f'sha256 = "{sha256(path)}"\n'
    text += f'orientation = "{model_orientation(path)}"\n'
    text += f"parameters = {recipe.architecture().parameters()}\nprocesses = {processes}\n"
    text += f"\n[recipe]\n{config.to_toml(recipe)}"
    text += f'\n[versions]\ntorch = "{torch.__version__}"\n'
    for size in ASSESSED[recipe.size]:
        text += f'\n[accuracy."{size}"]\n{assess(path, size, HELD_OUT[size])}'
    file = path.with_suffix(".toml")
    file.write_text(text, encoding="utf-8")
    return file
