"""The torch port against voxelmorph's TensorFlow network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.lazy_tensorflow import reference

from morphbits.config import DEMO_MODEL
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph, init_model
from morphbits.models.weights import DIGEST, Architecture, read_architecture, read_weights, save_h5

pytestmark = pytest.mark.tensorflow

Images = Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]
SHAPES = [(32, 32, 32), (32, 48, 16)]
UNIT_ROUNDOFF = 2.0**-24


def gamma(n: int) -> float:
    """Relative error bound of n roundings in float32 (Higham, Accuracy and Stability, §3.1)."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def channels_first(array: object) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def batch(image_XYZ: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_XYZ)[None, None]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer(small_model: Path, images: Images, shape: tuple[int, ...]) -> None:
    """Given TensorFlow's input, each layer's output differs by no more than rounding allows.

    Either framework adds n = 27·C_in products and a bias in some order of its own. With or
    without fused operations no term passes more than n + 1 roundings, one more in LeakyReLU
    (Lipschitz 1): each result is within γ(n + 2)·(Σ|w||x| + |b|) of the exact one, and the two
    within twice that of each other.
    """
    theirs = reference.load(small_model).layers(*images(shape))
    ours = SynthMorph.load(small_model)
    for name, layer in ours.layers.items():
        x = channels_first(theirs[f"{name}/input"])
        magnitude = torch.nn.functional.conv3d(
            x.double().abs(), layer.weight.double().abs(), layer.bias.double().abs(), padding=1
        )
        bound = 2 * gamma(27 * x.shape[1] + 2) * magnitude
        difference = (layer(x).double() - channels_first(theirs[f"{name}/output"]).double()).abs()
        assert difference.shape[2:] == x.shape[2:]
        assert (difference <= bound).all(), (
            f"{name}: {(difference / bound).max():.2f} of the bound"
        )


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_given_the_velocity_field_the_rest_has_the_same_bits(
    small_model: Path, images: Images, shape: tuple[int, ...]
) -> None:
    moving, fixed = images(shape)
    theirs = reference.load(small_model).layers(moving, fixed)
    ours = SynthMorph.load(small_model)
    warp = ours.warp(channels_first(theirs["vxm_dense_flow/output"]))
    moved = reference.vxm.layers.SpatialTransformer()(
        [moving[None, ..., None], theirs["warp/output"]]
    )
    assert torch.equal(warp, channels_first(theirs["warp/output"]))
    assert np.array_equal(np.asarray(moved), theirs["moved/output"])
    # some samples lie outside: the warp leads out of the first and the last plane
    assert warp[:, 0, 0].min() < 0 < warp[:, 0, -1].max()


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_port_is_as_accurate_as_the_reference(
    small_model: Path, images: Images, shape: tuple[int, ...]
) -> None:
    """Both lie at a similar distance (within a factor of four) from the network in float64.

    A bound for the whole network grows by Σ|w| per layer and says nothing. But were the port
    another network, the reference would lie far from the port in float64, and the port's own
    rounding would be small compared with that distance.
    """
    moving, fixed = images(shape)
    theirs = reference.load(small_model).layers(moving, fixed)
    ours = SynthMorph.load(small_model)
    moved, warp = ours(batch(moving), batch(fixed))
    exact_moved, exact_warp = ours.double()(batch(moving).double(), batch(fixed).double())
    for value, name, exact in ((moved, "moved", exact_moved), (warp, "warp", exact_warp)):
        our_error = (value - exact).square().mean().sqrt()
        their_error = (channels_first(theirs[f"{name}/output"]) - exact).square().mean().sqrt()
        assert 1 / 4 < our_error / their_error < 4
        assert 0 < their_error < 1e-5  # 1e-5 voxels or grey values: rounding, nothing else


@torch.no_grad()
def test_wiring_bit_for_bit(tmp_path: Path) -> None:
    """With small whole numbers everywhere no sum is rounded: the networks agree in every bit.

    Two taps of weight 1 in each output channel keep the features below 2²⁴, and what is warped
    lies far outside the volume. A swapped concatenation, axis or tap, a bias or a border gone
    wrong shows.
    """
    architecture = Architecture((4, 5, 6, 7), (6, 5, 7, 4, 5, 6), inshape=(32, 48, 16))
    random = np.random.default_rng(5)
    weights = {}
    for layer in architecture.convolutions():
        kernel = np.zeros((27 * layer.in_channels, layer.out_channels), np.float32)
        for channel in range(layer.out_channels):
            kernel[random.choice(len(kernel), 2, replace=False), channel] = 1
        weights[f"{layer.name}/kernel"] = kernel.reshape(layer.kernel_shape)
        weights[f"{layer.name}/bias"] = random.integers(0, 3, layer.out_channels).astype(
            np.float32
        )
    save_h5(tmp_path / "whole.h5", architecture, weights)
    moving, fixed = random.integers(0, 8, (2, *architecture.inshape)).astype(np.float32)
    theirs = reference.load(tmp_path / "whole.h5").layers(moving, fixed)
    ours = SynthMorph.load(tmp_path / "whole.h5")
    svf = ours.svf(batch(moving), batch(fixed))
    assert svf.max() < 2**24 and len(svf.unique()) > 50
    assert torch.equal(svf, channels_first(theirs["vxm_dense_flow/output"]))
    moved, warp = ours(batch(moving), batch(fixed))
    assert torch.equal(warp, channels_first(theirs["warp/output"]))
    assert torch.equal(moved, channels_first(theirs["moved/output"]))


