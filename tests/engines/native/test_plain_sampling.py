"""The kernel by which plain trainings sample volumes: its bytes are those of torch's operator."""

from __future__ import annotations

import platform
from itertools import product

import pytest
import torch
from support.exact_replay import same_bytes

from morphbits.engines.native.kernels import plain
from morphbits.engines.native.kernels.library import load

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="torch is compiled with fused operations"
)
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "other": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
}


@pytest.fixture(autouse=True)
def compiled() -> None:
    load()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("warp", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("batch, channels, size", [(1, 3, (9, 10, 7)), (2, 1, (2, 1, 65))])
def test_values_and_gradients_have_torchs_bytes(
    batch: int, channels: int, size: tuple[int, int, int], warp: float, layout: str
) -> None:
    """At voxels, between them and far beyond the border; points on another grid than the image."""
    random = torch.Generator().manual_seed(1)
    image = LAYOUTS[layout](torch.randn(batch, channels, *size, generator=random))
    axes = [torch.linspace(-1, 1, n) for n in (5, 7, 9)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).repeat(batch, 1, 1, 1, 1)
    points += warp / 5 * torch.randn(points.shape, generator=random)
    gradient = LAYOUTS[layout](torch.randn(batch, channels, 5, 7, 9, generator=random))
    assert plain.takes(image, points)
    expected = torch.ops.aten.grid_sampler_3d(image, points, 0, 1, True)
    assert same_bytes(plain.sampled(image, points), expected)
    for wanted in product((True, False), repeat=2):
        found = plain.gradients(image, points, gradient, wanted)
        expected = torch.ops.aten.grid_sampler_3d_backward(
            gradient, image, points, 0, 1, True, [wanted[0], True]
        )
        for ours, theirs, is_wanted in zip(found, expected, wanted, strict=True):
            assert (ours is not None) == is_wanted
            assert ours is None or same_bytes(ours, theirs)


def test_places_that_are_no_numbers_stay_inside_the_image() -> None:
    image = torch.arange(60.0).view(1, 1, 3, 4, 5)
    ends = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38]
    points = torch.tensor(list(product(ends, repeat=3))).view(1, 5, 5, 5, 3)
    found = plain.sampled(image, points)
    assert found.min() == 0 and found.max() == 59
    to_image, to_points = plain.gradients(image, points, torch.ones(found.shape), (True, True))
    assert to_image is not None and to_points is not None
    assert to_image.sum() == 125 and not to_points.any()


def test_other_tensors_are_left_to_torch() -> None:
    volume, points = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, 3)
    assert plain.takes(volume, points)
    assert not plain.takes(volume.double(), points.double())
    assert not plain.takes(volume.to("meta"), points.to("meta"))
    assert not plain.takes(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    assert not plain.takes(volume[:0], points[:0])
