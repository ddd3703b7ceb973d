"""Small images of noise."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
SHAPE = (7, 9, 5)
OBLIQUE = np.array(
    [[1.8, -0.5, 0.1, 3], [0.6, 1.7, 0.3, -8], [-0.2, -0.2, 2.4, 5], [0, 0, 0, 1]], np.float64
)


def volume(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(np.float32)
