"""The model that ships: it registers phantoms it never saw, and its description is its own."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
from support import corr_standin

from morphbits import axes, images, registration
from morphbits.assessment import register_phantom
from morphbits.config import DEMO_MODEL, RegisterConfig, from_toml
from morphbits.datasets import phantom
from morphbits.images import Image
from morphbits.models import vxm_dense
from morphbits.models.model import open_model
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.training import TrainConfig

RECIPE = Path(__file__).parents[2] / "python" / "experiments" / "demo-model.toml"


def description() -> dict:
    return tomllib.loads(DEMO_MODEL.with_suffix(".toml").read_text(encoding="utf-8"))


def test_description_and_recipe_are_of_this_model() -> None:
    said = description()
    recipe = from_toml(TrainConfig, RECIPE)
    assert said["sha256"] == hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()
    assert TrainConfig(**said["recipe"]) == recipe
    model = SynthMorph.load(DEMO_MODEL)
    assert model.architecture == replace(recipe.architecture(), orientation="RAS")
    # its pairs were drawn in the template's axes
    assert phantom.ORIENTATION == axes.name_of(phantom.template("2mm").affine) == "RAS"
    assert said["parameters"] == sum(p.numel() for p in model.parameters())


def test_registers_an_unseen_phantom() -> None:
    """Phantom 101 of seed 1 is neither a training subject nor one of those described."""
    subject = phantom.make_phantom(seed=1, index=101, size="2mm")
    outcome, _ = register_phantom(DEMO_MODEL, subject, "2mm")
    gains = {tissue: after - before for tissue, (before, after) in outcome.dice.items()}
    # measured: 0.166, 0.089, 0.083; error 3.68 to 2.33 mm
    assert gains["csf"] > 0.15 and gains["gm"] > 0.08 and gains["wm"] > 0.07, gains
    assert outcome.error_mm[1] < 0.7 * outcome.error_mm[0], outcome.error_mm
    assert outcome.folds == 0


def test_described_accuracy_is_an_improvement() -> None:
    for size, accuracy in description()["accuracy"].items():
        for quantity in ("dice_csf", "dice_gm", "dice_wm"):
            assert accuracy[quantity]["after"] > accuracy[quantity]["before"], (
                size,
                quantity,
            )
        error = accuracy["true_warp_error_mm"]
        assert error["after"] < error["before"], size


def _doubt(model: Path, image: Image) -> str:
    return open_model(model, RegisterConfig()).doubt(image)


def test_a_whole_head_is_warned_of_and_a_brain_is_not(tmp_path: Path) -> None:
    """However bright fat is, or noisy the air; the phantom is the largest of the first 35."""
    head, _ = corr_standin.head(1, "4mm")
    fat = np.where(head.data > np.percentile(head.data, 97), 4 * head.data, head.data)
    noise = np.random.default_rng(1).normal(0, 0.04, (2, *head.data.shape))
    noisy = np.hypot(head.data + noise[0], noise[1])
    for data in (head.data, fat, noisy):
        image = replace(head, data=data.astype(np.float32))
        assert "seems to be a whole head" in _doubt(DEMO_MODEL, image)
    template, made = phantom.template("4mm"), phantom.make_phantom(1, 13, "4mm")
    brains = [Image(each.image, each.affine) for each in (template, made)]
    for brain in brains:
        assert 1 < images.litres(brain) < vxm_dense.LARGEST_BRAIN
        assert _doubt(DEMO_MODEL, brain) == ""
    steps = registration.prepare(head, brains[0], DEMO_MODEL, RegisterConfig()).steps
    assert sum("seems to be a whole head" in step for step in steps) == 1

    other, copy = tmp_path / "other.h5", tmp_path / "copy.h5"
    save_h5(other, Architecture((4, 4), (4, 4)), init_weights(Architecture((4, 4), (4, 4)), 1))
    assert _doubt(other, head) == ""
    assert _doubt(Path(shutil.copy(DEMO_MODEL, copy)), head)
