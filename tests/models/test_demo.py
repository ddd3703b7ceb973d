"""The model that ships: it registers phantoms it never saw, and its description is its own."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

from morphbits import axes
from morphbits.assessment import assess_phantom
from morphbits.config import DEMO_MODEL, from_toml
from morphbits.datasets import phantom
from morphbits.models.synthmorph_torch import SynthMorph
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
    outcome = assess_phantom(SynthMorph.load(DEMO_MODEL), seed=1, index=101, size="2mm")
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
