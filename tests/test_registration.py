"""One registration: the network between the steps before and after it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from morphbits import engines, images, registration
from morphbits.axes import Turn
from morphbits.config import DEMO_MODEL, RegisterConfig
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.registration import Result

SHAPE = (20, 24, 17)


def register(moving: Image, fixed: Image, model: Path, config: RegisterConfig) -> Result:
    """A pair, prepared and registered."""
    return registration.register(registration.prepare(moving, fixed, model, config), model, config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5)
    path = tmp_path_factory.mktemp("model") / "tiny.h5"
    save_h5(path, architecture, init_weights(architecture, 1))
    return path


@pytest.fixture
def pair() -> tuple[Image, Image]:
    """Moving and fixed image of one odd shape, on one grid."""
    random = np.random.default_rng(1)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    moving, fixed = (random.random(SHAPE, dtype=np.float32) for _ in range(2))
    return Image(moving, affine), Image(fixed, affine)


def test_the_network_sees_the_prepared_pair_and_the_result_is_on_the_fixed_grid(
    model: Path, pair: tuple[Image, Image]
) -> None:
    config = RegisterConfig()
    result = register(*pair, model, config)
    assert result.moved_XYZ.shape == SHAPE and result.moved_XYZ.dtype == np.float32
    assert result.warp_XYZV.shape == (*SHAPE, 3) and result.warp_XYZV.dtype == np.float32
    assert np.array_equal(result.fixed_affine, pair[1].affine)

    prepared = images.prepare(*pair)
    with torch.no_grad():
        moved_BCXYZ, warp_BVXYZ = SynthMorph.load(model)(
            *(torch.from_numpy(array)[None, None] for array in (prepared.moving, prepared.fixed))
        )
    grid = prepared.grid
    assert np.array_equal(result.moved_XYZ, grid.unpad(moved_BCXYZ[0, 0].numpy()))
    warp_XYZV = np.moveaxis(warp_BVXYZ[0].numpy(), 0, -1)
    assert np.array_equal(result.warp_XYZV, grid.unpad(warp_XYZV))
    assert np.abs(result.warp_XYZV).max() > 0.1


@pytest.mark.parametrize("engine", ["ieee", "native"])
def test_a_pair_in_a_batch_gives_its_own_result(
    engine: str, model: Path, pair: tuple[Image, Image]
) -> None:
    """The engine's bytes do not depend on the batch; torch takes other kernels for a batch."""
    config = RegisterConfig(engine=engine, mode="nearest" if engine == "native" else "random")
    mine, other = (registration.prepare(*p, model, config) for p in (pair, pair[::-1]))
    alone = registration.register(mine, model, config)
    within = registration.register(mine, model, config, others=[other])
    if engine == "native":
        assert np.array_equal(within.warp_XYZV, alone.warp_XYZV)
        assert np.array_equal(within.moved_XYZ, alone.moved_XYZ)
    # ten layers whose sums have up to 8 · 27 terms: in another order at most 10 · 216 · 2⁻²⁴ =
    # 1.3e-4 of what they add up, which here is no more than a few times the largest warp
    tolerance = 1e-3 * np.abs(alone.warp_XYZV).max()
    assert np.abs(within.warp_XYZV - alone.warp_XYZV).max() < tolerance
    its = registration.register(other, model, config).warp_XYZV
    assert np.abs(its - alone.warp_XYZV).max() > 100 * tolerance


