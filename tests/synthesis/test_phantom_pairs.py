"""Training pairs: functions of their key, and like the phantoms of a dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphbits.datasets import phantom
from morphbits.synthesis import phantom_pairs
from morphbits.synthesis.pair import Pair

SIZE = "4mm"
FIELDS = ("moving", "fixed", "moving_tissues", "fixed_tissues")


def as_bytes(pair: Pair) -> list[bytes]:
    return [getattr(pair, field).numpy().tobytes() for field in FIELDS]


def test_equal_keys_give_equal_bytes_in_any_order() -> None:
    first = [as_bytes(phantom_pairs.draw(1, step, SIZE)) for step in (0, 1, 2)]
    torch.manual_seed(7)
    again = [as_bytes(phantom_pairs.draw(1, step, SIZE)) for step in (2, 1, 0)]
    assert first == again[::-1]


def test_other_keys_give_other_images() -> None:
    images = [phantom_pairs.draw(seed, step, SIZE).moving for seed in (1, 2) for step in (0, 1)]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_the_pair_is_what_a_network_takes() -> None:
    pair = phantom_pairs.draw(1, 0, SIZE)
    for field in FIELDS:
        values = getattr(pair, field)
        assert values.dtype == torch.float32
        assert values.min() == 0 and values.max() <= 1
        assert all(n % 16 == 0 for n in values.shape[2:])
    assert pair.fixed.max() == 1
    assert pair.moving.max() >= phantom_pairs.BRIGHTNESS[0]


def test_training_subjects_are_like_those_of_a_dataset() -> None:
    """Brain volume and overlap with the template, before registration, are as in a dataset."""
    base = phantom.template(SIZE)
    fixed = base.tissues.sum(axis=0) > 0.5

    def overlap(moving: np.ndarray) -> float:
        return 2 * (moving & fixed).sum() / (moving.sum() + fixed.sum())

    dataset = [phantom.make_phantom(1, index, SIZE).labels > 0 for index in range(1, 5)]
    start = [(m - n) // 2 for m, n in zip((48, 48, 48), fixed.shape, strict=True)]
    inner = tuple(slice(first, first + n) for first, n in zip(start, fixed.shape, strict=True))
    training = [
        (phantom_pairs.draw(1, step, SIZE).moving_tissues[0].sum(0) > 0.5).numpy()[inner]
        for step in range(8)
    ]
    volumes = [brain.sum() / fixed.sum() for brain in dataset + training]
    assert min(volumes) > 0.85 and max(volumes) < 1.15
    overlaps = [[overlap(brain) for brain in brains] for brains in (dataset, training)]
    # displacements of 3 to 5 mm there, of 2 to 6 mm here
    assert min(overlaps[1]) - 0.03 < np.mean(overlaps[0]) < max(overlaps[1])


@pytest.mark.parametrize("spacing", [2.5, 6.0])
def test_spline_basis_is_a_partition_of_unity(spacing: float) -> None:
    basis = phantom_pairs._spline_basis(24, spacing)
    # four weights of at most 2/3, each rounded a few times
    assert torch.allclose(basis.sum(1), torch.ones(24), rtol=0, atol=8 * 2**-24)
    assert basis.min() >= 0
