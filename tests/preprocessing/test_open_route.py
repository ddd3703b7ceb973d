"""The open route on heads that are made for it: a phantom's brain in skull, scalp and neck."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from support.corr_standin import LABELS, head, rows, write_table

from morphbits import bids, images, preprocessing
from morphbits.datasets import corr, resolve
from morphbits.datasets.corr_table import select
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.preprocessing import open_route


@functools.cache
def made_head(index: int) -> tuple[Image, Image]:
    """A head and its brain's mask on a grid of 4 mm."""
    return head(index, "4mm")


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
    whole, mask = made_head(2)
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
    assert preprocessing.failure(brain.quality) == ""
    for label, tissue in enumerate(("CSF", "grey", "white"), start=1):
        assert brain.image[brain.labels == label].mean() > 0, tissue
    means = [brain.image[brain.labels == label].mean() for label in (1, 2, 3)]
    assert means == sorted(means)


def brains(goal: open_route.Target) -> dict[str, Image]:
    """The template's brain as it is, and as other programs leave a brain that they extract."""
    rng = np.random.default_rng(0)
    data = np.where(goal.brain, 20 + 200 * goal.image, 0).astype(np.float32)
    spot = data.copy()
    spot[1, 1, 1] = -1
    deep, hot = spot.copy(), spot.copy()
    deep[1, 1, 1], hot[1, 1, 1] = -3000, 30000
    noise = rng.standard_normal((2, *data.shape)) * 2  # of a brain whose tissues are 90 to 220
    box = ndimage.find_objects(goal.brain.astype(int))[0]
    cropped = goal.affine.copy()
    cropped[:3, 3] += cropped[:3, :3] @ [side.start for side in box]
    made = {
        "plain": data,
        "one voxel at -1": spot,
        "one voxel at -3000": deep,
        "one voxel at 30000": hot,
        "noise": data + noise[0],
        "magnitudes of noise": np.hypot(data + noise[0], noise[1]),
        "ringing": ringing(data),
        "background of 100": data + 100,
    }
    found = {name: Image(v.astype(np.float32), goal.affine) for name, v in made.items()}
    return found | {"cropped to the brain": Image(data[box].copy(), cropped)}


def ringing(data: np.ndarray) -> np.ndarray:
    """Without its highest frequencies, as after interpolation by sines."""
    waves = np.fft.fftn(data)
    for axis, n in enumerate(data.shape):
        high = np.abs(np.fft.fftfreq(n)) > 0.35
        waves[(slice(None),) * axis + (high,)] = 0
    return np.fft.ifftn(waves).real


def test_an_extracted_brain_keeps_its_own_border() -> None:
    goal = open_route.target("4mm")
    outside, inside = (ndimage.distance_transform_edt(x) for x in (~goal.brain, goal.brain))
    distance = (4 * (outside - inside)).astype(np.float32)
    still = sitk.AffineTransform(3)
    for name, brain in brains(goal).items():
        own = open_route._own_border(brain, still, goal, distance)
        assert own is not None, name
        if "nois" in name or "ring" in name:  # a voxel of 4 mm at the border may go either way
            core = ndimage.binary_erosion(goal.brain)
            assert (own[core]).all() and dice(own, goal.brain) > 0.97, name
        else:
            assert np.array_equal(own, goal.brain), name
        level = open_route._background(brain.data)
        assert (brain.data[brain.data < level] < level - 0.5).sum() <= brain.data.size / 1000, name


def test_a_head_is_not_taken_for_an_extracted_brain() -> None:
    """Also where the air around it is exactly 0, which is most of the image."""
    goal = open_route.target("4mm")
    for index in (1, 2):
        noisy, mask = made_head(index)
        whole = Image(np.where(noisy.data < 0.1, np.float32(0), noisy.data), noisy.affine)
        there = open_route.Target(whole.data, goal.tissues, mask.data.astype("i4"), whole.affine)
        outside, inside = (ndimage.distance_transform_edt(x) for x in (~mask.data, mask.data))
        distance = (4 * (outside - inside)).astype(np.float32)
        assert (whole.data == 0).mean() > 0.5
        assert open_route._own_border(whole, sitk.AffineTransform(3), there, distance) is None


def test_a_mask_that_lacks_cortex_is_seen() -> None:
    goal = open_route.target("4mm")
    for index in (1, 2):
        whole, mask = made_head(index)
        there = open_route.Target(whole.data, goal.tissues, mask.data.astype("i4"), whole.affine)
        depth = 4 * ndimage.distance_transform_edt(mask.data)
        height = 4 * ndimage.distance_transform_edt(~mask.data)
        limit = preprocessing.THRESHOLDS["border"]
        measured = [
            open_route.border(whole.data, m, there)
            for m in (mask.data, height <= 4, depth > 2 * 4, depth > 3 * 4)
        ]
        assert min(measured[:2]) > limit + 0.1 and max(measured[2:]) < limit - 0.1
        low = preprocessing.failure({"correlation": 1, "dice": 1, "border": measured[2]})
        assert "may lack cortex" in low


def test_a_head_that_is_not_where_it_should_be_is_left_out() -> None:
    goal = open_route.target("4mm")
    good = preprocessing.failure(open_route.measure(goal.image, goal.brain, goal))
    assert good == ""
    turned = open_route.measure(goal.image[:, :, ::-1], goal.brain[:, :, ::-1], goal)
    assert "correlation with the template" in preprocessing.failure(turned)
    moved = open_route.measure(
        np.roll(goal.image, 5, axis=1), np.roll(goal.brain, 5, axis=1), goal
    )  # 20 mm
    assert "dice with the template" in preprocessing.failure(moved)
    assert preprocessing.failure({"correlation": float("nan"), "dice": 1.0})


@pytest.fixture
def raw_corr(tmp_path: Path) -> Path:
    """`data/corr` with two heads and a box of noise in it, and the table that lists them."""
    contents = {LABELS[0]: made_head(1)[0], LABELS[2]: made_head(2)[0]}
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
