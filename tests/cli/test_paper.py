"""The study as one command, at toy size, on a stand-in for CoRR, from install to report."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest
from support.corr_standin import LABELS, head, make_source, tools_of_the_environment

from morphbits import cli
from morphbits.datasets.corr_table import select
from morphbits.errors import UserError
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.studies.paper.plan import PaperPlan


def paper(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    tools_of_the_environment()
    return subprocess.run(
        [*cli.command("paper"), "--engine=native", *words],
        cwd=folder, text=True, capture_output=True, check=False,
    )  # fmt: skip


def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = paper(tmp_path, "--route=freesurfer")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "weights: no data/models/brains-dice-vel-0.5-res-16-256f.h5; make models" in lines[0]
    assert "fixed image: no data/models/norm-average_mni305.mgz" in lines[1]
    assert "FreeSurfer: " in lines[2] and "license" in lines[2]
    assert lines[-1] == "error: the study cannot start: what is missing is listed above"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["--precission=8", "--precision=1"])
def test_a_wrong_option_of_the_samples_is_said_before_anything_starts(
    tmp_path: Path, wrong: str
) -> None:
    done = paper(tmp_path, wrong)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert wrong.partition("=")[0] in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_verrou_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphbits.engines.verrou.found", lambda: None)
    weights = tmp_path / "weights.h5"
    weights.touch()
    plans = {
        engine: PaperPlan(tmp_path, tmp_path, [], engine, weights, 10, "open", "1mm")
        for engine in ("verrou", "native")
    }
    assert plans["native"].missing() == []
    (line,) = plans["verrou"].missing()
    assert line.startswith("Verrou: not on this machine; make docker builds it")


def test_each_engine_has_its_own_experiment(tmp_path: Path) -> None:
    plans = [
        PaperPlan(tmp_path, tmp_path, select("inference"), engine, None, 10, "open", "1mm")
        for engine in ("verrou", "native")
    ]
    assert [plan.name for plan in plans] == ["paper", "paper-native"]
    assert [plan.settings().engine for plan in plans] == ["verrou", "native"]
    assert plans[0].settings().framework == "tensorflow"
    with pytest.raises(UserError, match="is not in corr_subjects"):
        select("sub-1")


def tiny_model(folder: Path) -> None:
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5)
    save_h5(folder / "tiny.h5", architecture, init_weights(architecture, 1))


WORDS = ("--source=RawDataBIDS", "--table=table.csv", "--model=tiny.h5", "--size=4mm", "--runs=2")


@pytest.mark.slow
def test_one_head_from_its_source_to_the_comparison(tmp_path: Path) -> None:
    make_source(tmp_path, {"0025531": head(2, "4mm")[0]})
    tiny_model(tmp_path)
    done = paper(tmp_path, *WORDS, "--jobs=1")
    assert done.returncode == 0, done.stderr
    assert "6: 1 subjects x (2 perturbed + 4 references); 0 are done" in done.stdout
    assert "image, 1 subjects: ours" in done.stdout
    results = tmp_path / "results/paper-native"
    assert "sub-0025531" in (results / "report.html").read_text()
    rows = list(csv.DictReader((results / "comparison.csv").open()))
    assert [row["quantity"] for row in rows] == ["image", "warp"]
    assert all(5 < float(row["ours"]) < 24 for row in rows)
    assert rows[0]["published"] == "19.68"
    assert rows[0]["n"] == "2"
    assert "not comparable: n is 2 here, 10 in the study" in done.stdout


@pytest.mark.slow
def test_from_a_source_of_raw_heads_to_the_comparison_and_again(tmp_path: Path) -> None:
    make_source(tmp_path, {label: head(k, "4mm")[0] for k, label in enumerate(LABELS, start=1)})
    tiny_model(tmp_path)
    words = [*WORDS, "--jobs=2"]
    cost = paper(tmp_path, *words, "--dry-run")
    assert cost.returncode == 0, cost.stderr
    assert (
        "3, 18 samples of 107,520 voxels" in cost.stdout and "core-hours (measured" in cost.stdout
    )
    assert not (tmp_path / "data").exists()

    done = paper(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "18: 3 subjects x (2 perturbed + 4 references); 0 are done" in done.stdout
    assert "sub-0027393: excluded as in the study (Linear Registration Fail)" in done.stdout
    assert "image, 2 subjects: ours" in done.stdout
    results = tmp_path / "results/paper-native"
    assert (results / "report.html").stat().st_size > 0
    rows = list(csv.DictReader((results / "comparison.csv").open()))
    assert {row["subject"] for row in rows} == {"sub-0003002", "sub-0025531"}
    published = {(row["subject"], row["quantity"]): float(row["published"]) for row in rows}
    assert published["sub-0025531", "image"] == 19.68 and published["sub-0003002", "warp"] == 18.6
    for row in rows:
        assert float(row["difference_less_one"]) == pytest.approx(float(row["difference"]) + 1)

    again = paper(tmp_path, *words)
    assert again.returncode == 0 and "18 are done" in again.stdout
