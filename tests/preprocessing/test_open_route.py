"""The open route on heads that are made for it: a phantom's brain in skull, scalp and neck."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from corr_standin import LABELS, head, rows, write_table

from morphbits import bids, images, preprocessing
from morphbits.datasets import corr, resolve
from morphbits.datasets.corr_table import select
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.preprocessing import open_route


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_target_is_the_template_in_the_networks_axes() -> None:
    goal = open_route.target("4mm")
    assert goal.image.shape == (40, 48, 56) and goal.image.dtype == np.float32
    turns = goal.affine[:3, :3] / 4
    assert np.array_equal(turns, [[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    # the whole brain is on the grid, where the template has it
    assert goal.brain.sum() * 64 == pytest.approx(1886539, rel=0.01)  # mm³ of the template
    centre = goal.affine[:3] @ [*np.argwhere(goal.brain).mean(axis=0), 1]
    assert np.abs(centre - [0, -22.1, 9.5]).max() < 1  # of the template's brain, RAS mm


def test_a_head_becomes_a_brain_on_the_template() -> None:
    whole, mask = head(2, "4mm")
    brain = open_route.extract(whole, "4mm")
    goal = open_route.target("4mm")
    to_template = np.linalg.inv(brain.template_to_head) @ mask.affine
    truth = images.resample(
        Image(mask.data.astype(np.float32), to_template), goal.image.shape, goal.affine
    )
    # 0.97 was measured; at 4 mm one voxel of the border all around would be 0.85
    assert dice(brain.labels > 0, truth.data > 0.5) > 0.93
    assert (brain.image.min(), brain.image.max()) == (0, 1)
    assert (brain.image[brain.labels == 0] == 0).all()
    assert preprocessing.judge(brain.quality) == ""
    for label, tissue in enumerate(("CSF", "grey", "white"), start=1):
        assert brain.image[brain.labels == label].mean() > 0, tissue
    means = [brain.image[brain.labels == label].mean() for label in (1, 2, 3)]
    assert means == sorted(means)


def test_a_head_that_is_not_where_it_should_be_is_left_out() -> None:
    goal = open_route.target("4mm")
    good = preprocessing.judge(open_route.measure(goal.image, goal.brain, goal))
    assert good == ""
    turned = open_route.measure(goal.image[:, :, ::-1], goal.brain[:, :, ::-1], goal)
    assert "correlation with the template" in preprocessing.judge(turned)
    moved = open_route.measure(
        np.roll(goal.image, 5, axis=1), np.roll(goal.brain, 5, axis=1), goal
    )  # 20 mm
    assert "dice with the template" in preprocessing.judge(moved)
    assert preprocessing.judge({"correlation": float("nan"), "dice": 1.0})


@pytest.fixture
def raw_corr(tmp_path: Path) -> Path:
    """`data/corr` with two heads and a box of noise in it, and the table that lists them."""
    contents = {LABELS[0]: head(1, "4mm")[0], LABELS[2]: head(2, "4mm")[0]}
    noise = np.random.default_rng(0).random((40, 40, 40), np.float32)
    contents[LABELS[1]] = Image(noise, np.diag([4.0, 4, 4, 1]))
    for row in rows():
        image = contents[row.subject.label]
        images.save(bids.corr_raw(tmp_path) / row.path, image.data, image.affine)
    write_table(tmp_path / "table.csv", {k: v.data.shape for k, v in contents.items()})
    return tmp_path


@pytest.mark.slow
def test_failures_are_reported_and_left_out_and_a_second_run_does_nothing(
    raw_corr: Path,
) -> None:
    scans = select("inference", raw_corr / "table.csv")
    assert "not preprocessed" in (corr.lacking(raw_corr) or "")
    said: list[str] = []
    outcomes = preprocessing.preprocess(raw_corr, scans, "open", "4mm", 2, said.append)
    dataset, _ = resolve("corr", raw_corr)
    assert [s.label for s in dataset.subjects()] == [LABELS[0], LABELS[2]]
    assert len(said) == 1 and said[0].startswith(f"sub-{LABELS[1]}_ses-1 is left out")
    assert [bool(outcome.excluded) for outcome in outcomes] == [False, True, False]
    table = (dataset.root / "derivatives/open/quality.tsv").read_text().splitlines()
    assert len(table) == 4 and table[1].endswith("n/a")
    fixed = images.load(dataset.fixed())
    for scan in scans:
        picture = bids.quality_picture(dataset.root / "derivatives/open", scan.subject)
        seen = (np.asarray(matplotlib.image.imread(picture))[..., :3] > 0.1).any(axis=-1)
        assert 0.05 < seen.mean() < 0.9, "also of what is left out"
    for subject in dataset.subjects():
        assert images.same_grid(images.load(dataset.moving(subject)), fixed)
        labels = dataset.moving_labels(subject)
        assert labels is not None and set(np.unique(images.load_labels(labels).data)) == {
            0,
            1,
            2,
            3,
        }

    times = {path: path.stat().st_mtime_ns for path in dataset.root.glob("sub-*/**/*.gz")}
    preprocessing.preprocess(raw_corr, scans, "open", "4mm", 2, said.append)
    assert {p: p.stat().st_mtime_ns for p in times} == times and len(said) == 2
    with pytest.raises(UserError, match=r"was made with .*4mm.*move that folder away"):
        preprocessing.preprocess(raw_corr, scans, "open", "2mm")


def test_images_that_are_no_images_are_left_out(tmp_path: Path) -> None:
    scans = select(" ".join(LABELS))
    spoiled = np.ones((8, 8, 8), np.float32)
    for scan in scans:
        images.save(bids.corr_raw(tmp_path) / scan.path, spoiled, np.eye(4))
        spoiled[2, 2, 2] = np.nan
    slices = np.random.default_rng(0).random((40, 40, 2), np.float32)
    images.save(bids.corr_raw(tmp_path) / scans[2].path, slices, np.diag([4.0, 4, 4, 1]))
    said: list[str] = []
    outcomes = preprocessing.preprocess(tmp_path, scans, "open", "4mm", 1, said.append)
    for line, word in zip(said, ("constant", "not finite", "160 × 160 × 8 mm"), strict=True):
        assert word in line
    assert all(outcome.excluded for outcome in outcomes)
    assert bids.corr_dataset(tmp_path).subjects() == []


def test_what_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"35 of 35 raw images are not in .*corr.*make corr"):
        preprocessing.preprocess(tmp_path, select("inference"))
