"""The phantom dataset: its truth, its independence of how it is made, its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from morphbits import bids, images
from morphbits.datasets import phantom
from morphbits.errors import UserError

SIZE = "4mm"


@pytest.fixture(scope="module")
def one() -> phantom.Phantom:
    return phantom.make_phantom(1, 1, "2mm")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An 8 mm lattice: eight times faster, where the deformation's precision does not matter."""
    with monkeypatch.context() as patch:
        patch.setattr(phantom, "LATTICE", 8)
        patch.setattr(phantom, "LATTICE_SHAPE", (21, 25, 29))
        for cached in (phantom._taper, phantom._lattice_brain):
            cached.cache_clear()
        yield
    for cached in (phantom._taper, phantom._lattice_brain):
        cached.cache_clear()


def bytes_of(p: phantom.Phantom) -> tuple[bytes, ...]:
    return p.image.tobytes(), p.labels.tobytes(), p.warp.tobytes()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_grids_of_the_template() -> None:
    demo = phantom.template("2mm")
    assert demo.image.shape == (80, 96, 80)
    assert demo.affine.tolist() == [
        [2, 0, 0, -79.5],
        [0, 2, 0, -112.5],
        [0, 0, 2, -71.5],
        [0, 0, 0, 1],
    ]
    assert phantom.SIZES["1mm"].voxels == (160, 192, 224)
    assert set(np.unique(demo.labels)) == {0, 1, 2, 3}
    # the whole brain is inside: nothing touches a face but the brain stem, which the template cuts
    faces = [demo.labels[0], demo.labels[-1], demo.labels[:, 0], demo.labels[:, -1]]
    assert not any(face.any() for face in [*faces, demo.labels[:, :, -1]])


def test_image_has_the_types_and_range_that_it_promises(one: phantom.Phantom) -> None:
    assert (one.image.dtype, one.labels.dtype, one.warp.dtype) == (
        np.float32,
        np.int32,
        np.float32,
    )
    assert one.warp.shape == (80, 96, 80, 3)
    assert np.isfinite(one.image).all() and one.image.min() == 0
    assert not one.image[one.labels == 0].any()  # brain-extracted
    means = [one.image[one.labels == tissue].mean() for tissue in (1, 2, 3)]
    assert means == sorted(means)  # T1-like: CSF darker than grey, grey darker than white


def test_the_true_warp_undoes_the_deformation(one: phantom.Phantom) -> None:
    fixed = phantom.template("2mm").labels
    points = np.moveaxis(one.warp, -1, 0) + np.indices(fixed.shape)
    moved = ndimage.map_coordinates(one.labels, points, order=0)
    for tissue, least in ((1, 0.65), (2, 0.9), (3, 0.9)):
        after = dice(moved == tissue, fixed == tissue)
        assert after > least
        assert after > dice(one.labels == tissue, fixed == tissue) + 0.15


def test_the_other_direction_would_be_noticed(one: phantom.Phantom) -> None:
    fixed = phantom.template("2mm").labels
    points = np.indices(fixed.shape) - np.moveaxis(one.warp, -1, 0)
    moved = ndimage.map_coordinates(one.labels, points, order=0)
    assert dice(moved == 3, fixed == 3) < dice(one.labels == 3, fixed == 3)


def test_deformations_are_moderate_and_never_fold() -> None:
    brain = phantom.template("2mm").labels > 0
    for index in (1, 2, 3):
        warp = phantom.make_phantom(5, index, "2mm").warp
        distance_mm = np.sqrt(((2 * warp) ** 2).sum(-1))[brain]
        assert 2 < distance_mm.mean() < 6
        assert distance_mm.max() < 16
        assert images.jacobian_determinant(warp).min() > 0.1


def test_forward_and_backward_are_inverse() -> None:
    forward, backward = phantom._diffeomorphism(phantom._stream(1, 1, 0))
    points = np.indices(forward.shape[1:]) + backward / phantom.LATTICE
    there = np.stack(
        [ndimage.map_coordinates(u, points, order=3, mode="nearest") for u in forward]
    )
    error_mm = np.sqrt(((backward + there) ** 2).sum(0))[phantom._lattice_brain()]
    # Six squarings start from an Euler step of 1/64: first-order error, 0.013 mm when measured
    assert error_mm.mean() < 0.03 and error_mm.max() < 0.3


