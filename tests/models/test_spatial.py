"""Integration, rescaling and warping have TensorFlow's bits, whatever the displacement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from support.lazy_tensorflow import reference

from morphbits.models import spatial

pytestmark = pytest.mark.tensorflow

SHAPES = [(16, 16, 16), (16, 24, 8)]


def field(shape: tuple[int, ...], largest: float, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """A smooth vector field (B, V, X, Y, Z) whose largest component is `largest` voxels."""
    noise = np.random.default_rng(seed).standard_normal((batch, 3, *shape))
    smooth = gaussian_filter(noise, (0, 0, 2, 2, 2))
    return torch.from_numpy((smooth / np.abs(smooth).max() * largest).astype(np.float32))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(tensor.numpy(), 1, -1))


def assert_same_bits(tensor: torch.Tensor, reference: object) -> None:
    """Equal as bits, zeros' signs included; `reference` has the channels last."""
    ours, theirs = channels_last(tensor), np.asarray(reference)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


# from a fraction of a voxel to far outside the volume on every side
@pytest.mark.parametrize("largest", [0.3, 3.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_of_each_step(shape: tuple[int, ...], largest: float) -> None:
    svf = field(shape, largest, batch=2)
    integrated = spatial.integrate(svf, 5)
    theirs = reference.vxm.layers.VecInt(method="ss", int_steps=5)(channels_last(svf))
    assert_same_bits(integrated, theirs)

    warp = spatial.rescale(integrated, 2)
    theirs = reference.vxm.layers.RescaleTransform(2.0)(theirs)
    assert_same_bits(warp, theirs)
    full = [2 * n for n in shape]
    assert (warp.abs().amax((0, 2, 3, 4)) > torch.tensor(full)).any() == (largest == 40)

    image = torch.from_numpy(np.random.default_rng(1).random((2, 1, *full), dtype=np.float32))
    moved = spatial.transform(image, warp)
    theirs = reference.vxm.layers.SpatialTransformer(interp_method="linear", indexing="ij")(
        [channels_last(image), theirs]
    )
    assert_same_bits(moved, theirs)


def test_bits_at_borders_and_on_the_grid() -> None:
    """Whole, half and border positions; negative values and zeros of both signs."""
    shape = (6, 5, 7)
    random = np.random.default_rng(2)
    shift = torch.from_numpy(random.integers(-20, 21, (1, 3, *shape)).astype(np.float32) / 2)
    values = random.choice(np.float32([-1.5, -0.0, 0.0, 2.25]), (1, 2, *shape))
    values[:, :, :3] = -0.0
    image = torch.from_numpy(values)
    theirs = reference.vxm.layers.SpatialTransformer(interp_method="linear", indexing="ij")(
        [channels_last(image), channels_last(shift)]
    )
    assert_same_bits(spatial.transform(image, shift), theirs)


def test_bits_with_subnormals_flushed() -> None:
    """TensorFlow's threads flush subnormal numbers, torch keeps them unless told to flush."""
    svf = field((16, 16, 16), 3e-38)  # the smallest normal number is 1.2e-38
    image = torch.from_numpy(
        np.random.default_rng(1).random((1, 1, 16, 16, 16), np.float32) * 2e-38
    )
    warp = field((16, 16, 16), 3.0)
    integrated = reference.vxm.layers.VecInt(method="ss", int_steps=5)(channels_last(svf))
    moved = reference.vxm.layers.SpatialTransformer(interp_method="linear", indexing="ij")(
        [channels_last(image), channels_last(warp)]
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # only the calling thread flushes
    try:
        torch.set_flush_denormal(True)
        ours = spatial.integrate(svf, 5), spatial.transform(image, warp)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert_same_bits(ours[0], integrated)
    assert_same_bits(ours[1], moved)
    assert (spatial.transform(image, warp) != ours[1]).any()


def test_border_goes_on_outside() -> None:
    image = torch.arange(8, dtype=torch.float32).view(1, 1, 2, 2, 2)
    outside = torch.full((1, 3, 2, 2, 2), 100.0)
    assert (spatial.transform(image, outside) == 7).all()
    assert (spatial.transform(image, -outside) == 0).all()


def test_identity_and_translation() -> None:
    image = torch.from_numpy(np.random.default_rng(3).random((1, 1, 8, 9, 10), dtype=np.float32))
    still = torch.zeros(1, 3, 8, 9, 10)
    assert torch.equal(spatial.transform(image, still), image)
    one_along_y = still.clone()
    one_along_y[:, 1] = 1
    moved = spatial.transform(image, one_along_y)
    assert torch.equal(moved[:, :, :, :-1], image[:, :, :, 1:])
    # a constant velocity field is its own integral
    assert torch.equal(spatial.integrate(one_along_y, 5), one_along_y)
    # and twice as many voxels long on a grid twice as fine; no result passes more than 3 roundings
    # of the weights, 2 of their product and 7 of the sum (the product with 2 is exact)
    doubled = spatial.rescale(one_along_y, 2)
    assert doubled.shape == (1, 3, 16, 18, 20)
    assert (doubled[:, 1] - 2).abs().max() <= 2 * 12 * 2.0**-24
    assert (doubled[:, ::2] == 0).all()


def test_integration_is_invertible() -> None:
    """exp(v) after exp(−v) is the identity, up to what linear interpolation costs."""
    svf = field((24, 24, 24), 2.0)
    there, back = spatial.integrate(svf, 7), spatial.integrate(-svf, 7)
    round_trip = there + spatial.transform(back, there)
    inside = round_trip[..., 4:-4, 4:-4, 4:-4]
    # a warp of up to 2 voxels comes back to a tenth of one; without integration it does not
    assert inside.abs().max() < 0.1
    unintegrated = (svf + spatial.transform(-svf, svf))[..., 4:-4, 4:-4, 4:-4]
    assert unintegrated.abs().max() > 2 * inside.abs().max()


def test_gradients() -> None:
    """The derivatives that training uses are those of finite differences."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 4, 4, dtype=torch.float64, generator=random)
    svf = torch.randn(1, 3, 3, 2, 2, dtype=torch.float64, generator=random) * 0.7

    def moved(image: torch.Tensor, svf: torch.Tensor) -> torch.Tensor:
        return spatial.transform(image, spatial.rescale(spatial.integrate(svf, 3), 2))

    inputs = (image.requires_grad_(), svf.requires_grad_())
    assert torch.autograd.gradcheck(moved, inputs, eps=1e-7, atol=1e-5)
