"""Accuracy measures, by cases that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from morphbits.images import Image
from morphbits.stats import accuracy


def cube(shape: tuple[int, ...], start: tuple[int, ...], size: int, label: int = 1) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    labels[tuple(slice(s, s + size) for s in start)] = label
    return labels


def test_dice_of_known_overlaps() -> None:
    a = cube((9, 9, 9), (1, 1, 1), 4)
    half = cube((9, 9, 9), (3, 1, 1), 4)
    apart = cube((9, 9, 9), (5, 5, 5), 4, label=2)
    assert accuracy.dice(a, a) == {1: 1.0}
    assert accuracy.dice(a, half) == {1: 0.5}
    assert accuracy.dice(a, apart) == {1: 0.0, 2: 0.0}
    assert accuracy.dice(a, cube((9, 9, 9), (1, 1, 1), 2)) == {1: 2 * 8 / (64 + 8)}
    unheld = accuracy.dice(a, a, labels=[1, 3])
    assert unheld[1] == 1 and math.isnan(unheld[3])


def test_surface_distance_of_known_shapes() -> None:
    shape = (20, 20, 20)
    plane_a, plane_b = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    plane_a[5], plane_b[8] = 1, 1
    both = accuracy.SurfaceDistance
    # parallel planes: 3 voxels of 2 mm apart everywhere, in both directions
    assert accuracy.surface_distance(plane_a, plane_b, (2, 1, 1)) == {1: both(6, 6)}
    assert accuracy.surface_distance(plane_a, plane_a, (2, 1, 1)) == {1: both(0, 0)}
    point_a, point_b = cube(shape, (3, 4, 5), 1), cube(shape, (6, 8, 5), 1)
    assert accuracy.surface_distance(point_a, point_b, (1, 1, 1)) == {1: both(5, 5)}
    # asymmetric: one voxel against two, of which one is the same and the other 4 mm away
    two = point_a + cube(shape, (3, 8, 5), 1)
    one_sided = accuracy.surface_distance(point_a, two, (1, 1, 1))[1]
    assert one_sided.mean == pytest.approx(4 / 3)
    # from the one voxel 0, from the two 0 and 4: their 95th percentile, interpolated, is 3.8
    assert one_sided.p95 == pytest.approx(3.8)
    # only the surface counts: a solid cube of 5 and the same cube with a hollow centre voxel
    # differ by the hollow's six neighbours, which become surface, each 1 voxel inside the other's
    solid = cube(shape, (5, 5, 5), 5)
    hollow = solid.copy()
    hollow[7, 7, 7] = 0
    surface = 125 - 27
    expected = 6 * 1 / (surface + surface + 6)
    assert accuracy.surface_distance(solid, hollow, (1, 1, 1))[1].mean == pytest.approx(expected)
    missing = accuracy.surface_distance(point_a, np.zeros(shape, np.int32), (1, 1, 1))
    assert math.isnan(missing[1].mean) and math.isnan(missing[1].p95)


def test_warp_error_is_in_millimetres_inside_the_mask() -> None:
    warp = np.zeros((4, 4, 4, 3), np.float32)
    true = np.zeros_like(warp)
    true[..., 0], true[..., 1] = 3, 2
    mask = np.ones((4, 4, 4), bool)
    affine = np.diag([1.0, 2.0, 5.0, 1])
    assert accuracy.warp_error(warp, true, affine, mask) == accuracy.WarpError(5.0, 5.0)
    back = np.array([3.0, 4, 0])  # a shift that makes up for it
    assert accuracy.warp_error(warp, true, affine, mask, back) == accuracy.WarpError(0, 0)
    turned = affine[[1, 0, 2, 3]]  # the same voxels in a turned world: distances stay
    assert accuracy.warp_error(warp, true, turned, mask) == accuracy.WarpError(5.0, 5.0)
    true[0] = 100
    mask[0] = False
    assert accuracy.warp_error(warp, true, affine, mask).mean == 5
    assert accuracy.warp_error(true, true, affine, mask) == accuracy.WarpError(0, 0)


def test_p95_is_the_95th_percentile() -> None:
    true = np.zeros((101, 1, 1, 3))
    true[:, 0, 0, 2] = np.arange(101)
    mask = np.ones((101, 1, 1), bool)
    error = accuracy.warp_error(np.zeros_like(true), true, np.eye(4), mask)
    assert (error.mean, error.p95) == (50, 95)


def test_folding_is_counted() -> None:
    warp = np.zeros((10, 10, 10, 3), np.float32)
    assert accuracy.folding(warp) == accuracy.Folding(0, 0)
    x = np.arange(10, dtype=np.float32)
    warp[..., 0] = (-2 * x)[:, None, None]  # x goes to -x: mirrored everywhere
    assert accuracy.folding(warp) == accuracy.Folding(1000, 1)
    warp[..., 0] = (-x)[:, None, None]  # everything onto one plane: determinant 0 is a fold
    assert accuracy.folding(warp).voxels == 1000
    warp[...] = 0
    warp[5, 5, 5, 0] = 3  # central difference at 6: 1 + (0 - 3) / 2 < 0; at 4: 1 + 3 / 2 > 0
    assert accuracy.folding(warp) == accuracy.Folding(1, 1 / 1000)
    mask = np.zeros((10, 10, 10), bool)
    mask[6, 5, :] = True
    assert accuracy.folding(warp, mask) == accuracy.Folding(1, 1 / 10)


def test_moved_labels_follow_the_warp_through_both_affines() -> None:
    labels = np.arange(8 * 4 * 4).reshape(8, 4, 4).astype(np.int32)
    moving = Image(labels, np.diag([2.0, 2, 2, 1]))
    warp = np.zeros((5, 4, 4, 3), np.float32)
    warp[..., 0] = 1
    fixed = np.diag([2.0, 2, 2, 1])
    fixed[0, 3] = 4  # the fixed grid starts two voxels further on
    moved = accuracy.moved_labels(moving, Image(warp, fixed))
    assert np.array_equal(moved, labels[3:8])
