"""The loss terms on fields whose values are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from morphbits import losses
from morphbits.synthesis import deformation


def test_tissues_that_coincide_do_not_mismatch() -> None:
    tissues = torch.rand(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    assert losses.tissue_mismatch(tissues, tissues) == 0


def test_a_constant_difference_shows_at_every_scale() -> None:
    fixed = torch.zeros(1, 3, 16, 16, 16)
    assert losses.tissue_mismatch(fixed + 0.5, fixed) == 0.25 * (1 + 2 / 2 + 4 / 2 + 8 / 2)


def test_a_checkerboard_shows_at_the_finest_scale_only() -> None:
    x, y, z = torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij")
    moved = ((x + y + z) % 2).float()[None, None] - 0.5
    assert losses.tissue_mismatch(moved, torch.zeros_like(moved)) == 0.25


def test_roughness_of_a_linear_warp_is_its_mean_squared_gradient() -> None:
    warp = torch.zeros(1, 3, 8, 8, 8)
    warp[:, 0] = torch.arange(8.0)[:, None, None] * 0.5  # du/dx = 0.5: one of nine derivatives
    assert losses.roughness(warp) == 0.25 / 9
    assert losses.roughness(torch.full((1, 3, 8, 8, 8), 3.0)) == 0


def test_dice_of_maps_that_coincide_and_of_maps_that_do_not_meet() -> None:
    left = torch.zeros(1, 2, 4, 4, 4)
    left[:, 0, :2] = left[:, 1, 2:] = 1
    assert losses.dice(left, left) == 0
    assert losses.dice(left, left.flip(1)) == 1


# what voxelmorph's SynthMorph training minimizes, in its own words
TENSORFLOW = """
import sys, numpy as np, morphbits.models.synthmorph_tf
import tensorflow as tf, voxelmorph as vxm
a = np.load(sys.argv[1])
labels_1, labels_2, flow = (tf.constant(a[name]) for name in ("labels_1", "labels_2", "flow"))
with tf.GradientTape() as tape:
    tape.watch(flow)
    pred = vxm.layers.SpatialTransformer(interp_method="linear")([labels_1, flow])
    overlap = tf.reduce_mean(vxm.losses.Dice().loss(labels_2, pred) + tf.ones(2))
    rough = tf.reduce_mean(vxm.losses.Grad("l2", loss_mult=0.7).loss(None, flow))
    loss = overlap + rough
np.savez(sys.argv[2], overlap=overlap, rough=rough, gradient=tape.gradient(loss, flow))
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Two label maps of five labels, one of them nowhere, a warp that leaves the image, channels
    last; and what voxelmorph makes of them."""
    folder = tmp_path_factory.mktemp("voxelmorph")
    random = np.random.default_rng(1)
    coarse = random.integers(0, 4, (2, 2, 3, 4, 2))
    labels = coarse.repeat(4, 2).repeat(4, 3).repeat(8, 4)
    one_hot = (labels[..., None] == np.arange(5)).astype(np.float32)
    flow = random.normal(0, 3, (2, 12, 16, 16, 3)).astype(np.float32)
    arrays = {"labels_1": one_hot[0], "labels_2": one_hot[1], "flow": flow}
    np.savez(folder / "in.npz", **arrays)
    command = [sys.executable, "-c", TENSORFLOW, str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(command, check=True, cwd=Path(losses.__file__).parents[1])
    with np.load(folder / "out.npz") as answer:
        return {**arrays, **answer}


def test_the_loss_is_that_of_voxelmorphs_synthmorph_training(cases: dict[str, np.ndarray]) -> None:
    moving, fixed, warp = (
        torch.from_numpy(cases[name]).permute(0, 4, 1, 2, 3)
        for name in ("labels_1", "labels_2", "flow")
    )
    warp.requires_grad_()
    overlap = losses.dice(deformation.transform(moving, warp), fixed)
    rough = 0.7 * losses.roughness(warp)
    (overlap + rough).backward()
    # sums of 3,072 positive terms, in blocks here and there: far below the worst case, 3,072 ulp
    ulp = 2**-23
    np.testing.assert_allclose(overlap.item(), cases["overlap"], rtol=32 * ulp)
    np.testing.assert_allclose(rough.item(), cases["rough"], rtol=32 * ulp)
    # The derivative of linear interpolation jumps at voxel centres; a position is known to some
    # ulps of the grid's size, so of 18,432 values at random places some may fall on either side.
    gradient = warp.grad
    assert gradient is not None
    error = np.abs(gradient.permute(0, 2, 3, 4, 1).numpy() - cases["gradient"])
    assert np.quantile(error, 0.999) < 1e-4 * np.abs(cases["gradient"]).max()
