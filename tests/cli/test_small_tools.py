"""morphbits phantom, normalize, warp, evaluate: what they write and what they refuse."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from morphbits import bids, cli, images
from morphbits.bids import Dataset
from morphbits.choices import WARP_FORMATS
from morphbits.datasets import phantom
from morphbits.provenance import data_sha256

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb as its user would; gives the exit status and all that was printed."""

    def call(verb: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["morphbits", verb, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return call


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return phantom.make_dataset(tmp_path_factory.mktemp("data"), 2, size="4mm")


def test_make_phantom(tmp_path: Path, run: Run, dataset: Dataset) -> None:
    status, printed = run("phantom", "--subjects", 2, "--size", "4mm", "--data", tmp_path)
    assert status == 0 and "2 subjects" in printed and "phantoms: 2/2 made" in printed
    made = bids.phantom_dataset(tmp_path, "4mm")
    for subject in dataset.subjects():
        assert made.moving(subject).read_bytes() == dataset.moving(subject).read_bytes()
    status, printed = run("phantom", "--size", "4mm", "--data", tmp_path, "--seed", 9)
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


def test_warp_does_not_guess_left_and_right(tmp_path: Path, run: Run) -> None:
    labels = np.random.default_rng(4).integers(0, 4, (8, 9, 10)).astype("i2")
    warp = np.zeros((8, 9, 10, 3), "f4")
    files = {"moving": tmp_path / "a.nii.gz", "warp": tmp_path / "w.nii.gz"}
    nibabel.save(nibabel.Nifti1Image(labels, None), files["moving"])
    nibabel.save(nibabel.Nifti1Image(warp, None), files["warp"])
    moved = tmp_path / "moved.nii.gz"
    words = [w for name, path in files.items() for w in (f"--{name}", path)]
    words += ["--labels", "--moved", moved]
    status, printed = run("warp", *words)
    assert status == 2 and "a.nii.gz does not say how its axes lie" in printed
    assert run("warp", *words, "--orientation", "RAS")[0] == 0
    assert np.array_equal(images.load_labels(moved).data, labels)
    images.save(files["moving"], labels, np.eye(4))
    status, printed = run("warp", *words)
    assert status == 2 and "w.nii.gz does not say how its axes lie" in printed


def test_evaluate_warps(tmp_path: Path, run: Run, dataset: Dataset) -> None:
    one, two = dataset.subjects()
    pairs = tmp_path / "pairs.csv"
    paths = dataset.true_warp(one), dataset.true_warp(two), dataset.fixed_labels()
    pairs.write_text("a,b,mask\n" + ",".join(map(str, paths)) + "\n")
    status, printed = run("evaluate", "--pairs", pairs, "--measure", "warp")
    rows = list(csv.DictReader(printed.splitlines()))
    assert status == 0 and [row["label"] for row in rows] == ["mean_mm", "p95_mm"]
    assert 2 < float(rows[0]["value"]) < float(rows[1]["value"]) < 30


def test_warp_finds_the_alignment_of_a_file_that_does_not_say_it(tmp_path: Path, run: Run) -> None:
    """In sample.json: the one that is named, or the one beside the warp; never another's."""
    rng = np.random.default_rng(1)
    affine = np.diag([2.0, 2, 2, 1])
    away = affine.copy()
    away[:3, 3] = 20, -10, 14  # far, and it still overlaps with where it should be
    data = np.zeros((16, 16, 16), np.float32)
    data[4:12, 4:12, 4:12] = 1 + rng.random((8, 8, 8))
    images.save(tmp_path / "moving.nii.gz", data, away)
    moving = images.load(tmp_path / "moving.nii.gz")
    prepared = images.prepare(moving, images.Image(data, affine))
    warp = np.zeros((16, 16, 16, 3), np.float32)
    warp[..., 2] = 1
    path = tmp_path / "derivatives/anat/warp.nii.gz"
    images.save(path, warp, affine)  # as files were before a warp said what it is
    words = ("--moving", moving.path, "--warp", path, "--moved")
    moved = tmp_path / "moved.nii.gz"
    status, printed = run("warp", *words, moved)
    assert status == 0 and "does not say what its numbers are" in printed

    def right() -> bool:
        return np.allclose(images.load(moved).data[..., :-1], data[..., 1:], atol=1e-4)

    assert not right()
    record = {
        "provenance": {"alignment": prepared.alignment.tolist()},
        "outputs": {"warp": {"sha256": data_sha256(warp)}},
    }
    sample = tmp_path / "a.json"
    sample.write_text(json.dumps(record))
    status, printed = run("warp", *words, moved, "--sample", sample)
    assert status == 0 and printed.strip() == str(moved) and right()
    sample.rename(tmp_path / "derivatives/sample.json")
    (tmp_path / "derivatives/anat/m.sample.json").write_text("{}")
    assert run("warp", *words, moved)[1].strip() == str(moved) and right()

    record["outputs"] = {"warp": {"sha256": data_sha256(warp + 1)}}
    for content, says in ((record, "is not the record of"), ({}, "no sample.json")):
        sample.write_text(json.dumps(content))
        status, printed = run("warp", *words, moved, "--sample", sample)
        assert status == 2 and says in printed and printed.count("\n") == 1


def test_warps_that_lead_nowhere_or_are_of_other_programs_are_refused(
    tmp_path: Path, run: Run
) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    data = np.random.default_rng(1).random((16, 16, 16), np.float32)
    away = affine.copy()
    away[:3, 3] = 500, 0, 0
    images.save(tmp_path / "moving.nii.gz", data, away)
    warp, moved = tmp_path / "warp.nii.gz", tmp_path / "moved.nii.gz"
    images.save_warp(warp, np.zeros((16, 16, 16, 3)), affine, np.zeros(3))
    words = ("--moving", tmp_path / "moving.nii.gz", "--warp", warp, "--moved", moved)
    status, printed = run("warp", *words)
    assert status == 2 and "leads nowhere" in printed and not moved.exists()

    foreign = nibabel.Nifti1Image(np.zeros((16, 16, 16, 3), np.float32), affine)
    foreign.header["intent_code"] = 2007
    nibabel.save(foreign, warp)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,mask\nwarp.nii.gz,warp.nii.gz,moving.nii.gz\n")
    for answer in (run("warp", *words), run("evaluate", "--pairs", pairs, "--measure", "warp")):
        assert answer[0] == 2 and "FSL" in answer[1] and answer[1].count("\n") == 1


def test_a_warp_is_exported_and_read_again(tmp_path: Path, run: Run) -> None:
    """To every format and back; and an exported warp moves the image as the warp does."""
    affine = np.array([[0, 2.0, 0, 4], [-1.5, 0, 0, 8], [0, 0, 3, -9], [0, 0, 0, 1]])
    random = np.random.default_rng(1)
    data, away = random.random((16, 14, 12), np.float32), affine.copy()
    away[:3, 3] += 40, -3, 2
    moving, name = tmp_path / "moving.nii.gz", "sub-1_from-T1w_to-MNI152_mode-image_xfm"
    images.save(moving, data, away)
    warp = tmp_path / f"{name}.nii.gz"
    field = random.uniform(-2, 2, (16, 14, 12, 3)).astype("f4")
    images.save_warp(warp, field, affine, np.array([40.0, -3, 2]))
    moved = tmp_path / "moved.nii.gz"
    words = ("--moving", moving, "--warp", warp, "--moved", moved)
    assert run("warp", *words) == (0, f"{moved}\n")
    truth = images.load(moved).data
    for form in WARP_FORMATS:
        folder = tmp_path / form
        status, said = run("warp", *words[:4], "--export", folder, "--warp-format", form)
        target = folder / f"{name}.nii.gz"
        assert (status, said) == (0, f"{target}\n")
        sidecar = json.loads((folder / f"{name}.json").read_text())
        assert sidecar["Format"] == form and sidecar["Sources"] == [str(warp), str(moving)]
        assert run("warp", "--moving", moving, "--warp", target, "--moved", moved)[0] == 0
        # displacements of 43 mm in float32 (4e-6 mm), neighbours differ by 1 in 1.5 mm
        assert np.abs(images.load(moved).data - truth).max() < 2e-5

    for wrong, says in (
        (("--warp", warp), "give --moving and --moved"),
        (("--warp", warp, "--moved", moved), "give --moving and --moved"),
        (("--warp", warp, "--export", warp), "must not replace"),
        ((*words[:4], "--moved", warp), "must not replace"),
        ((*words[:4], "--moved", moving), "must not replace"),
        ((*words[:4], "--export", moving), "must not replace"),
        ((*words, "--export", moved), "must not replace"),
        (("--warp", warp, "--export", tmp_path / "a.nii", "--warp-format", "fsl"), "needs the mo"),
        (("--warp", warp, "--export", tmp_path / "a.mgz", "--warp-format", "itk"), "NIfTI file"),
    ):
        status, said = run("warp", *wrong)
        assert status == 2 and says in said and said.count("\n") == 1


def test_evaluate_counts_the_shift_of_a_warp(tmp_path: Path, run: Run) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    zeros = np.zeros((8, 8, 8, 3))
    images.save_warp(tmp_path / "a.nii.gz", zeros, affine, np.array([3.0, 0, 0]))
    images.save_warp(tmp_path / "b.npz", zeros + np.array([0.0, 2, 0]), affine, np.zeros(3))
    images.save(tmp_path / "mask.nii.gz", np.ones((8, 8, 8), np.int32), affine)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,mask\na.nii.gz,b.npz,mask.nii.gz\nb.npz,a.nii.gz,mask.nii.gz\n")
    before = pairs.read_bytes()
    status, said = run("evaluate", "--pairs", pairs, "--measure", "warp", "--output", pairs)
    assert status == 2 and "must not replace" in said and pairs.read_bytes() == before
    printed = run("evaluate", "--pairs", pairs, "--measure", "warp")[1]
    assert [float(row["value"]) for row in csv.DictReader(printed.splitlines())] == [5] * 4


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