@pytest.mark.usefixtures("coarse")
def test_amplitudes_that_fold_are_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    velocities = []
    exponential = phantom._exponential
    monkeypatch.setattr(phantom, "DISPLACEMENT", (30.0, 30.0))
    monkeypatch.setattr(phantom, "_exponential", lambda v: velocities.append(v) or exponential(v))
    forward, backward = phantom._diffeomorphism(phantom._stream(1, 1, 0))
    assert len(velocities) > 2  # the first ones, for phi and its inverse, did fold
    assert phantom._smallest_jacobian(forward) > 0
    assert phantom._smallest_jacobian(backward) > 0


def test_the_recipe_has_not_changed() -> None:
    """These numbers belong to RECIPE 1: whoever changes them raises RECIPE.

    They hold beyond one machine: numpy promises a generator's stream for its version only, and
    a library's rounding may differ in the last bit, hence eight digits and a few label voxels.
    """
    made = phantom.make_phantom(1, 1, SIZE)
    assert phantom.RECIPE == 1
    assert made.image.sum(dtype=np.float64) == pytest.approx(17117.56319808401, rel=1e-8)
    assert np.abs(made.warp).sum(dtype=np.float64) == pytest.approx(93225.07755196879, rel=1e-8)
    assert np.count_nonzero(made.labels == 2) == pytest.approx(19093, abs=3)


@pytest.mark.usefixtures("coarse")
def test_same_arguments_same_bytes_other_arguments_others() -> None:
    first = bytes_of(phantom.make_phantom(3, 7, SIZE))
    phantom.make_phantom(3, 8, SIZE)  # what is made in between does not matter
    with ThreadPoolExecutor(2) as pool:  # nor what is made at the same time
        again = pool.map(lambda _: bytes_of(phantom.make_phantom(3, 7, SIZE)), range(2))
    assert all(made == first for made in again)
    for other in (phantom.make_phantom(3, 8, SIZE), phantom.make_phantom(4, 7, SIZE)):
        assert all(a != b for a, b in zip(first, bytes_of(other), strict=True))


def test_deformation_is_the_same_in_millimetres_at_every_size() -> None:
    fine = 2 * phantom.make_phantom(1, 1, "2mm").warp
    coarse = 4 * phantom.make_phantom(1, 1, SIZE).warp
    blocks = fine.reshape(40, 2, 48, 2, 40, 2, 3).mean((1, 3, 5))
    # a block's mean differs from its centre by curvature only: h²/24 · Δu ≈ 0.1 mm
    assert np.abs(blocks - coarse).max() < 0.2


def test_splines_are_those_of_scipy() -> None:
    coefficients = np.random.default_rng(0).standard_normal((9, 8, 7))
    first, step, shape = np.array([0.2, 0.1, 0.3]), 0.3, (20, 15, 12)
    expected = ndimage.affine_transform(
        coefficients, np.full(3, step), first, shape, order=3, prefilter=False, mode="mirror"
    )
    ours = phantom._splines(coefficients, first, step, shape)
    assert np.abs(ours - expected).max() < 1e-13  # float64, 64 terms of order one


@pytest.mark.usefixtures("coarse")
def test_more_subjects_later_gives_the_same_dataset(tmp_path: Path) -> None:
    made: list[tuple[int, int]] = []
    phantom.make_dataset(tmp_path / "a", 1, size=SIZE)
    a = phantom.make_dataset(tmp_path / "a", 3, size=SIZE, progress=lambda *n: made.append(n))
    assert made[-1] == (2, 2)  # only the two that were missing
    b = phantom.make_dataset(tmp_path / "b", 3, size=SIZE)
    files = sorted(p.relative_to(a.root) for p in a.root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b.root) for p in b.root.rglob("*") if p.is_file())
    for file in files:
        assert (a.root / file).read_bytes() == (b.root / file).read_bytes(), file


