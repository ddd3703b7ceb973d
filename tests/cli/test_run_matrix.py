"""morphbits inference before its first sample: dry run, the gate of two hours, bad options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from morphbits import bids, cli, images
from morphbits.engines import verrou
from morphbits.errors import UserError
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.samples import experiment

RunMatrix = Callable[..., int]


@pytest.fixture
def run_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunMatrix:
    """Runs the script in this process and folder, engine ieee on phantoms; its exit status."""
    monkeypatch.chdir(tmp_path)
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5)
    save_h5(tmp_path / "tiny.h5", architecture, init_weights(architecture, 1))

    def run(*words: str) -> int:
        chosen = ["--engine=ieee", "--dataset=phantom", "--size=4mm", "--model=tiny.h5"]
        monkeypatch.setattr(sys, "argv", ["morphbits", "inference", *chosen, *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def test_a_dry_run_lists_the_samples_and_the_settings(
    run_matrix: RunMatrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_matrix("--subjects=2", "--runs=3", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "sub-002: 01 02 03 ieee plain again threads" in said
    assert "results  results/ieee-phantom-4mm-tiny" in said
    assert 'mode = "random"' in said
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]


def test_above_two_hours_it_asks(
    run_matrix: RunMatrix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(experiment, "make_plan", lambda *given: given)
    monkeypatch.setattr(experiment, "seconds_left", lambda *given: 7201.0)
    monkeypatch.setattr(experiment, "run", lambda plan: pytest.fail("it ran"))
    assert run_matrix() == 2
    assert "2.0 h; YES=1 starts it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "asks"), [pytest.param(299.0, False, marks=pytest.mark.slow), (301.0, True)]
)
def test_verrou_that_nobody_asked_for_asks_above_five_minutes(
    run_matrix: RunMatrix,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    asks: bool,
) -> None:
    monkeypatch.setattr(verrou, "found", lambda: "machine")
    monkeypatch.setattr(verrou, "version", lambda: "2.7")
    monkeypatch.setattr(experiment, "seconds_left", lambda *given: seconds)

    def ran(plan: experiment.ExperimentPlan) -> str:
        raise UserError("it ran")

    monkeypatch.setattr(experiment, "run", ran)
    assert run_matrix("--engine=auto", "--runs=2") == 2
    said = capsys.readouterr()
    assert "auto: Verrou is here (machine); the other, hundreds of times faster" in said.out
    asked = "this would take about 5 min; YES=1 starts it, DRY_RUN=1 lists it, ENGINE=native is"
    assert (asked if asks else "it ran") in said.err
    for words in (["--engine=verrou"], ["--engine=auto", "--yes"]) if asks else ():
        assert run_matrix(*words, "--runs=2") == 2
        assert "it ran" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs=0"], "argument --runs: must be at least 1, not 0"),
        (["--runs=nan"], "argument --runs: must be a whole number, not 'nan'"),
        (["--subjects=1000000000000"], "argument --subjects: must be at most 100000"),
        (["--accumulation=blocked"], "must be sequential, direct, blocked:K (such as blocked:192"),
        (["--precision=0"], "must be 2 to 24 bits, or float16, bfloat16 or tf32, not '0'"),
        (["--perturb=flow"], "must be all, only:NAME,… or except:NAME,… with names of stages"),
        (["--precission=8"], "no option --precission here; did you mean '--precision'?"),
        (["--no-such-thing"], "there is no option --no-such-thing here; --help lists them"),
        (["--engine=verro"], "did you mean 'verrou'"),
        (["--engine=verrou"], "'make docker' builds it"),
        (["--engine=native", "--framework=tensorflow"], "native engine perturbs torch only"),
        (["--engine=native", "--mode=upward"], "mode upward is deterministic"),
        (["--model=gone.h5"], "gone.h5: there is no such model file"),
        (["--experiment=../up"], "argument --experiment: must be a name of letters"),
    ],
)
def test_a_bad_option_is_one_sentence(
    run_matrix: RunMatrix,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(verrou, "found", lambda: None)
    assert run_matrix(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_a_folder_with_sessions_says_what_it_takes_and_what_not(
    run_matrix: RunMatrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(1).random((16, 16, 16), np.float32)
    names = ["1/ses-1/anat/sub-1_ses-1_T1w", "1/ses-2/anat/sub-1_ses-2_run-2_T1w",
             "2/ses-2/anat/sub-2_ses-2_T1w"]  # fmt: skip
    for name in names:
        images.save(tmp_path / f"bids/sub-{name}.nii.gz", image, np.eye(4))
    images.save(tmp_path / "target.nii.gz", image, np.eye(4))
    words = ["--dataset=bids", "--fixed=target.nii.gz", "--runs=2"]
    assert run_matrix(*words, "--subjects=2", "--dry-run") == 2
    said = capsys.readouterr()
    assert "not used 2: one of several images of its subject; choose by BIDS_FILTER= (" in said.out
    assert "images to take of 1 subjects, not of 2: give SUBJECTS=1" in said.err
    assert run_matrix(*words, "--subjects=2", "--bids-filter=ses-2") == 0
    said_then = capsys.readouterr().out
    for name in (names[1], names[2]):  # of every image, whoever read it
        assert f"{name}.nii.gz: it covers 16.0 × 16.0 × 16.0 mm, less than a brain" in said_then
    folder = tmp_path / "results/ieee-bids-tiny-fixed-target-ses-2"
    record = json.loads((folder / "experiment.json").read_text())
    left_out = {"sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz": "BIDS_FILTER='ses-2' leaves it out"}
    assert record["dataset"]["left_out"] == left_out
    dataset = experiment.recorded_dataset(tmp_path / "results", folder.name)
    assert dataset.moving(bids.Subject("1", "2")).name == "sub-1_ses-2_run-2_T1w.nii.gz"
    assert dataset.fixed() == Path("target.nii.gz")
    assert run_matrix(*words, "--subjects=1", "--bids-filter=ses-9") == 2
    assert "no subject has a T1w image to take: BIDS_FILTER='ses-9'" in capsys.readouterr().err
    same_name = f"--experiment={folder.name}"
    assert run_matrix(*words, "--subjects=1", "--bids-filter=ses-1", same_name) == 2
    assert "another configuration (bids_filter ses-2 → ses-1)" in capsys.readouterr().err


def test_from_nothing_to_the_report_and_again(
    run_matrix: RunMatrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--engine=native", "--subjects=2", "--runs=2", "--jobs=2", "--experiment=whole"]
    assert run_matrix(*words) == 0
    said = capsys.readouterr().out
    assert "12: 2 subjects x (2 perturbed + 4 references); 0 are done" in said
    assert said.endswith("results/whole/report.html\n")
    for name in ("report.html", "significance.csv", "repeatability.csv", "experiment.json"):
        assert (tmp_path / "results/whole" / name).stat().st_size > 0
    for folder in ("sample-02", "sample-ieee", "maps"):  # each a BIDS derivative
        about = json.loads(
            (tmp_path / f"results/whole/{folder}/dataset_description.json").read_text()
        )
        assert about["DatasetType"] == "derivative"
    sidecar = tmp_path / "results/whole/sample-02/space-MNI152_desc-moved_T1w.json"
    assert json.loads(sidecar.read_text())["SkullStripped"] is True
    samples = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sample.json")}
    assert run_matrix(*words) == 0
    assert "12 are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sample.json")} == samples


def test_one_run_has_no_spread(
    run_matrix: RunMatrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_matrix("--subjects=1", "--runs=1") == 0
    assert "no spread" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("sample.json"))) == 5
