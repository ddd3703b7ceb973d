"""FreeSurfer 8's SynthMorph against its reference: voxelmorph and neurite, branches dev of 2024.

`freesurfer/` holds small networks with random weights that the reference itself has built and
saved (widths 2, 24 features, hypernetwork of 2 and 2), as Keras weight files, and in
`reference.npz` what it computes from two images of 64×96×64 voxels with TensorFlow 2.21 on one
thread: whole matrices and features, of warps and images every ninth voxel along each axis, of
velocity fields every fifth.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.linalg
import torch

from morphbits import registration, stages
from morphbits.config import Arithmetic, ExperimentConfig, RegisterConfig
from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels.reference import nearest
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.models import keras_files, matrices, network_space
from morphbits.models.joint_torch import Affine, Joint
from morphbits.models.model import open_model
from morphbits.models.mri_synthmorph import AFFINE, DEFORM, RIGID, MriSynthMorph, located

HERE = Path(__file__).parent / "freesurfer"
SHAPE = (64, 96, 64)
EPSILON = 2.0**-24


def structured(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Nested ellipsoids of values k/64 (X, Y, Z): decided by integers, so alike everywhere."""
    random, grid = np.random.Generator(np.random.PCG64(seed)), np.indices(shape)
    out = np.zeros(shape, np.int64)
    for _ in range(12):
        centre = [int(random.integers(n // 5, n - n // 5)) for n in shape]
        axes = [int(random.integers(n // 10, n // 3)) for n in shape]
        parts = zip(grid, centre, axes, strict=True)
        distance = sum((g - c) ** 2 * (10**6 // a**2) for g, c, a in parts)
        out += (distance < 10**6) * int(random.integers(1, 6))
    return (out / np.float32(64)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three files under their published names."""
    folder = tmp_path_factory.mktemp("weights")
    for name, published in (("affine", AFFINE), ("rigid", RIGID), ("deform", DEFORM)):
        content = gzip.decompress((HERE / f"{name}.h5.gz").read_bytes())
        (folder / published).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def reference() -> Mapping[str, np.ndarray]:
    return np.load(HERE / "reference.npz")


@pytest.fixture(scope="module")
def pair() -> list[torch.Tensor]:
    return [torch.from_numpy(structured(SHAPE, seed))[None, None] for seed in (1, 2)]


def network(weights: Path, kind: str, **options: float) -> Affine | Joint:
    return MriSynthMorph(weights / kind, Arithmetic(**options)).network()


def channels_last(array_1CXYZ: torch.Tensor, step: int) -> np.ndarray:
    return array_1CXYZ[0, :, ::step, ::step, ::step].permute(1, 2, 3, 0).numpy()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other).max())


# ---------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("kind", ["affine", "rigid"])
def test_matrices_are_the_references(
    kind: str, weights: Path, reference: Mapping[str, np.ndarray], pair: list[torch.Tensor]
) -> None:
    """Features: chains of at most 54 products of numbers below 1, in nine layers. Matrices: normal
    equations of condition 10^3 (coordinates to 40 voxels, weights that sum to less than 1) turn
    such errors of barycentres into as many voxels; shifts are to 30 voxels."""
    found = network(weights, kind)
    assert isinstance(found, Affine)
    with torch.no_grad():
        if kind == "affine":
            for image, role in zip(pair, ("1", "2"), strict=True):
                features = found.detector.features(image[..., ::2, ::2, ::2], role)
                assert apart(channels_last(features, 1), reference[f"features_{role}"]) < 2.0**-22
        matrix = found.matrix(*pair)[0, :3].numpy()
        moved, warp = found(*pair)
    expected = reference[f"{kind}_forward"]
    assert apart(matrix, expected) < 30 * 1000 * EPSILON / 16
    assert np.abs(expected - np.eye(3, 4)).max() > 1  # it moves images by voxels
    if kind == "affine":
        assert apart(channels_last(moved, 9)[..., 0], reference["affine_moved"]) < 1e-4
    corner = matrix[:, :3] @ (np.array(SHAPE) - 1) + matrix[:, 3] - (np.array(SHAPE) - 1)
    assert apart(warp[0, :, -1, -1, -1].numpy(), corner) < 2.0**-16


def test_a_rigid_matrix_is_a_rotation(weights: Path, pair: list[torch.Tensor]) -> None:
    found = network(weights, "rigid")
    assert isinstance(found, Affine)
    with torch.no_grad():
        matrix = found.matrix(*pair)[0].double().numpy()
    rotation = matrix[:3, :3]
    assert apart(rotation @ rotation.T, np.eye(3)) < 16 * EPSILON
    assert np.linalg.det(rotation) > 0 and np.abs(rotation - np.eye(3)).max() > 0.01


@pytest.mark.parametrize(
    ("name", "kind", "regularization"),
    [("deform_03", "deform", 0.3), ("joint", "joint", 0.5)],
)
def test_deformable_networks_are_the_references(
    name: str,
    kind: str,
    regularization: float,
    weights: Path,
    reference: Mapping[str, np.ndarray],
    pair: list[torch.Tensor],
) -> None:
    """Displacements are some voxels, and their ulp 2^-22. `deform`: thirteen layers of chains of
    at most 108 products, errors of some ulps; integration doubles them seven times, and halves
    them before. `joint`: the affine part's error, 2·10⁻⁵ voxels, times the slope of what the
    network makes of it."""
    found = network(weights, kind, regularization=regularization)
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad(), stages.observed(lambda stage, result: seen.update({stage: result})):
        moved, warp = found(*pair)
    tolerance = 2.0**-15 if kind == "deform" else 2.0**-12
    assert apart(channels_last(seen["network"], 5), reference[f"{name}_svf"]) < tolerance
    assert apart(channels_last(warp, 9), reference[f"{name}_warp"]) < tolerance
    assert apart(channels_last(moved, 9)[..., 0], reference[f"{name}_moved"]) < 2.0**-12
    assert np.abs(reference[f"{name}_warp"]).max() > 1


@pytest.mark.parametrize("kind", ["affine", "rigid", "deform", "joint"])
def test_stages_are_those_that_run(kind: str, weights: Path, pair: list[torch.Tensor]) -> None:
    model, seen = open_model(weights / kind, Arithmetic()), []
    with torch.no_grad(), stages.observed(lambda stage, result: seen.append(stage)):
        model.network()(*pair)
    assert model.stages == set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rigid", "joint", "deform"])
def test_fewer_bits_are_had_in_the_stages_that_it_says(
    kind: str, weights: Path, pair: list[torch.Tensor]
) -> None:
    config = Arithmetic(engine="native", mode="random", precision="12")
    with pytest.raises(UserError, match="some stages only: give --perturb only:"):
        open_model(weights / kind, config)
    able = open_model(weights / kind, Arithmetic()).fewer_bits
    assert able is not None
    config = replace(config, perturb=f"only:{','.join(able)}")
    model = open_model(weights / kind, config)
    with torch.no_grad(), random_rounding("nearest", precision=12, perturb=config.perturb):
        moved, _ = model.network()(*pair)
    mantissa, _ = moved.frexp()
    assert (mantissa * 2.0**12 % 1 == 0).all() and moved.max() > 0


def test_in_mode_nearest_the_engine_gives_tensorflows_bytes(
    weights: Path, reference: Mapping[str, np.ndarray], pair: list[torch.Tensor]
) -> None:
    """Of the deformable model whole, and of the affine model's features; its sums and its inverse
    are in another order."""
    deform, affine = network(weights, "deform", regularization=0.3), network(weights, "affine")
    seen: dict[str, torch.Tensor] = {}
    with (
        torch.no_grad(),
        random_rounding("nearest", accumulation="sequential", subnormals="flush"),
        stages.observed(lambda stage, result: seen.update({stage: result})),
    ):
        moved, warp = deform(*pair)
        assert isinstance(affine, Affine)
        features = affine.detector.features(pair[0][..., ::2, ::2, ::2], "1")
    assert np.array_equal(channels_last(seen["network"], 5), reference["deform_03_svf"])
    assert np.array_equal(channels_last(warp, 9), reference["deform_03_warp"])
    assert np.array_equal(channels_last(moved, 9)[..., 0], reference["deform_03_moved"])
    assert np.array_equal(channels_last(features, 1), reference["features_1"])


def test_swapping_the_images_negates_the_velocity_field(
    weights: Path, pair: list[torch.Tensor]
) -> None:
    found = network(weights, "deform")
    assert isinstance(found, Joint)
    halves = [image[..., ::2, ::2, ::2] for image in pair]
    with torch.no_grad():
        forward, swapped = found.svf(*halves), found.svf(*reversed(halves))
    assert torch.equal(forward, -swapped) and float(forward.abs().max()) > 0.1


# ---------------------------------------------------------------------- weights


def test_the_hypernetwork_is_evaluated_once_and_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(weights / DEFORM, tmp_path))
    first = keras_files.specialized(path, 0.5)
    assert [k.shape[3:] for k, _ in first[:6]] == [(2, 2), *[(2, 2)] * 4, (4, 2)]
    assert keras_files.digest(first) != keras_files.digest(keras_files.specialized(path, 0.25))
    kept = keras_files.kept_file(path, 0.5)
    assert kept.name == "synthmorph.deform.3.lambda-0.5.h5"

    monkeypatch.setattr(keras_files, "_evaluated", None)  # must not be called again
    keras_files._specialized.cache_clear()
    again = keras_files.specialized(path, 0.5)
    assert keras_files.digest(first) == keras_files.digest(again)
    monkeypatch.undo()

    with h5py.File(path, "r+") as file:  # another file of the same name and size
        data = next(d for n, d in keras_files.stored(file, path) if "hyperbias_bias" in n)
        data[:] = data[:] + 1
    keras_files._specialized.cache_clear()
    assert keras_files.digest(keras_files.specialized(path, 0.5)) != keras_files.digest(first)

    with h5py.File(kept, "r+") as file:
        file["03/bias"][0] += 1
    keras_files._specialized.cache_clear()
    with pytest.raises(UserError, match="is damaged; delete it"):
        keras_files.specialized(path, 0.5)


def test_a_multiplication_and_an_addition_are_rounded_once() -> None:
    """Sums that lie, by less than float64 shows, below and above the middle of two float32
    numbers, where rounding twice takes the even one; and sums of all kinds."""
    near = 1 + 2.0**-23
    a = [2.0**-24 * near, -(2.0**-24) * near, 2.0**-24 * near, 2.0**-149, 3.0]
    b = [1 - 2.0**-23, 1 - 2.0**-23, near, 0.5, -0.5]
    c = [near, -near, 1.0, 2.0**-149, 1.5]
    random = np.random.Generator(np.random.PCG64(1))
    more = random.standard_normal((3, 20_000)) * 2.0 ** random.integers(-40, 10, (3, 20_000))
    cases = np.concatenate([np.array([a, b, c]), more], 1).astype(np.float32)
    found = keras_files._fused(*cases)
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in cases.T.tolist()]
    assert found.tolist() == [nearest(sum_, torch.float32) for sum_ in exact]
    twice = (cases[0].astype(np.float64) * cases[1] + cases[2]).astype(np.float32)
    assert (twice[:2] != found[:2]).all()  # what this is about


def test_the_hypernetwork_gives_tensorflows_numbers(weights: Path) -> None:
    """Bit for bit: digests of what `MatMul` and `bias_add` of TensorFlow 2.21 give."""
    found = keras_files.digest(keras_files.specialized(weights / DEFORM, 0.5))
    assert found == "sha256:c61e8ccf5beeb607781b6f4474be6b8f3cbf89b4da3a6fcaaed29a8b03dbc557"
    found = keras_files.digest(keras_files.specialized(weights / DEFORM, 0.3))
    assert found == "sha256:a28499188b27e1f20a2450d2688211dcf4a49deda924ee6e58e9099e037d0777"


def test_the_hypernetwork_is_the_dense_layers_of_its_file(weights: Path) -> None:
    """In float64 from the file's arrays: sums of three terms, each within an ulp."""
    with h5py.File(weights / DEFORM) as file:
        arrays = [(n, d[:].astype(np.float64)) for n, d in keras_files.stored(file, weights)]
    hidden, rest = np.array([0.5]), iter(arrays)
    for _ in range(2):
        (_, kernel), (_, bias) = next(rest), next(rest)
        hidden = np.maximum(hidden @ kernel + bias, 0)
    for kernel, bias in keras_files.specialized(weights / DEFORM, 0.5):
        maps = [next(rest)[1] for _ in range(4)]
        for found, to, shift in ((kernel, *maps[:2]), (bias, *maps[2:])):
            exact = (hidden @ to + shift).reshape(found.shape)
            assert np.all(np.abs(found - exact) <= 8 * EPSILON * (1 + np.abs(exact)))


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("affine", DEFORM, "holds no affine network"),
        ("deform", AFFINE, "holds no deformable network"),
        ("deform", None, "'make models' downloads the weights"),
    ],
)
def test_wrong_files_are_one_sentence(
    kind: str, file: str | None, message: str, weights: Path, tmp_path: Path
) -> None:
    if file:
        shutil.copy(weights / file, tmp_path / {"affine": AFFINE, "deform": DEFORM}[kind])
    with pytest.raises(UserError, match=message):
        network(tmp_path, kind)


def test_weights_are_looked_for_where_make_models_and_freesurfer_have_them(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    assert located("joint") == Path("data/models/joint")
    (tmp_path / "freesurfer").mkdir()
    shutil.copytree(weights, tmp_path / "freesurfer" / "models")
    monkeypatch.setenv("FREESURFER_HOME", "freesurfer")
    assert located("joint") == Path("freesurfer/models/joint")
    shutil.copytree(weights, tmp_path / "data" / "models")
    assert located("joint") == Path("data/models/joint")


# ---------------------------------------------------------------------- images


def head(shape: tuple[int, int, int], affine: np.ndarray, seed: int) -> Image:
    return Image(structured(shape, seed), affine, True)


def test_images_come_into_network_space_as_in_mri_synthmorph() -> None:
    """By hand, for a voxel inside: the cube is centred on index n / 2 of the image, its axes are
    left, inferior, anterior."""
    affine = np.array([[2.0, 0, 0, -50], [0, 0, 1.5, 7], [0, -1, 0, 20], [0, 0, 0, 1]])
    image = head((32, 48, 40), affine, 3)
    prepared = network_space.prepare(image, image, 64, one_centre=False)
    assert prepared.moving.shape == (64, 64, 64) and prepared.moving.dtype == np.float32
    assert prepared.moving.min() == 0 and prepared.moving.max() == 1
    centre = affine @ [16, 24, 20, 1]
    found, expected = [], []
    for voxel in ((30, 31, 33), (40, 20, 25), (25, 40, 30)):
        steps = np.array(voxel) - 32
        world = centre[:3] + np.array([-steps[0], steps[2], -steps[1]])
        index = np.linalg.solve(affine, [*world, 1])[:3]
        low = np.floor(index).astype(int)
        corner = image.data[tuple(slice(a, a + 2) for a in low)].astype(np.float64)
        for part in index - low:
            corner = corner[0] * (1 - part) + corner[1] * part
        found.append(float(prepared.moving[voxel]))
        expected.append(float(corner))
    assert len(set(expected)) == 3
    scaled = np.multiply(found, expected[0] / found[0])  # outside is 0, and so is the minimum
    assert np.abs(scaled - expected).max() < 2.0**-21


def test_a_shift_between_centres_is_undone_and_warps_come_back_in_the_fixed_files_voxels() -> None:
    """The same image in two files: nothing is left for the network to move, and a warp of network
    space by one voxel in each direction is one millimetre left, inferior and anterior."""
    fixed_affine = np.array([[0, 2.0, 0, -50], [1.25, 0, 0, -30], [0, 0, -1, 20], [0, 0, 0, 1]])
    shifted = fixed_affine.copy()
    shifted[:3, 3] += [13, -7, 30]
    fixed, moving = head((40, 32, 48), fixed_affine, 5), head((40, 32, 48), shifted, 5)
    prepared = network_space.prepare(moving, fixed, 96, one_centre=False)
    assert np.array_equal(prepared.moving, prepared.fixed)
    assert prepared.alignment[:3, 3].tolist() == [13, -7, 30]
    warp = prepared.warp_back(np.ones((96, 96, 96, 3), np.float32))
    world = warp.astype(np.float64) @ fixed_affine[:3, :3].T
    assert warp.shape == (40, 32, 48, 3) and warp.dtype == np.float32
    assert np.abs(world - [-1, 1, -1]).max() < 4 * EPSILON
    together = network_space.prepare(moving, fixed, 96, one_centre=True)
    assert not together.alignment[:3, 3].any()
    assert not np.array_equal(together.moving, together.fixed)


def test_what_comes_back_from_network_space_is_the_image() -> None:
    """A smooth image through the cube and back: linear interpolation twice at half voxels."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in (50, 44, 60)], indexing="ij")
    data = np.exp(-4 * sum(g**2 for g in grid)).astype(np.float32)
    fixed = Image(data, np.diag([1.1, 1.0, 0.9, 1]), True)
    prepared = network_space.prepare(fixed, fixed, 96, one_centre=False)
    back = prepared.moved_back(prepared.fixed)
    expected = (data - data.min()) / np.ptp(data)
    assert apart(back[3:-3, 3:-3, 3:-3], expected[3:-3, 3:-3, 3:-3]) < 0.01


def test_an_empty_cube_is_one_sentence() -> None:
    near = head((32, 32, 32), np.eye(4), 1)
    far = head((32, 32, 32), np.eye(4) + np.pad([[900.0]] * 3, ((0, 1), (3, 0))), 1)
    with pytest.raises(UserError, match="MODEL=deform needs that"):
        network_space.prepare(far, near, 64, one_centre=True)


# ---------------------------------------------------------------------- through registration


@pytest.mark.parametrize("kind", ["joint", "affine", "rigid", "deform"])
def test_it_registers_as_every_model_does(kind: str, weights: Path) -> None:
    """The same result on the fixed grid as the network's own in its cube, where that is the grid;
    the engine rounds every operator of it."""
    lia = np.eye(4)
    lia[:3, :3] = network_space.LIA
    moving, fixed = (head((64, 64, 64), lia, seed) for seed in (1, 2))
    config = RegisterConfig(extent=64)
    prepared = registration.prepare(moving, fixed, weights / kind, config)
    plain = registration.register(prepared, weights / kind, config)
    with torch.no_grad():
        inputs = (torch.from_numpy(x)[None, None] for x in (prepared.moving, prepared.fixed))
        moved, warp = network(weights, kind)(*inputs)
    assert np.array_equal(plain.moved_XYZ, moved[0, 0].numpy())
    assert apart(plain.warp_XYZV, channels_last(warp, 1)) < 2.0**-17
    results = [
        registration.register(
            prepared, weights / kind, RegisterConfig(engine="native", seed=seed, extent=64)
        )
        for seed in (1, 2)
    ]
    distances = [apart(r.warp_XYZV, plain.warp_XYZV) for r in results]
    assert 0 < max(distances) < 0.05 and apart(*(r.warp_XYZV for r in results)) > 0
    assert results[0].record["operations"] > 10**6


def test_what_changes_bytes_is_its_identity(weights: Path) -> None:
    def identity(kind: str, **options: float) -> dict[str, object]:
        return open_model(weights / kind, Arithmetic(**options)).identity(lambda path: "no file's")

    joint = identity("joint")
    assert (
        joint["model"] == "joint" and joint["extent"] == 256 and "no file's" not in joint.values()
    )
    assert joint["regularization"] == 0.5 and str(joint["deform_weights"]).startswith("sha256:")
    for other in (identity("joint", extent=192), identity("joint", regularization=0.3)):
        assert other != joint
    assert identity("affine")["affine_weights"] == joint["affine_weights"]
    assert identity("rigid")["affine_weights"] != joint["affine_weights"]
    assert "regularization" not in identity("affine")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("joint", {"align": "centre"}, "--align does nothing with model joint"),
        ("joint", {"crop": True}, "--crop does nothing"),
        ("joint", {"framework": "tensorflow"}, "is computed by torch, not by tensorflow"),
        ("affine", {"regularization": 0.1}, "it is for joint or deform"),
        ("demo.h5", {"extent": 192}, "it is for joint, affine, rigid or deform"),
    ],
)
def test_options_that_do_nothing_are_refused(
    model: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_model(Path(model), Arithmetic(**options))


def test_extents_that_no_network_takes_are_refused() -> None:
    for extent, allowed in (
        (0, "at least 64"),
        (32, "at least 64"),
        (100, "a multiple of 32 from 64 to 512"),
        (1024, "at most 512"),
    ):
        with pytest.raises(UserError, match=f"extent must be {allowed}"):
            ExperimentConfig(extent=extent)


# ---------------------------------------------------------------------- square roots


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_roots_are_principal(dtype: torch.dtype) -> None:
    """Over affine matrices that turn, stretch and shear: the root's square is the matrix, within
    some ulps of its greatest number, and scipy's root is the same."""
    random = np.random.default_rng(0)
    epsilon, kinds = torch.finfo(dtype).eps, set()
    for _ in range(40):
        matrix = np.eye(4)
        matrix[:3] += random.choice([0.02, 0.2, 0.5]) * random.standard_normal((3, 4))
        values = np.linalg.eigvals(matrix)
        if np.any((values.real < 0.1) & (np.abs(values.imag) < 0.2)):
            continue
        kinds.add(bool(np.iscomplex(values).any()))
        root = matrices.square_root(torch.tensor(matrix, dtype=dtype)).double().numpy()
        size = np.abs(root).max()
        assert apart(root @ root, matrix) < 40 * epsilon * size**2
        assert apart(root, scipy.linalg.sqrtm(matrix).real) < 1000 * epsilon * size
    assert kinds == {True, False}


def test_square_roots_of_any_size() -> None:
    """Blocks of both sizes next to each other, above each other's."""
    random = np.random.default_rng(1)
    for n in (1, 2, 3, 5, 8):
        part = random.standard_normal((n, n))
        matrix = 0.2 * part @ part.T + np.eye(n) + np.triu(part, 1) - np.triu(part, 1).T
        root = matrices.square_root(torch.tensor(matrix)).numpy()
        assert apart(root, scipy.linalg.sqrtm(matrix).real) < 1e-12


def test_a_mirror_has_no_mid_space() -> None:
    with pytest.raises(UserError, match="no real square root"):
        matrices.square_root(torch.diag(torch.tensor([-1.0, 1, 1, 1])))
