"""Networks and images that the tests of the models share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from morphbits.models.weights import Architecture, init_weights, save_h5

SMALL = Architecture(enc=(8, 16, 16, 16), dec=(16, 16, 16, 16, 16, 8), inshape=(32, 32, 32))


def smooth_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth noise in [0, 1] (X, Y, Z), float32, with no border of zeros."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2, mode="wrap")
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@pytest.fixture(scope="session")
def images() -> Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]:
    """A moving and a fixed image of a given shape."""
    return lambda shape: (smooth_image(shape, 1), smooth_image(shape, 2))


@pytest.fixture(scope="session")
def small_weights() -> dict[str, np.ndarray]:
    """He-normal kernels, and biases that are not zero, so that a forgotten bias shows."""
    weights = init_weights(SMALL, seed=3)
    random = np.random.default_rng(4)
    for name in weights:
        if name.endswith("bias"):
            weights[name] = random.normal(0, 0.1, weights[name].shape).astype(np.float32)
    return weights


@pytest.fixture(scope="session")
def small_model(
    small_weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The `.h5` file of a small network."""
    path = tmp_path_factory.mktemp("models") / "small.h5"
    save_h5(path, SMALL, small_weights)
    return path
