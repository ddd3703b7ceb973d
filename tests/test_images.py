"""Conforming, aligning, padding images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from support.random_images import OBLIQUE, RNG, volume

from morphbits import images
from morphbits.errors import UserError
from morphbits.images import Image, NetworkGrid


def ball(shape: tuple[int, int, int], affine: np.ndarray, centre_mm: tuple[float, ...]) -> Image:
    """A smooth blob of 8 mm around a point of the world, on any grid."""
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    distance = np.sqrt(((world - np.array(centre_mm)[:, None]) ** 2).sum(0)).reshape(shape)
    return Image(np.maximum(0, 1 - distance / 8).astype(np.float32), affine)


# -------------------------------------------------------------------------------- grids


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 99),
    components=st.sampled_from([(), (3,)]),
)
def test_padding_comes_back_exactly(
    shape: tuple[int, int, int], seed: int, components: tuple[int, ...]
) -> None:
    array = np.random.default_rng(seed).standard_normal((*shape, *components)).astype("f4")
    grid = NetworkGrid.around(shape)
    padded = grid.pad(array)
    assert all(n % 16 == 0 and n - m < 16 for n, m in zip(padded.shape, shape, strict=False))
    assert grid.unpad(padded).tobytes() == array.tobytes()
    assert np.isclose(padded.sum(dtype=np.float64), array.sum(dtype=np.float64), atol=1e-6)


@given(
    shape=st.tuples(*[st.integers(2, 40)] * 3),
    corners=st.tuples(*[st.tuples(st.integers(0, 38), st.integers(1, 39))] * 3),
)
def test_cropping_keeps_the_box_in_its_place(
    shape: tuple[int, int, int], corners: tuple[tuple[int, int], ...]
) -> None:
    box = tuple(
        slice(min(a, n - 1), min(max(a + 1, b), n))
        for (a, b), n in zip(corners, shape, strict=True)
    )
    array = np.zeros(shape, np.float32)
    array[box] = 1 + RNG.random(array[box].shape)
    grid = NetworkGrid.around(shape, box)
    assert all(n % 16 == 0 for n in grid.size)
    assert np.array_equal(grid.unpad(grid.pad(array)), array)


# ------------------------------------------------------------------------------ prepare


def test_slices_are_no_volume_and_doubts_are_said() -> None:
    fixed = Image(RNG.random((80, 80, 80)).astype("f4"), np.eye(4))
    thick = Image(RNG.random((80, 80, 16)).astype("f4"), np.diag([1.0, 1, 5, 1]))
    small = Image(RNG.random((16, 16, 16)).astype("f4"), np.eye(4), notes=["read with care"])
    for axis in range(3):
        few = Image(np.moveaxis(thick.data[..., :7], -1, axis), np.eye(4))
        with pytest.raises(UserError, match=r"7.* voxels; a volume has at least 8 along each"):
            images.prepare(few, fixed)
        with pytest.raises(UserError, match="at least 8"):
            images.prepare(fixed, few)
    assert not any("thick" in s or "covers" in s for s in images.prepare(fixed, fixed).steps)
    steps = images.prepare(thick, small).steps
    for says in (
        "moving image: its slices are thick (1.0 × 1.0 × 5.0 mm)",
        "fixed image: read with care",
        "fixed image: it covers 16.0",
    ):
        assert any(step.startswith(f"note on the {says}") for step in steps), says


def test_same_grid_is_untouched_bit_for_bit() -> None:
    data = RNG.random((16, 32, 16)).astype(np.float32)
    data.flat[:2] = 0, 1
    moving = Image(data.copy(), OBLIQUE + 1e-7)
    prepared = images.prepare(moving, Image(data[::-1].copy(), OBLIQUE))
    assert prepared.moving.tobytes() == data.tobytes()
    assert prepared.grid.size == (16, 32, 16)
    assert any("taken as it is" in step for step in prepared.steps)
    assert any("multiple of 16 already" in step for step in prepared.steps)


@pytest.mark.parametrize("axes", [np.diag([1, 1, 1, 1]), np.diag([-1, 1, 1, 1]), OBLIQUE / 1.5])
def test_resampling_finds_the_same_place_of_the_world(axes: np.ndarray) -> None:
    """A ball of the world is where it was, whatever grid it is seen on (left-handed, oblique)."""
    centre = (4.0, -3.0, 6.0)
    fixed_affine = np.diag([1.5, 1.2, 1.0, 1])
    fixed_affine[:3, 3] = -20, -25, -12
    moving_affine = axes.astype(np.float64)
    moving_affine[3] = 0, 0, 0, 1
    moving_affine[:3, 3] = centre - moving_affine[:3, :3] @ np.array([14.2, 13.1, 15.7])
    moving = ball((30, 29, 31), moving_affine, centre)
    fixed = ball((31, 43, 37), fixed_affine, centre)
    prepared = images.prepare(moving, fixed, align="header")
    back = prepared.grid.unpad(prepared.moving)
    assert back.shape == fixed.data.shape
    # trilinear interpolation of a cone of slope 1/8 on voxels up to 1.7 mm wide
    assert np.abs(back - images.normalize(fixed.data)).max() < 0.15
    assert np.abs(back - images.normalize(fixed.data)).mean() < 0.005


def test_axes_in_another_order_are_moved_exactly() -> None:
    data = RNG.random((8, 9, 10)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    flipped = Image(data[::-1].transpose(2, 0, 1).copy(), np.zeros((4, 4)))
    flipped.affine = np.array([[0, -2, 0, 14], [0, 0, 2, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    back = images.resample(flipped, data.shape, affine)
    assert np.abs(back.data - data).max() < 1e-6


def test_centres_are_aligned_where_headers_do_not_help() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    fixed = ball((32, 32, 32), affine, (30, 32, 28))
    near, far = ball((32, 32, 32), affine, (40, 32, 28)), ball((32, 32, 32), affine, (30, 32, 28))
    far.affine = affine.copy()
    far.affine[:3, 3] = 100, -50, 30
    assert "header" in images.alignment_of(near, fixed)[1]
    alignment, step = images.alignment_of(far, fixed)
    assert np.abs(alignment[:3, 3] - (100, -50, 30)).max() < 1e-4
    assert "centre" in step and "that is far" in step
    prepared = images.prepare(far, fixed)
    assert np.abs(prepared.moving - prepared.fixed).max() < 1e-5
    near.has_affine = False
    assert "no affine" in images.alignment_of(near, fixed)[1]
    assert "centre" in images.alignment_of(near, fixed, "centre")[1]
    assert "header" in images.alignment_of(far, fixed, "header")[1]
    with pytest.raises(UserError, match="use auto, header or centre"):
        images.alignment_of(near, fixed, "best")
    with pytest.raises(UserError, match="do not overlap"):
        images.prepare(far, fixed, "header")


def test_images_end_in_0_1_and_crop_to_what_they_show() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    moving, fixed = (ball((50, 50, 50), affine, (50 + d, 50, 50)) for d in (0, 6))
    moving.data = moving.data * 300 - 20
    whole, cropped = (images.prepare(moving, fixed, crop=crop) for crop in (False, True))
    for prepared in (whole, cropped):
        for array in (prepared.moving, prepared.fixed):
            assert array.dtype == np.float32 and array.shape == prepared.grid.size
            assert (array.min(), array.max()) == (0, 1)
        assert np.array_equal(prepared.fixed_affine, affine)
    assert whole.grid.size == (64, 64, 64) and cropped.grid.size == (16, 16, 16)
    assert np.array_equal(whole.grid.unpad(whole.moving), cropped.grid.unpad(cropped.moving))


def test_resampling_through_a_warp() -> None:
    """resample(warp) at x is the image at x + warp(x): shifting by whole voxels is exact."""
    image = Image(volume((6, 7, 8)), OBLIQUE)
    warp = np.zeros((6, 7, 8, 3), np.float32)
    warp[..., 1] = 2
    moved = images.resample(image, (6, 7, 8), OBLIQUE, warp=warp).data
    # inverting the oblique affine leaves 1e-14 of a voxel, times intensities up to 200
    assert np.allclose(moved[:, :4], image.data[:, 2:6], atol=1e-4)
    image.data = image.data.astype(np.int32)
    moved = images.resample(image, (6, 7, 8), OBLIQUE, order=0, warp=warp + np.float32(0.3)).data
    assert moved.dtype == np.int32 and np.array_equal(moved[:5, :4], image.data[:5, 2:6])


def test_jacobian_of_known_maps() -> None:
    x = np.indices((6, 7, 8)).transpose(1, 2, 3, 0).astype(np.float64)
    scale = x @ np.diag([0.5, 0.1, -0.2])
    assert np.allclose(images.jacobian_determinant(scale), 1.5 * 1.1 * 0.8)
    assert np.allclose(images.jacobian_determinant(0 * x), 1)
    assert np.allclose(images.jacobian_determinant(x @ np.diag([-2.0, 0, 0])), -1)
    shear = x @ np.array([[0, 0.3, 0], [0.2, 0, 0], [0, 0, 0]])
    assert np.allclose(images.jacobian_determinant(shear), 1 - 0.3 * 0.2)


def test_the_nearest_voxel_is_scipys() -> None:
    data = RNG.integers(0, 9, (4, 5, 6)).astype(np.int32)
    points = RNG.uniform(-2, 8, (3, 7, 8, 9))
    points[:, :3] = np.round(points[:, :3] * 2) / 2  # halfway between voxels and at the borders
    points[0, 3, 0, :2] = 1e300, -1e300
    known = ndimage.map_coordinates(data, points, order=0, mode="grid-constant", cval=-1)
    found = images._nearest(data, points, -1)
    assert found.dtype == known.dtype
    np.testing.assert_array_equal(found, known)


@pytest.mark.parametrize("planes", [2, 3, 8, 9])
def test_derivatives_plane_by_plane_are_those_of_the_whole(planes: int) -> None:
    warp = RNG.standard_normal((planes, 5, 6, 3)).astype(np.float32)
    gradients = [np.gradient(warp[..., v].astype(np.float64)) for v in range(3)]
    (a, b, c), (d, e, f), (g, h, i) = gradients
    a, e, i = a + 1, e + 1, i + 1
    known = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    np.testing.assert_array_equal(images.jacobian_determinant(warp), known)
