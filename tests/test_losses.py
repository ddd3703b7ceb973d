"""The loss terms on fields whose values are known."""

from __future__ import annotations

import torch

from morphbits import losses


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
