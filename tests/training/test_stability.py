"""The study of training's stability: 2 runs of 4 steps at 16³ of each arm, and its page."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from toy_training import TOY, toy_source

from morphbits import stability
from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.report.stability import build, select
from morphbits.synthesis import sources

RECIPE = replace(TOY, epochs=2, steps=2, size="4mm")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[stability.Run]]:
    results = tmp_path_factory.mktemp("results")
    runs = stability.plan(results, "toy", RECIPE, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "open_source", toy_source)
        patch.setattr(stability, "HELD_OUT", range(1, 2))
        patch.setattr(phantom, "make_phantom", cache(phantom.make_phantom))
        for run in runs:
            stability.execute(run)
        yield runs


@pytest.fixture(scope="module")
def study(planned: list[stability.Run]) -> stability.Study:
    return stability.analyse(planned, "toy")


def test_what_is_not_varied_is_the_same_and_what_is_varied_is_not(
    planned: list[stability.Run], study: stability.Study
) -> None:
    assert study.identical
    models = {
        arm: [(r.folder / "model.h5").read_bytes() for r in planned if r.arm == arm]
        for arm in stability.ARMS
    }
    assert len(set(models["repeated"])) == 1
    for arm in ("initialization", "data"):
        assert len(set(models[arm])) == 2
        assert models[arm][0] == models["repeated"][0]
    assert len(set(models["rounding"])) == 2


def test_bits_say_what_the_models_are(study: stability.Study) -> None:
    last = {
        arm: np.mean([row["mean"] for row in select(study.weights, arm=arm, epoch=2)])
        for arm in stability.ARMS
    }
    assert last["repeated"] == 24
    # Adam's first steps go by the sign of a derivative: some weights part early, most do not
    assert last["initialization"] < 2 < last["rounding"] < 24
    assert last["data"] < last["rounding"]
    for arm in stability.ARMS:
        (first, *_) = select(study.registrations, arm=arm)
        assert (first["warp_std_mm"] == 0) == (arm == "repeated")
        (ensemble,) = select(study.ensembles, arm=arm)
        if arm == "repeated":
            assert ensemble["ensemble_dice_gm"] == pytest.approx(ensemble["single_dice_gm"])


def test_the_page_holds_tables_and_figures(study: stability.Study, tmp_path: Path) -> None:
    page = build(study, tmp_path).read_text(encoding="utf-8")
    assert "all 2 models have the same bytes" in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "http://" not in page and "<script" not in page
    with (tmp_path / "weights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 5  # arms, epochs, kernels
    assert (tmp_path / "figures" / "loss.svg").is_file()


def test_one_run_has_no_spread_and_another_recipe_is_refused(
    planned: list[stability.Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="two trainings or more"):
        stability.plan(tmp_path, "toy", RECIPE, 1)
    other = [replace(planned[0], recipe=replace(planned[0].recipe, smoothness=0.5))]
    with pytest.raises(UserError, match="another recipe"):
        stability.execute_all(other, 1, Path("unused"))
    with pytest.raises(UserError, match="not trained yet"):
        stability.analyse(stability.plan(tmp_path, "toy", RECIPE, 2), "toy")