def test_graph_has_the_bytes_of_eager_and_plain_has_not(small_model: Path, images: Images) -> None:
    moving, fixed = images(SHAPES[0])
    theirs = reference.load(small_model).layers(moving, fixed)
    model = reference.load(small_model)
    moved, warp = reference.register(model, moving, fixed)
    assert np.array_equal(moved, theirs["moved/output"][0, ..., 0])
    assert np.array_equal(warp, theirs["warp/output"][0])
    plain_moved, plain_warp = reference.register(model, moving, fixed, plain=True)
    assert (plain_warp != warp).any(), (
        "TensorFlow's optimizer changes nothing any more: drop plain"
    )
    # one rearranged interpolation per squaring: a few units in the last place of the largest warp
    assert np.abs(plain_warp - warp).max() < 64 * np.spacing(np.abs(warp).max())
    assert np.abs(plain_moved - moved).max() < 64 * np.spacing(np.float32(1))
    again = reference.register(model, moving, fixed)
    assert np.array_equal(again[0], moved) and np.array_equal(again[1], warp)
    both = reference.register(model, np.stack([moving, fixed]), np.stack([fixed, moving]))
    assert both[0].shape == (2, *moving.shape) and both[1].shape == (2, *warp.shape)
    assert np.array_equal(both[0][0], moved) and np.array_equal(both[1][0], warp)


@torch.no_grad()
def test_files_go_both_ways(tmp_path: Path, images: Images) -> None:
    """torch → `.h5` → VxmDense.load → save → torch: the same weights, the same outputs."""
    shape = SHAPES[0]
    ours = init_model(Architecture((4, 4, 4, 4), (4,) * 6, inshape=shape), seed=6)
    ours.save(tmp_path / "torch.h5")
    network = reference.vxm.networks.VxmDense.load(str(tmp_path / "torch.h5"))
    network.save(str(tmp_path / "tensorflow.h5"))
    assert read_architecture(tmp_path / "tensorflow.h5") == ours.architecture
    back = SynthMorph.load(tmp_path / "tensorflow.h5")
    inputs = [batch(image) for image in images(shape)]
    for value, again in zip(ours(*inputs), back(*inputs), strict=True):
        assert torch.equal(value, again)
    moved, warp = reference.register(reference.load(tmp_path / "torch.h5"), *images(shape))
    same = reference.register(reference.load(tmp_path / "tensorflow.h5"), *images(shape))
    assert np.array_equal(moved, same[0]) and np.array_equal(warp, same[1])


def test_older_files(small_model: Path, tmp_path: Path, images: Images) -> None:
    """The arguments' names of 2020 and another model name change nothing in either framework."""
    older = Path(shutil.copy(small_model, tmp_path / "older.h5"))
    with h5py.File(older, "r+") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        enc, dec = config.pop("nb_unet_features")
        del config["svf_resolution"], config["int_resolution"]
        config |= {"enc_nf": enc, "dec_nf": dec, "unet_half_res": True, "int_downsize": 2}
        config["name"] = "registration"
        file.attrs["model_config"] = json.dumps({"class_name": "VxmDense", "config": config})
        del file.attrs[DIGEST]  # voxelmorph's own files have none
    shape = SHAPES[1]
    now = reference.load(small_model).layers(*images(shape))
    then = reference.load(older).layers(*images(shape))
    assert all(np.array_equal(now[name], then[name]) for name in now)
    weights, older_weights = read_weights(small_model), read_weights(older)
    assert all(np.array_equal(weights[name], older_weights[name]) for name in weights)
    assert read_architecture(older) == read_architecture(small_model)


def test_reference_refuses_what_the_port_refuses(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        reference.load(tmp_path / "absent.h5")
    odd = np.zeros((30, 32, 32), np.float32)
    with pytest.raises(UserError, match="multiple of 16"):
        reference.register(reference.load(small_model), odd, odd)
    with pytest.raises(UserError, match="multiple of 16"):
        SynthMorph.load(small_model)(batch(odd), batch(odd))
    with pytest.raises(UserError, match="one size"):
        SynthMorph.load(small_model)(batch(odd), batch(odd[:16]))


def test_threads_are_set_once(small_model: Path, images: Images) -> None:
    reference.register(reference.load(small_model), *images(SHAPES[0]))
    running = reference.tf.config.threading.get_intra_op_parallelism_threads()
    with pytest.raises(UserError, match="one process per number"):
        reference.set_threads(running + 1)


def test_training_reaches_every_weight(images: Images) -> None:
    model = init_model(Architecture((4, 4, 4, 4), (4,) * 6), seed=7, flow_std=1e-5)
    moved, warp = model(*[batch(image) for image in images(SHAPES[1])])
    (moved.square().mean() + warp.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_gradients_off_change_no_bits(small_model: Path, images: Images) -> None:
    """Activations in place save memory where nothing is differentiated, and nothing else."""
    model = SynthMorph.load(small_model)
    inputs = [batch(image) for image in images(SHAPES[1])]
    in_place = model(*inputs)
    with torch.enable_grad():
        kept = model(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(in_place, kept, strict=True))


def test_the_demo_model_loads_in_voxelmorph() -> None:
    pair = np.random.default_rng(1).random((2, 16, 16, 16), dtype=np.float32)
    theirs = reference.vxm.networks.VxmDense.load(str(DEMO_MODEL))
    assert theirs.count_params() == 285_827
    _, warp = reference.register(reference.load(DEMO_MODEL), *pair)
    batches = (batch(image) for image in pair)
    with torch.no_grad():
        _, port = SynthMorph.load(DEMO_MODEL)(*batches)
    # noise at the smallest size; the port's own tests derive 1e-5 of the largest displacement
    difference = np.abs(np.moveaxis(port[0].numpy(), 0, -1) - warp).max()
    assert difference <= 1e-4 * max(1.0, np.abs(warp).max())
