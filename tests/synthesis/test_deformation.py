"""Training's fast sampling against the exact port's, which registers with what it has trained."""

from __future__ import annotations

import pytest
import torch

from morphbits.models import spatial
from morphbits.synthesis import deformation

SIZE = (16, 24, 32)
# grid_sample maps a position of 0 … n-1 to -1 … 1 and back: some ulps of 1, times n/2 voxels
POSITION_ERROR = 8 * 2**-24 * max(SIZE) / 2


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_transform_equals_the_port_also_beyond_the_border(random: torch.Generator) -> None:
    image = torch.rand(2, 3, *SIZE, generator=random)
    warp = 10 * torch.randn(2, 3, *SIZE, generator=random)
    exact = spatial.transform(image, warp)
    # neighbours differ by at most 1 along each of three axes; and the sum of eight terms rounds
    tolerance = 3 * POSITION_ERROR + 16 * 2**-24
    assert (deformation.transform(image, warp) - exact).abs().max() <= tolerance


def test_rescale_equals_the_port(random: torch.Generator) -> None:
    warp = torch.rand(1, 3, *SIZE, generator=random)
    tolerance = 2 * (3 * POSITION_ERROR + 16 * 2**-24)
    assert (deformation.rescale(warp, 2) - spatial.rescale(warp, 2)).abs().max() <= tolerance


def test_integrate_equals_the_port(random: torch.Generator) -> None:
    velocity = torch.nn.functional.interpolate(
        torch.randn(1, 3, 4, 6, 8, generator=random), size=SIZE
    )
    exact = spatial.integrate(velocity, 5)
    # each of five squarings adds a sampling error, and at most doubles what there was before
    tolerance = 5 * 2**5 * (3 * POSITION_ERROR + 16 * 2**-24)
    assert (deformation.integrate(velocity, 5) - exact).abs().max() <= tolerance
    assert exact.abs().max() > 1


def test_opposite_velocities_are_inverse_warps() -> None:
    axis = torch.linspace(0, torch.pi, 32)
    bump = (axis.sin()[:, None, None] * axis.sin()[:, None] * axis.sin()) ** 2
    velocity = torch.stack([2 * bump, -bump, bump])[None]
    there, back = (deformation.integrate(sign * velocity, 6) for sign in (1, -1))
    there_and_back = there + deformation.transform(back, there)
    # linear interpolation errs by an eighth of the second derivative, at most 4(π/31)², along each
    # axis; six squarings by half of that, in each of two warps, and once more to compose them
    interpolation = 3 * 4 * (torch.pi / 31) ** 2 / 8
    assert there_and_back.abs().max() < 7 * interpolation
    assert there.abs().max() > 1.9


@pytest.mark.parametrize("warp", ["none", "small", "beyond the border"])
def test_derivatives_for_gpus_are_torchs(warp: str, random: torch.Generator) -> None:
    """In float64, of two images: sums of at most 2·9·10·7 products below 10, in another order."""
    sizes = {"none": 0.0, "small": 0.7, "beyond the border": 9.0}
    image = torch.rand(2, 3, 9, 10, 7, generator=random, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, 3, 9, 10, 7, generator=random, dtype=torch.float64) * sizes[warp]
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in (9, 10, 7)]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    points = (mesh + shift.movedim(1, -1) / 5).flip(-1).requires_grad_()
    if warp == "none":  # on voxels, whose places divide without a remainder
        at = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 0.5, 1.0])] * 3)
        image = image[..., :9, :9, :5].detach().requires_grad_()
        points = at.double().view(1, 4, 4, 4, 3).expand(2, 4, 4, 4, 3).clone().requires_grad_()
    found = deformation._Sampling.apply(image, points)
    expected = deformation._sample(image, points)
    gradient = torch.rand(found.shape, generator=random, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, (image, points), gradient),
        torch.autograd.grad(expected, (image, points), gradient),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= 2 * 9 * 10 * 7 * 10 * 2**-53

    size = [18, 20, 14]
    found, expected = (f(image, size) for f in (deformation._Resizing.apply, deformation._resize))
    gradient = torch.rand(found.shape, generator=random, dtype=torch.float64)
    (ours,), (theirs,) = (torch.autograd.grad(x, image, gradient) for x in (found, expected))
    assert (ours - theirs).abs().max() <= 18 * 20 * 14 * 2**-53
