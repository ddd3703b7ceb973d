"""What a training says of its model: in model.toml, accuracy.csv, a sentence and a figure."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from morphbits import assessment
from morphbits.assessment import Accuracy
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture
from morphbits.report import training as figure
from morphbits.training import options


def registered(model: Path, index: int, size: str) -> tuple[Accuracy, None]:
    """The later a model was kept, the nearer is its warp; phantom 2 is the harder one."""
    after = {"epoch-0001": 3.0, "epoch-10000": 2.0, "model": 1.0}[model.stem]
    dice = {"csf": (0.25, 0.5), "gm": (0.5, 1 - after / 8), "wm": (0.5, 0.625)}
    return Accuracy(dice, (3.0 + index, after + index - 1), folds=3 - int(after)), None


def test_accuracy_before_and_after_is_told_and_drawn_for_every_model_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assessment, "HELD_OUT", {"4mm": [1, 2]})
    monkeypatch.setattr(assessment, "register_phantom", registered)
    made = []

    def make(seed: int, index: int, size: str) -> int:
        made.append((seed, index, size))
        return index

    monkeypatch.setattr(assessment.phantom, "make_phantom", make)
    for name in ("model", "epoch-0001", "epoch-10000"):
        init_model(Architecture((2, 2), (2, 2)), 1).save(tmp_path / f"{name}.h5")
    recipe = replace(options.recipe("train-demo"), epochs=10_001)
    (found,) = assessment.describe(tmp_path / "model.h5", recipe, processes=2)

    assert made == [(1, 1, "4mm"), (1, 2, "4mm")]  # once for all models
    assert found.sentence() == (
        "on 2 phantoms of 4mm that it has not seen, before → after registration: distance to the "
        "true warp 4.50 → 1.50 mm, Dice CSF 0.250 → 0.500, GM 0.500 → 0.875, WM 0.500 → 0.625; "
        "4 folded voxels"
    )
    written = tomllib.loads((tmp_path / "model.toml").read_text())
    assert written["processes"] == 2 and written["recipe"]["epochs"] == 10_001
    assert written["accuracy"]["4mm"] == {
        "seed": 1,
        "phantoms": [1, 2],
        "dice_csf": {"before": 0.25, "after": 0.5},
        "dice_gm": {"before": 0.5, "after": 0.875},
        "dice_wm": {"before": 0.5, "after": 0.625},
        "true_warp_error_mm": {"before": 4.5, "after": 1.5},
        "folded_voxels": 4,
    }
    curve = figure.read_log(tmp_path / "accuracy.csv")
    assert curve["epoch"].tolist() == [0, 1, 10_000, 10_001]
    assert curve["true_warp_error_mm"].tolist() == [4.5, 3.5, 2.5, 1.5]
    assert curve["dice_gm"].tolist() == [0.5, 0.625, 0.75, 0.875]
    assert curve["folded_voxels"].tolist() == [0, 0, 2, 4]


def test_the_figure_of_a_training_has_its_steps_and_its_accuracy(
    tmp_path: Path,
) -> None:
    rows = [f"{step // 4},{step},0.1,{1 / (1 + step)},0.1,0.2" for step in range(12)]
    header = "epoch,step,learning_rate,loss,mismatch,roughness"
    (tmp_path / "log.csv").write_text("\n".join([header, *rows]))
    pictures = []
    for errors in ((4, 3), (4, 2)):
        ends = [f"{epoch},{error}" for epoch, error in zip((0, 3), errors, strict=True)]
        (tmp_path / "accuracy.csv").write_text("\n".join(["epoch,true_warp_error_mm", *ends]))
        pictures.append(image.imread(figure.plot_loss(tmp_path)))
    same_XY = (pictures[0] == pictures[1]).all(-1)
    assert same_XY[: len(same_XY) // 2].all() and not same_XY.all()
    assert np.unique(pictures[0].reshape(-1, 4), axis=0).shape[0] > 10  # not an empty canvas


@pytest.mark.parametrize(
    "kept, shown", [(0, []), (13, list(range(1, 14))), (26, list(range(2, 27, 2)))]
)
def test_no_more_models_are_assessed_than_a_curve_needs(kept: int, shown: list[int]) -> None:
    assert assessment._spread(list(range(1, kept + 1))) == shown
