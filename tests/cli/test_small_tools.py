"""make_phantom.py, normalize.py, warp.py, evaluate.py: what they write and what they refuse."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from morphbits import bids, images
from morphbits.bids import Dataset
from morphbits.datasets import phantom
from morphbits.errors import run_cli

PYTHON = Path(__file__).parents[2] / "python"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script as its user would; gives the exit status and all that was printed."""

    def call(script: str, *words: object) -> tuple[int, str]:
        monkeypatch.syspath_prepend(str(PYTHON))
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
        main = importlib.import_module(script).main
        with pytest.raises(SystemExit) as ended:
            run_cli(main)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return call


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return phantom.make_dataset(tmp_path_factory.mktemp("data"), 2, size="4mm")


def test_make_phantom(tmp_path: Path, run: Run, dataset: Dataset) -> None:
    status, printed = run("make_phantom", "--subjects", 2, "--size", "4mm", "--data", tmp_path)
    assert status == 0 and "2 subjects" in printed and "phantoms: 2/2 made" in printed
    made = bids.phantom_dataset(tmp_path, "4mm")
    for subject in dataset.subjects():
        assert made.moving(subject).read_bytes() == dataset.moving(subject).read_bytes()
    status, printed = run("make_phantom", "--size", "4mm", "--data", tmp_path, "--seed", 9)
    assert status == 2 and "delete that folder" in printed


def test_normalize(tmp_path: Path, run: Run, dataset: Dataset) -> None:
    status, _ = run("normalize", "--input", dataset.root, "--output", tmp_path / "out")
    assert status == 0
    for subject in dataset.subjects():
        source = dataset.moving(subject)
        before = images.load(source)
        after = images.load(tmp_path / "out" / source.relative_to(dataset.root))
        assert (after.data.min(), after.data.max()) == (0, 1)
        assert images.same_grid(before, after)
        assert np.array_equal(after.data, images.normalize(before.data))
    for words, says in (
        (("--input", tmp_path, "--pattern", "*.mgz"), "another --pattern"),
        (("--input", tmp_path / "missing"), "another --pattern"),
        (("--input", dataset.root, "--output", dataset.root), "name another one"),
    ):
        status, printed = run("normalize", "--output", tmp_path / "x", *words)
        assert status == 2 and says in printed and printed.count("\n") == 1


def test_warp_and_evaluate_show_that_the_true_warp_registers(
    tmp_path: Path, run: Run, dataset: Dataset
) -> None:
    subject = dataset.subjects()[0]
    labels, warp = dataset.moving_labels(subject), dataset.true_warp(subject)
    moved = tmp_path / "moved.nii.gz"
    common = ("--warp", warp, "--moved", moved)
    assert run("warp", "--moving", labels, "--labels", *common)[0] == 0
    assert set(np.unique(images.load_labels(moved).data)) <= {0, 1, 2, 3}

    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"a,b\n{moved},{dataset.fixed_labels()}\n{labels},{dataset.fixed_labels()}\n")
    table = tmp_path / "dice.csv"
    assert run("evaluate", "--pairs", pairs, "--measure", "dice", "--output", table)[0] == 0
    rows = list(csv.DictReader(table.open()))
    assert [row["label"] for row in rows] == ["1", "2", "3"] * 2
    after, before = [float(r["value"]) for r in rows[:3]], [float(r["value"]) for r in rows[3:]]
    assert all(a > b + 0.05 for a, b in zip(after, before, strict=True))
    assert min(after[1:]) > 0.8  # 4 mm voxels: partial volume costs the rest

    for measure in ("surface", "hausdorff95"):
        run("evaluate", "--pairs", pairs, "--measure", measure, "--output", table)
        values = [float(row["value"]) for row in csv.DictReader(table.open())]
        after, before = sum(values[:3]), sum(values[3:])
        assert after < before, measure

    assert run("warp", "--moving", dataset.moving(subject), *common)[0] == 0
    image, fixed = images.load(moved).data, images.load(dataset.fixed()).data
    still = images.load(dataset.moving(subject)).data
    assert np.corrcoef(image.flat, fixed.flat)[0, 1] > np.corrcoef(still.flat, fixed.flat)[0, 1]


def test_evaluate_warps(tmp_path: Path, run: Run, dataset: Dataset) -> None:
    one, two = dataset.subjects()
    pairs = tmp_path / "pairs.csv"
    paths = dataset.true_warp(one), dataset.true_warp(two), dataset.fixed_labels()
    pairs.write_text("a,b,mask\n" + ",".join(map(str, paths)) + "\n")
    status, printed = run("evaluate", "--pairs", pairs, "--measure", "warp")
    rows = list(csv.DictReader(printed.splitlines()))
    assert status == 0 and [row["label"] for row in rows] == ["mean_mm", "p95_mm"]
    assert 2 < float(rows[0]["value"]) < float(rows[1]["value"]) < 30


def test_warp_undoes_the_alignment_that_the_sample_records(tmp_path: Path, run: Run) -> None:
    """What warp.py gives is what the network moved, also where centres were aligned."""
    rng = np.random.default_rng(1)
    affine = np.diag([2.0, 2, 2, 1])
    away = affine.copy()
    away[:3, 3] = 200, -100, 50
    data = np.zeros((16, 16, 16), np.float32)
    data[4:12, 4:12, 4:12] = 1 + rng.random((8, 8, 8))
    images.save(tmp_path / "moving.nii.gz", data, away)
    moving = images.load(tmp_path / "moving.nii.gz")
    prepared = images.prepare(moving, images.Image(data, affine))
    warp = np.zeros((16, 16, 16, 3), np.float32)
    warp[..., 2] = 1
    images.save(tmp_path / "warp.nii.gz", warp, affine)
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"provenance": {"alignment": prepared.alignment.tolist()}}))
    words = ("--moving", moving.path, "--warp", tmp_path / "warp.nii.gz", "--moved")
    moved = tmp_path / "moved.nii.gz"
    assert run("warp", *words, moved, "--sample", sample)[0] == 0
    assert np.allclose(images.load(moved).data[..., :-1], data[..., 1:], atol=1e-4)
    sample.write_text("{}")
    status, printed = run("warp", *words, moved, "--sample", sample)
    assert status == 2 and "no sample.json" in printed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the list"),
        ("", "needs a first line a,b"),
        ("a,c\nx,y\n", "needs a first line a,b"),
        ("a,b\nx.nii.gz,\n", "needs a first line a,b"),
        ("a,b\nx.nii.gz,y.nii.gz\n", "no file"),
    ],
)
def test_evaluate_refuses_lists_that_are_not(
    tmp_path: Path, run: Run, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "pairs.csv").write_text(content)
    status, printed = run("evaluate", "--pairs", tmp_path / "pairs.csv")
    assert status == 2 and says in printed and printed.count("\n") == 1


def test_evaluate_refuses_two_grids(tmp_path: Path, run: Run) -> None:
    for name, n in (("a", 4), ("b", 5)):
        images.save(tmp_path / f"{name}.nii.gz", np.ones((n, 4, 4), int), np.eye(4))
    (tmp_path / "pairs.csv").write_text("a,b\na.nii.gz,b.nii.gz\n")
    status, printed = run("evaluate", "--pairs", tmp_path / "pairs.csv")
    assert status == 2 and "not on one grid" in printed
