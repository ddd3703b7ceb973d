"""The study of training's stability: 2 runs of 4 steps at 16³ of each arm, and its page."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.toy_training import TOY, toy_source

from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.studies.training_stability import trainings
from morphbits.studies.training_stability.page import build, select
from morphbits.synthesis import sources
from morphbits.training.options import recipe

RECIPE = replace(TOY, epochs=2, steps=2, size="4mm")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[trainings.Run]]:
    results = tmp_path_factory.mktemp("results")
    runs = trainings.plan(results, "toy", RECIPE, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "open_source", toy_source)
        patch.setattr(trainings, "HELD_OUT", range(1, 2))
        patch.setattr(phantom, "make_phantom", cache(phantom.make_phantom))
        for run in runs:
            trainings.execute(run)
        yield runs


@pytest.fixture(scope="module")
def study(planned: list[trainings.Run]) -> trainings.StabilityTables:
    return trainings.analyse(planned, "toy")


def test_what_is_not_varied_is_the_same_and_what_is_varied_is_not(
    planned: list[trainings.Run], study: trainings.StabilityTables
) -> None:
    assert study.identical
    models = {
        arm: [(r.folder / "model.h5").read_bytes() for r in planned if r.arm == arm]
        for arm in trainings.ARMS
    }
    assert len(set(models["repeated"])) == 1
    for arm in ("initialization", "data"):
        assert len(set(models[arm])) == 2
        assert models[arm][0] == models["repeated"][0]
    assert len(set(models["rounding"])) == 2


def test_bits_say_what_the_models_are(study: trainings.StabilityTables) -> None:
    last = {
        arm: np.mean([row["mean"] for row in select(study.weights, arm=arm, epoch=2)])
        for arm in trainings.ARMS
    }
    assert last["repeated"] == 24
    # Adam's first steps go by the sign of a derivative: some weights part early, most do not
    assert last["initialization"] < 2 < last["rounding"] < 24
    assert last["data"] < last["rounding"]
    for arm in trainings.ARMS:
        (first, *_) = select(study.registrations, arm=arm)
        assert (first["warp_std_mm"] == 0) == (arm == "repeated")
        (ensemble,) = select(study.ensembles, arm=arm)
        if arm == "repeated":
            assert ensemble["ensemble_dice_gm"] == pytest.approx(ensemble["single_dice_gm"])


def test_the_page_holds_tables_and_figures(
    study: trainings.StabilityTables, tmp_path: Path
) -> None:
    page = build(study, tmp_path).read_text(encoding="utf-8")
    assert "all 2 models have the same bytes" in page
    assert "(native engine, order of sums sequential, mode random)" in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "http://" not in page and "<script" not in page
    with (tmp_path / "weights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 5  # arms, epochs, kernels
    assert (tmp_path / "figures" / "loss.svg").is_file()


def test_what_is_read_of_a_run_is_what_it_left(
    planned: list[trainings.Run], tmp_path: Path
) -> None:
    shutil.copytree(planned[0].folder, tmp_path / "run")
    run = replace(planned[0], folder=tmp_path / "run")
    for name, what in (
        ("registrations.npz", r"registrations\.npz: is damaged"),
        ("log.csv", r"log\.csv: is not what the training left"),
        ("epoch-0001.h5", r"epoch-0001\.h5: is not what the training left"),
        ("model.h5", r"model\.h5: is not what the training left"),
    ):
        path = run.folder / name
        whole = path.read_bytes()
        place = len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=what):
            trainings.execute_all([run], 1, ["unused"])
        path.write_bytes(whole)
    trainings.execute_all([run], 1, ["unused"])


def test_one_run_has_no_spread_and_another_recipe_is_refused(
    planned: list[trainings.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="two trainings or more"):
        trainings.plan(tmp_path, "toy", RECIPE, 1)
    other = [replace(planned[0], recipe=replace(planned[0].recipe, smoothness=0.5))]
    with pytest.raises(UserError, match=r"trained with smoothness 0\.1 \(now 0\.5\)"):
        trainings.execute_all(other, 1, ["unused"])
    monkeypatch.setattr(trainings, "made_with", lambda recipe: {"torch": "9.9"})
    trainings.execute_all(planned, 1, ["unused"])  # all are done: only read
    more = [*planned, replace(planned[0], folder=tmp_path / "more")]
    with pytest.raises(UserError, match=r"torch \S+ \(now 9\.9\)"):
        trainings.execute_all(more, 1, ["unused"])
    for wrong in ({"init_seed": 5}, {"rounding_seed": 5}, {"mode": "upward"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            trainings.plan(tmp_path, "toy", replace(RECIPE, **wrong), 2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not trained yet"):
        trainings.analyse(trainings.plan(tmp_path, "toy", RECIPE, 2), "toy")


def test_the_study_as_shipped_says_that_it_ends_within_half_an_hour(tmp_path: Path) -> None:
    planned = trainings.plan(tmp_path, "training-stability", recipe("training-stability"), 5)
    said = trainings.describe("training-stability", planned, 2)
    found = re.match(
        r"training-stability: 21 trainings of 480 steps, 2 at a time; about (\d+) min", said
    )
    assert found and int(found[1]) < 30, said


def test_a_long_study_keeps_some_models_and_the_last_one() -> None:
    long = replace(RECIPE, epochs=100)
    kept = trainings.kept_models(trainings.Run("data", 1, long, Path("run")))
    assert list(kept) == [*range(9, 100, 9), 100]
    assert kept[100] == Path("run/model.h5") and kept[9] == Path("run/epoch-0009.h5")


def test_verrou_trains_and_a_process_without_it_registers(tmp_path: Path) -> None:
    asked = replace(RECIPE, engine="verrou", mode="nearness")
    runs = trainings.plan(tmp_path, "toy", asked, 2)
    by_arm = {run.arm: run for run in runs}
    assert by_arm["repeated"].recipe.engine == "ieee"
    assert by_arm["nearest"].recipe.engine == by_arm["rounding"].recipe.engine == "verrou"
    under, without = trainings.commands(by_arm["rounding"], ["script.py"])
    assert under[0].endswith("with_verrou.sh") and "nearness" in under
    assert "--only-train" in under and without[0] == "script.py"
    assert trainings.commands(by_arm["repeated"], ["script.py"])[0][0] == "script.py"


TRAINING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--run-folder") + 1])
def save(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "started").touch()
time.sleep(60)
"""
STUDY = """
import pathlib, sys
from support.toy_training import TOY
from morphbits.studies.training_stability import trainings
runs = trainings.plan(pathlib.Path(sys.argv[1]), "toy", TOY, 2)
trainings.execute_all(runs, 2, [sys.executable, sys.argv[2]])
"""


def test_a_study_that_is_ended_lets_its_trainings_save(tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    paths = os.pathsep.join(
        str(Path(__file__).parents[n] / p) for n, p in ((1, ""), (2, "python"))
    )
    study = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(tmp_path), str(script)],
        env={**os.environ, "PYTHONPATH": paths},
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("toy/*/run-*/started"))) < 2:
        assert time.monotonic() < end and study.poll() is None
        time.sleep(0.05)
    study.terminate()
    assert study.wait(30) == 143
    assert len(list(tmp_path.glob("toy/*/run-*/saved"))) == 2
