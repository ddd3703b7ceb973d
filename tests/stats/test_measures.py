"""Measures of a sample against cases that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from morphbits.images import Image
from morphbits.stats import measures
from morphbits.stats.measures import Fit, Regions, region_names

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (10, 9, 8)
CENTRE = np.array([5.0, -3.0, 7.0])


def block(label: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[2:6, 2:6, 2:6] = label
    return labels


def around(linear: np.ndarray, translation: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """x to linear (x − CENTRE) + CENTRE + translation, (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = CENTRE - linear @ CENTRE + translation
    return matrix


def test_a_shift_of_one_voxel() -> None:
    """4³ voxels of 8 mm³; moved by one voxel, 3 of its 4 layers stay on it."""
    warp = Image(np.zeros((*SHAPE, 3), np.float32), AFFINE)
    labels = block()
    regions = Regions({"brain": labels > 0}, AFFINE, Image(labels, AFFINE), {1: "GM"}, labels)
    still = regions.measure(warp)
    assert still.values == {
        ("brain", "displacement"): 0,
        ("brain", "jacobian"): 1,
        ("GM", "volume"): 64 * 8,
        ("GM", "dice"): 1,
    }
    warp.data[..., 0] = 1
    moved = regions.measure(warp, still).values
    assert moved["GM", "volume"] == 64 * 8
    assert moved["GM", "dice"] == moved["GM", "dice_ieee"] == 0.75
    assert moved["brain", "displacement"] == 2 and moved["brain", "jacobian"] == 1
    assert moved["brain", "fd_power"] == pytest.approx(2)
    assert moved["brain", "fd_jenkinson"] == pytest.approx(2)
    warp.shift = np.array([-2.0, 0, 0])  # the same shift back, in the file's header
    assert regions.measure(warp, still).values == pytest.approx(
        still.values
        | {("GM", "dice_ieee"): 1, ("brain", "fd_power"): 0, ("brain", "fd_jenkinson"): 0},
        abs=1e-13,  # a fit in float64 to numbers of some 10 mm
    )


def test_growth_of_each_region() -> None:
    """x + g (x − 4) on one side and with another g on the other: (1 + g) there."""
    x = np.arange(SHAPE[0])[:, None, None] * np.ones(SHAPE)
    warp = Image(np.zeros((*SHAPE, 3), np.float32), AFFINE)
    warp.data[..., 0] = np.where(x < 4, 0.25, 0.5) * (x - 4)
    labels = np.zeros(SHAPE, np.int32)
    labels[1:4, 2:6, 2:6], labels[5:9, 2:6, 2:6] = 1, 2
    masks = {"brain": labels > 0, "a": labels == 1, "b": labels == 2}
    values = Regions(masks, AFFINE).measure(warp).values
    assert values["a", "jacobian"] == 1.25 and values["b", "jacobian"] == 1.5
    assert values["a", "displacement"] == 2 * 0.25 * (3 + 2 + 1) / 3
    assert values["b", "displacement"] == 2 * 0.5 * (1 + 2 + 3 + 4) / 4
    assert ("a", "volume") not in values


def test_framewise_displacement_of_a_translation() -> None:
    one = around(np.eye(3), (1, 2, -3))
    assert measures.framewise_displacement_power(one, np.eye(4), CENTRE) == pytest.approx(6)
    found = measures.framewise_displacement_jenkinson(one, np.eye(4), CENTRE)
    assert found == pytest.approx(math.sqrt(14))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_framewise_displacement_of_a_rotation(axis: str) -> None:
    one = around(Rotation.from_euler(axis, 0.01).as_matrix())
    assert measures.framewise_displacement_power(one, np.eye(4), CENTRE) == pytest.approx(0.5)
    # the sum of squares of R − 1 is 4 (1 − cos)
    expected = 80 * math.sqrt(4 * (1 - math.cos(0.01)) / 5)
    found = measures.framewise_displacement_jenkinson(one, np.eye(4), CENTRE)
    assert found == pytest.approx(expected)


def test_framewise_displacement_is_that_of_the_change() -> None:
    """After a reference that turns and moves the head, a rotation about where it is then."""
    reference = around(Rotation.from_euler("xyz", [0.3, -0.2, 0.1]).as_matrix(), (9, 8, 7))
    centre = reference[:3, :3] @ CENTRE + reference[:3, 3]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", 0.02).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    found = measures.framewise_displacement_power(turn @ reference, reference, CENTRE)
    assert found == pytest.approx(1)
    same = measures.framewise_displacement_jenkinson(reference, reference, CENTRE)
    assert same == pytest.approx(0, abs=1e-12)  # an inverse in float64, times 80 mm


def test_jenkinsons_formula_is_a_mean_over_a_ball() -> None:
    """Points drawn in the ball; scales and shears count, which Power's has no place for."""
    rng = np.random.default_rng(0)
    linear = np.eye(3) + 0.01 * rng.standard_normal((3, 3))
    one = around(linear, (0.3, -0.1, 0.2))
    points_NV = rng.uniform(-80, 80, (400_000, 3))
    points_NV = CENTRE + points_NV[np.linalg.norm(points_NV, axis=1) < 80]
    moved_NV = points_NV @ one[:3, :3].T + one[:3, 3] - points_NV
    expected = math.sqrt(np.square(moved_NV).sum(axis=1).mean())
    found = measures.framewise_displacement_jenkinson(one, np.eye(4), CENTRE)
    assert found == pytest.approx(expected, rel=0.005)  # 2·10⁵ points: 4 standard errors
    scale = around(1.01 * np.eye(3))
    # the nearest rotation is the identity but for a few roundings of float64, times 50 mm
    assert measures.framewise_displacement_power(scale, np.eye(4), CENTRE) < 1e-12
    found = measures.framewise_displacement_jenkinson(scale, np.eye(4), CENTRE)
    assert found == pytest.approx(0.01 * 80 * math.sqrt(3 / 5))


def test_the_affine_part_of_an_affine_warp_is_itself() -> None:
    rng = np.random.default_rng(1)
    matrix = around(np.eye(3) + 0.1 * rng.standard_normal((3, 3)), (4, -5, 6))
    points_NV = rng.uniform(-80, 80, (50, 3))
    displacements_NV = points_NV @ (matrix[:3, :3] - np.eye(3)).T + matrix[:3, 3]
    # 50 equations of numbers of 100 mm in float64
    np.testing.assert_allclose(Fit.of(points_NV).affine_part(displacements_NV), matrix, atol=1e-12)


def test_regions_have_the_names_of_their_table(tmp_path: Path) -> None:
    path = tmp_path / "sub-1_dseg.nii.gz"
    assert region_names([0, 1, 3], path) == {1: "CSF", 3: "WM"}
    assert region_names([0, 2, 17], path) == {2: "label 2", 17: "label 17"}
    table = "index\tname\n2\tLeft-Cerebral-White-Matter\n17\tLeft-Hippocampus\n"
    (tmp_path / "sub-1_dseg.tsv").write_text(table)
    assert region_names([2, 17, 53], path) == {
        2: "Left-Cerebral-White-Matter",
        17: "Left-Hippocampus",
        53: "label 53",
    }


def test_freesurfers_labels_have_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The common ones without FreeSurfer, all with its colour table, and only of its maps."""
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    labels = [0, 2, 17, 49, 53, 77, 255, 1002]
    path = tmp_path / "sub-1_desc-aseg_dseg.nii.gz"
    common = [
        "Left-Cerebral-White-Matter", "Left-Hippocampus", "Right-Thalamus", "Right-Hippocampus",
        "WM-hypointensities", "CC_Anterior",
    ]  # fmt: skip
    assert list(region_names(labels, path).values()) == [*common, "label 1002"]
    assert region_names(labels, tmp_path / "mri/aseg.mgz") == region_names(labels, path)
    route = tmp_path / "derivatives/freesurfer/sub-1/anat/sub-1_dseg.nii.gz"
    assert region_names(labels, route) == region_names(labels, path)
    assert region_names([17], tmp_path / "sub-1_dseg.nii.gz") == {17: "label 17"}
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path))
    assert region_names([17], path) == {17: "Left-Hippocampus"}  # nothing lies there
    (tmp_path / "FreeSurferColorLUT.txt").write_text(
        "#$Id$\n#No. Label Name:      R   G   B   A\n\n0  Unknown  0 0 0 0\n"
        "49  Right-Thalamus-Proper  0 118 14 0\n1002  ctx-lh-caudalanteriorcingulate  1 2 3 0\n"
    )
    assert region_names([17, 49, 1002], path) == {
        17: "Left-Hippocampus",
        49: "Right-Thalamus-Proper",
        1002: "ctx-lh-caudalanteriorcingulate",
    }
    (tmp_path / "sub-1_desc-aseg_dseg.tsv").write_text("index\tname\n17\thippocampus, left\n")
    assert region_names([17, 53], path) == {17: "hippocampus, left", 53: "Right-Hippocampus"}


def test_measures_of_freesurfers_labels(tmp_path: Path) -> None:
    """A map of three structures, moved by one voxel along x: volumes and Dice by their names."""
    labels = np.zeros(SHAPE, np.int32)
    for k, label in enumerate((10, 17, 53)):
        labels[1:5, 1 + 2 * k : 3 + 2 * k, 2:6] = label
    warp = np.zeros((*SHAPE, 3), np.float32)
    warp[..., 0] = 1
    names = region_names(np.unique(labels), tmp_path / "aseg.mgz")
    regions = Regions({"brain": labels > 0}, AFFINE, Image(labels, AFFINE), names, labels)
    values = regions.measure(Image(warp, AFFINE)).values
    for name in ("Left-Thalamus", "Left-Hippocampus", "Right-Hippocampus"):
        assert values[name, "volume"] == 4 * 2 * 4 * 8
        assert values[name, "dice"] == 2 * 24 / 64  # 3 of 4 layers stay on it