@pytest.fixture(scope="module")
def ras_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that says in which axes it was trained."""
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5, orientation="RAS")
    path = tmp_path_factory.mktemp("model") / "ras.h5"
    save_h5(path, architecture, init_weights(architecture, 1))
    return path


def test_the_same_world_gives_the_same_answer_however_the_fixed_file_is_stored(
    ras_model: Path, pair: tuple[Image, Image]
) -> None:
    """Bit for bit over all 48 orders and directions of its axes: the network sees the same arrays,
    and what comes out is only permuted and negated. (Their affines are exact; a header rounds the
    corner of a flipped file to float32, which moves it by some 1e-6 mm.)"""
    moving, fixed = pair
    moving.affine = moving.affine + np.pad([[1.25], [-0.5], [2.75]], ((0, 1), (3, 0)))
    straight = register(moving, fixed, ras_model, RegisterConfig())
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Turn(order, flips)
            file = Image(turn.array(fixed.data), turn.affine(fixed.affine, SHAPE))
            result = register(moving, file, ras_model, RegisterConfig())
            assert np.array_equal(result.fixed_affine, file.affine)
            assert np.array_equal(result.moved_XYZ, turn.array(straight.moved_XYZ))
            for k, (axis, flip) in enumerate(zip(order, flips, strict=True)):
                expected = turn.array(straight.warp_XYZV[..., axis])
                assert np.array_equal(result.warp_XYZV[..., k], -expected if flip else expected)


def test_a_model_without_axes_takes_the_fixed_files_and_says_so(
    model: Path, ras_model: Path, pair: tuple[Image, Image]
) -> None:
    moving, fixed = pair
    turn = Turn((2, 0, 1), (True, False, False))
    turned = [Image(turn.array(i.data), turn.affine(i.affine, SHAPE)) for i in pair]

    def warp(model: Path, images: Sequence[Image], orientation: str = "auto") -> np.ndarray:
        config = RegisterConfig(model_orientation=orientation)
        return register(images[0], images[1], model, config).warp_XYZV

    own_axes = warp(model, turned)
    assert np.array_equal(own_axes, warp(ras_model, turned, "fixed"))
    assert not np.array_equal(own_axes, warp(ras_model, turned))
    assert np.array_equal(warp(model, turned, "RAS"), warp(ras_model, turned))
    assert np.array_equal(warp(model, pair), warp(ras_model, pair))  # these lie in RAS
    for path, words in ((model, "does not say in which"), (ras_model, "in the model's, RAS")):
        steps = register(moving, fixed, path, RegisterConfig()).record["steps"]
        assert any(step.startswith("axes: ") and words in step for step in steps)


def test_expected_seconds_are_those_that_were_measured() -> None:
    """notes/benchmarks/native_amd-epyc_2026-11-28.md, within the factor of three that is said."""
    for engine, mode, threads, measured in (
        ("ieee", "random", 1, 0.54),
        ("native", "nearest", 1, 0.56),
        ("native", "random", 1, 1.36),
        ("native", "random", 2, 0.66),
        ("native", "nearness", 1, 11.77),
    ):
        config = RegisterConfig(engine=engine, mode=mode, threads=threads)
        found = registration.seconds_estimate(DEMO_MODEL, 80 * 96 * 80, config)
        assert found is not None and 1 / 3 < found / measured < 3, config
    config = RegisterConfig(engine="native", precision="8")
    assert registration.seconds_estimate(DEMO_MODEL, 1000, config) is None
    published = Architecture((256,) * 4, (256,) * 6)  # 283 s on two threads at random
    seconds = published.multiplications(160 * 192 * 224) / registration.SPEEDS["random"] / 2
    assert 1 / 3 < seconds / 283 < 3


def test_a_cropped_registration_comes_back_on_the_fixed_grid(
    model: Path, pair: tuple[Image, Image]
) -> None:
    for image in pair:
        image.data[8, 8, 8] = 0  # the minimum also of what is padded
    wide = [Image(np.pad(image.data, 24), image.affine) for image in pair]
    whole, cropped = (
        register(wide[0], wide[1], model, RegisterConfig(crop=crop)) for crop in (False, True)
    )
    assert cropped.moved_XYZ.shape == whole.moved_XYZ.shape == wide[0].data.shape
    assert any("cropped" in step for step in cropped.record["steps"])
    own = register(*pair, model, RegisterConfig())  # the same window, exactly
    assert np.array_equal(cropped.moved_XYZ[24:-24, 24:-24, 24:-24], own.moved_XYZ)


def test_what_happened_is_recorded(model: Path, pair: tuple[Image, Image]) -> None:
    record = register(*pair, model, RegisterConfig()).record
    assert record["operations"] == 0 and record["operators"] == {}
    assert record["order"] == "torch's own" and record["seconds"] > 0
    assert record["alignment"] == np.eye(4).tolist()
    assert any("padded" in step for step in record["steps"])


def test_a_model_that_was_written_anew_is_loaded_anew(
    model: Path, pair: tuple[Image, Image], tmp_path: Path
) -> None:
    path = tmp_path / "model.h5"
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5)
    warps = []
    for seed in (1, 2):
        save_h5(path, architecture, init_weights(architecture, seed))
        warps.append(register(*pair, path, RegisterConfig()).warp_XYZV)
    assert not np.array_equal(*warps)


def test_native_counts_what_it_rounds_and_names_the_order(
    model: Path, pair: tuple[Image, Image]
) -> None:
    config = RegisterConfig(engine="native")
    result = register(*pair, model, config)
    assert result.record["operations"] == sum(result.record["operators"].values()) > 10**6
    assert result.record["order"].startswith("TensorFlow's")
    plain = register(*pair, model, RegisterConfig())
    far = np.abs(result.warp_XYZV - plain.warp_XYZV).max()
    assert 0 < far < 1e-2  # other roundings, the same registration
    again = register(*pair, model, RegisterConfig(engine="native", threads=2))
    assert np.array_equal(result.warp_XYZV, again.warp_XYZV)
    other = register(*pair, model, RegisterConfig(engine="native", seed=2))
    assert not np.array_equal(result.warp_XYZV, other.warp_XYZV)


def test_an_engine_that_perturbs_nothing_is_an_error(
    model: Path, pair: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = engines.get("ieee").region
    monkeypatch.setattr(engines.get("native"), "region", idle)
    with pytest.raises(RuntimeError, match="perturbed no operation"):
        register(*pair, model, RegisterConfig(engine="native"))


def test_verrou_outside_valgrind_names_its_script(model: Path, pair: tuple[Image, Image]) -> None:
    with pytest.raises(UserError, match=r"scripts/with_verrou\.sh"):
        register(*pair, model, RegisterConfig(engine="verrou"))


def test_a_grid_that_does_not_fit_is_refused_before_it_is_computed(
    model: Path, pair: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "memory_free", lambda: 2**20)
    with pytest.raises(UserError, match=r"needs about .* GB of memory and 0\.0 GB are free"):
        register(*pair, model, RegisterConfig())


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**20 < registration.memory_free() < 2**50
