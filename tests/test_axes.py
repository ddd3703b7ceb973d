"""Axes by name: 48 ways to store a volume, brought to one and back."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest

from morphbits import axes, images
from morphbits.axes import Turn
from morphbits.images import Image

SHAPE = (5, 7, 4)
# multiples of 1/64, so that the corner of a flipped volume is exact in float64
GRIDS = {
    "upright": np.diag([2.0, 1.5, 0.75, 1]),
    "oblique": np.array(
        [[1.5, -0.5, 0.125, 3], [0.625, 1.75, 0.25, -8], [-0.25, -0.25, 2.5, 5], [0, 0, 0, 1]]
    ),
    "sheared": np.array([[2.0, 0.5, 0, 1], [0, 1, 0.25, 2], [0, 0, 3, 4], [0, 0, 0, 1]]),
    "45 degrees": np.array([[1.0, -1, 0, 7], [1, 1, 0, 0], [0, 0, 1, -3], [0, 0, 0, 1]]),
    "45 degrees twice": np.array([[1.0, -1, 1, 7], [1, 1, -1, 0], [1, 0, 1, -3], [0, 0, 0, 1]]),
}


def stored(image: Image) -> list[Image]:
    """The image as 48 files hold it that differ in the order and direction of their axes."""
    made = []
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Turn(order, flips)
            affine = turn.affine(image.affine, image.data.shape)
            made.append(Image(turn.array(image.data), affine))
    return made


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).random(SHAPE, dtype=np.float32)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_turn_moves_no_voxel_in_the_world_and_is_undone(
    volume: np.ndarray, grid: np.ndarray
) -> None:
    places = np.moveaxis(np.indices(SHAPE), 0, -1)
    for name in axes.NAMES:
        turn = axes.turn_to(grid, name)
        there = np.stack([turn.array(places[..., v]) for v in range(3)], -1)
        affine = turn.affine(grid, SHAPE)
        world = np.moveaxis(np.indices(there.shape[:3]), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        assert np.array_equal(world, there @ grid[:3, :3].T + grid[:3, 3])
        assert np.array_equal(turn.array_back(turn.array(volume)), volume)


def test_names_are_those_of_the_field() -> None:
    assert len(set(axes.NAMES)) == 48
    for image in stored(Image(np.zeros(SHAPE), GRIDS["oblique"])):
        name = axes.name_of(image.affine)
        assert name == "".join(nibabel.aff2axcodes(image.affine))
        turn = axes.turn_to(image.affine, "LIA")
        assert axes.name_of(turn.affine(image.affine, image.data.shape)) == "LIA"


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", ["RAS", "LIA", "PSL"])
def test_one_world_stored_in_48_ways_is_turned_to_one_array(
    volume: np.ndarray, grid: np.ndarray, name: str
) -> None:
    """Also where two directions are equally close, as at 45°."""
    first, *others = (
        (turn.array(image.data), turn.affine(image.affine, image.data.shape))
        for image in stored(Image(volume, grid))
        for turn in [axes.turn_to(image.affine, name)]
    )
    for data, affine in others:
        assert np.array_equal(data, first[0]) and np.array_equal(affine, first[1])


def test_a_warp_comes_back_in_the_voxels_of_the_file() -> None:
    """What it adds in the world is the same."""
    rng = np.random.default_rng(1)
    grid = GRIDS["oblique"]
    for name in axes.NAMES:
        turn = axes.turn_to(grid, name)
        turned_affine = turn.affine(grid, SHAPE)
        there = rng.integers(-8, 8, (*turn.array(np.zeros(SHAPE)).shape, 3)).astype(np.float32)
        back = turn.warp_back(there)
        assert back.shape == (*SHAPE, 3)
        world = there @ turned_affine[:3, :3].T
        for v in range(3):
            assert np.array_equal(turn.array_back(world[..., v]), (back @ grid[:3, :3].T)[..., v])


@pytest.mark.parametrize("grid", list(GRIDS.values())[:3], ids=list(GRIDS)[:3])
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_a_pair_is_prepared_alike_however_its_files_are_stored(
    grid: np.ndarray, which: str
) -> None:
    """Bit for bit, resampled, cropped and padded, centres aligned or not: all of it is computed in
    the model's axes. (The shapes are odd, so padding and cropping are not symmetric.)"""
    rng = np.random.default_rng(2)
    data = {name: np.zeros((19, 22, 17), np.float32) for name in ("moving", "fixed")}
    for array in data.values():
        array[3:15, 4:19, 2:13] = rng.random((12, 15, 11))
    shifted = grid + np.pad([[1.25], [-2.5], [0.75]], ((0, 1), (3, 0)))
    pair = {"moving": Image(data["moving"], shifted), "fixed": Image(data["fixed"], grid)}
    for align in ("header", "centre"):
        results = [
            images.prepare(**pair | {which: image}, align=align, crop=True, orientation="LIA")
            for image in stored(pair[which])
        ]
        for prepared in results:
            assert prepared.grid == results[0].grid
            assert np.array_equal(prepared.fixed, results[0].fixed)
            assert np.array_equal(prepared.moving, results[0].moving)
            assert np.array_equal(prepared.alignment, results[0].alignment)
            back = prepared.moved_back(prepared.fixed)
            file = prepared.fixed_affine
            known = next(i for i in stored(pair["fixed"]) if np.array_equal(i.affine, file))
            assert np.array_equal(back, images.normalize(known.data))
