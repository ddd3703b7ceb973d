"""The classical registration: it finds a known transform, and every engine can perturb it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from morphbits import images, stages
from morphbits.config import Arithmetic, RegisterConfig
from morphbits.engines.native import random_rounding
from morphbits.errors import UserError
from morphbits.models.classical_torch import Classical, Schedule, _displacement
from morphbits.models.model import open_model
from morphbits.samples.single import Files, register_files

SHORT = Schedule(affine=((4, 1),), deformable=((4, 1), (2, 1), (1, 1)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These volumes are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bumps(n: int = 32) -> np.ndarray:
    """A smooth volume with structure everywhere, (n, n, n) in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(n, n, n)), 2.5)
    return images.normalize(noise)


def batch(volume: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None, None]


def test_it_finds_an_affine_transform_and_a_deformation() -> None:
    """The fixed image is the moving one through a known transform; in the inside, what is found
    is less than a third as far from it as the untouched pair is, 2 voxels."""
    moving = bumps()
    index = np.moveaxis(np.indices(moving.shape, np.float64), 0, -1)
    matrix = np.array([[1.04, 0.03, 0], [-0.02, 0.97, 0.02], [0, 0.01, 1.03]])
    true = (index - 15.5) @ matrix.T + 15.5 + [1.5, -1.0, 0.5] - index
    true += 0.9 * np.sin(index[..., [1, 2, 0]] / 5)
    fixed = ndimage.map_coordinates(moving, np.moveaxis(index + true, -1, 0), order=1)
    with torch.no_grad():
        moved, warp = Classical(Schedule())(batch(moving), batch(fixed))
    found = np.moveaxis(warp[0].numpy(), 0, -1)
    inside = (slice(5, -5),) * 3
    far = np.sqrt(((found - true) ** 2).sum(-1))[inside]
    apart = np.sqrt((true**2).sum(-1))[inside]
    assert apart.mean() > 2 and far.mean() < apart.mean() / 3
    before, after = (
        np.corrcoef(v[inside].ravel(), fixed[inside].ravel())[0, 1]
        for v in (moving, moved[0, 0].numpy())
    )
    assert before < 0.75 and after > 0.97


def test_affine_after_warp_is_computed_in_voxels_of_the_level() -> None:
    rng = np.random.default_rng(1)
    corner, warp = rng.normal(size=(3, 4)), rng.normal(size=(3, 6, 8, 4))
    found = _displacement(
        torch.from_numpy(warp)[None], torch.from_numpy(corner), 2, torch.Size((6, 8, 4))
    )[0].numpy()
    half = (np.array((6, 8, 4)) - 1) / 2
    for index in ((0, 0, 0), (5, 3, 2), (2, 7, 3)):
        place = 2 * (index - half + warp[(slice(None), *index)])  # full voxels, from the centre
        moved = place + corner[:, :3] @ (place / (2 * half)) + corner[:, 3]
        expected = (moved - 2 * (index - half)) / 2
        assert np.allclose(found[(slice(None), *index)], expected, rtol=0, atol=1e-12)


def test_every_operation_is_perturbed_and_a_seed_repeats() -> None:
    moving, fixed = batch(bumps(16)), batch(bumps(16)[::-1])
    warps, counts = [], []
    for mode, seed in (("nearest", 1), ("random", 1), ("random", 1), ("random", 2)):
        with torch.no_grad(), random_rounding(mode=mode, seed=seed) as counted:
            warps.append(Classical(SHORT)(moving, fixed)[1].numpy())
        counts.append(counted.operations)
    nearest, one, again, other = warps
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert counts[1] == counts[2] == counts[0] > 1000 * 16**3
    # one step of each level: hardly more than its roundings
    assert 0 < np.abs(one - nearest).max() < 0.05


def test_it_announces_its_stages() -> None:
    seen: list[str] = []
    with stages.listening(seen.append), torch.no_grad():
        Classical(SHORT)(batch(bumps(16)), batch(bumps(16)))
    named = [name for name in seen if not name.startswith("squaring")]
    steps = ["affine", "affine-4", "deformable", "deformable-4", "deformable-2", "deformable-1"]
    assert named == [*steps, "integration", "sampling"]


def test_it_is_a_model_of_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphbits.models.classical_torch.Schedule", lambda: SHORT)
    for name, volume in (("moving", bumps(24)), ("fixed", bumps(24)[:, ::-1])):
        images.save(tmp_path / f"{name}.nii.gz", volume, np.diag([4.0, 4, 4, 1]))
    outputs = (tmp_path / "moved.nii.gz", tmp_path / "warp.nii.gz")
    inputs = (tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", Path("classical"))
    register_files(Files(*inputs, *outputs), RegisterConfig(engine="native"))
    record = json.loads((tmp_path / "sample.json").read_text())
    assert record["configuration"]["model"] == "classical"
    assert record["configuration"]["schedule"]["window"] == "5"
    assert record["provenance"]["operations"] > 0
    assert images.load_warp(outputs[1]).data.any()
    with pytest.raises(UserError, match="computed by torch, not by tensorflow"):
        open_model(Path("classical"), Arithmetic(framework="tensorflow"))