@pytest.mark.usefixtures("coarse")
def test_several_at_a_time_are_those_made_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, met = phantom.make_phantom, Barrier(3, timeout=60)

    def waiting(*args: Any) -> phantom.Phantom:
        met.wait()  # until all three are being made
        return make(*args)

    monkeypatch.setattr(phantom, "make_phantom", waiting)
    monkeypatch.setattr(phantom, "_jobs", lambda size: 3)
    dataset = phantom.make_dataset(tmp_path, 3, size=SIZE)
    for k in (1, 2, 3):
        saved = images.load(dataset.moving(phantom.subject(k))).data
        assert saved.tobytes() == make(1, k, SIZE).image.tobytes()


@pytest.mark.usefixtures("coarse")
def test_a_killed_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = phantom.make_dataset(tmp_path / "whole", 2, size=SIZE)
    save, calls = images.save, []

    def killed(*args: object) -> None:
        calls.append(args)
        if len(calls) == 6:  # template 2, subject one 2 (and its warp), then subject two's image
            raise KeyboardInterrupt
        save(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "save", killed)
    monkeypatch.setattr(phantom, "_jobs", lambda size: 1)  # one subject after the other
    with pytest.raises(KeyboardInterrupt):
        phantom.make_dataset(tmp_path / "cut", 2, size=SIZE)
    monkeypatch.undo()
    cut = bids.phantom_dataset(tmp_path / "cut", SIZE)
    assert cut.subjects() == [phantom.subject(1)]
    (cut.root / "sub-002" / "anat").mkdir(parents=True)
    (cut.root / "sub-002" / "anat" / ".sub-002_T1w.nii.gz.1.tmp").write_bytes(b"half")
    phantom.make_dataset(tmp_path / "cut", 2, size=SIZE)
    for file in (p.relative_to(whole.root) for p in whole.root.rglob("*") if p.is_file()):
        assert (cut.root / file).read_bytes() == (whole.root / file).read_bytes(), file
    assert not list(cut.root.rglob("*.tmp"))


@pytest.mark.usefixtures("coarse")
def test_folder_says_what_made_it(tmp_path: Path) -> None:
    dataset = phantom.make_dataset(tmp_path, 1, seed=4, size=SIZE)
    description = json.loads((dataset.root / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Parameters"] == {
        "seed": 4,
        "size": SIZE,
        "recipe": phantom.RECIPE,
    }
    readme = (dataset.root / "README").read_text()
    assert "Louis Collins" in readme and f"--size {SIZE} --seed 4" in readme
    assert (dataset.root / "participants.tsv").read_text() == "participant_id\nsub-001\n"
    subject = dataset.subjects()[0]
    moving, fixed = images.load(dataset.moving(subject)), images.load(dataset.fixed())
    assert images.same_grid(moving, fixed) and moving.has_affine
    assert dataset.fixed_labels() and dataset.moving_labels(subject)
    warp_path = dataset.true_warp(subject)
    assert warp_path is not None
    expected = phantom.make_phantom(4, 1, SIZE).warp
    assert images.load_warp(warp_path).data.tobytes() == expected.tobytes()
    with pytest.raises(UserError, match="delete that folder"):
        phantom.make_dataset(tmp_path, 1, seed=5, size=SIZE)


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 to 999"):
        phantom.make_dataset(tmp_path, 0)
    with pytest.raises(UserError, match="choose one of"):
        phantom.make_dataset(tmp_path, 1, size="3mm")
    with pytest.raises(UserError, match="seed -1 is negative"):
        phantom.make_dataset(tmp_path, 1, seed=-1)
    description = bids.phantom_dataset(tmp_path, SIZE).root / "dataset_description.json"
    description.parent.mkdir()
    for content in ("{}", "[]", "half a file"):
        description.write_text(content)
        with pytest.raises(UserError, match="does not describe phantoms"):
            phantom.make_dataset(tmp_path, 1, size=SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="another data folder"):
        phantom.make_dataset(tmp_path / "file", 1, size=SIZE)
