"""voxelmorph `.h5` files: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from morphbits import cli
from morphbits.errors import UserError
from morphbits.models.weights import (
    DIGEST,
    Architecture,
    init_weights,
    model_orientation,
    read_architecture,
    read_weights,
    save_h5,
)

SMALL = Architecture(enc=(8, 16, 16, 16), dec=(16, 16, 16, 16, 16, 8), inshape=(32, 32, 32))
PUBLISHED = Architecture(enc=(256,) * 4, dec=(256,) * 6)


def edit_config(path: Path, **changes: Any) -> None:
    """Change arguments of the saved constructor; `None` takes one away."""
    with h5py.File(path, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        for name, value in changes.items():
            model["config"].pop(name, None)
            if value is not None:
                model["config"][name] = value
        file.attrs["model_config"] = json.dumps(model).encode()  # bytes, as older h5py wrote them
        file.attrs.pop(DIGEST, None)


@pytest.fixture
def copy(small_model: Path, tmp_path: Path) -> Path:
    """Without our digest, as from another program."""
    path = Path(shutil.copy(small_model, tmp_path / "copy.h5"))
    with h5py.File(path, "r+") as file:
        del file.attrs[DIGEST]
    return path


def test_reads_what_was_written(small_model: Path, small_weights: dict[str, np.ndarray]) -> None:
    assert read_architecture(small_model) == SMALL
    weights = read_weights(small_model)
    assert list(weights) == list(small_weights)
    for name, value in weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, small_weights[name])


def test_same_weights_same_bytes(small_weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        save_h5(tmp_path / name, SMALL, small_weights)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_published_architecture() -> None:
    """The published networks: 21.27 million weights in eleven convolutions, three with a skip."""
    layers = PUBLISHED.convolutions()
    assert [layer.in_channels for layer in layers] == [2] + [256] * 4 + [512] * 3 + [256] * 3
    assert PUBLISHED.parameters() == 21_270_787
    assert PUBLISHED.multiple == 16


@pytest.mark.parametrize(
    ("enc", "dec"),
    [((4,), (6, 8)), ((4, 4), (4, 4)), ((4, 5, 6), (7, 8, 9, 10)), ((2, 3), (3,) * 6)],
)
def test_widths_come_from_the_kernels(
    enc: tuple[int, ...], dec: tuple[int, ...], tmp_path: Path
) -> None:
    architecture = Architecture(enc, dec, int_steps=3)
    save_h5(tmp_path / "w.h5", architecture, init_weights(architecture, 1))
    edit_config(tmp_path / "w.h5", nb_unet_features=None)
    assert read_architecture(tmp_path / "w.h5") == architecture


def test_older_names_of_the_arguments(copy: Path) -> None:
    edit_config(
        copy, nb_unet_features=None, enc_nf=list(SMALL.enc), dec_nf=list(SMALL.dec),
        int_resolution=None, svf_resolution=None, int_downsize=2, unet_half_res=True,
    )  # fmt: skip
    assert read_architecture(copy) == SMALL


def test_older_layouts_of_the_file(copy: Path, small_weights: dict[str, np.ndarray]) -> None:
    """Another model name, names of layers in numbered parts, layers without weights between."""
    with h5py.File(copy, "r+") as file:
        root = file["model_weights"]
        names = [str(name) for name in root.attrs["layer_names"]]
        new = [name.replace("vxm_dense_", "") for name in names]
        for old_name, name in zip(names, new, strict=True):
            root.move(old_name, name)
        root.create_group("pooling").attrs["weight_names"] = np.array([], dtype="S1")
        del root.attrs["layer_names"]
        root.attrs["layer_names0"] = [name.encode() for name in [*new[:2], "pooling", *new[2:5]]]
        root.attrs["layer_names1"] = [name.encode() for name in new[5:]]
    for name, value in read_weights(copy).items():
        np.testing.assert_array_equal(value, small_weights[name])


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weights(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_refuses_what_is_no_hdf5_file(tmp_path: Path, copy: Path) -> None:
    assert "there is no such" in refusal(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("<html>404</html>")
    assert "not an HDF5 file" in refusal(tmp_path / "text.h5")
    whole = copy.read_bytes()
    for part in (0.3, 0.9):
        copy.write_bytes(whole[: int(part * len(whole))])
        assert "truncated" in refusal(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_model": {"class_name": "Functional", "config": {}}}, "full training model"),
        ({"use_probs": True}, "use_probs"),
        ({"fill_value": 0}, "fill_value"),
        ({"svf_resolution": 1}, "svf_resolution 1"),
        ({"int_resolution": 1}, "int_resolution 1"),
        ({"int_steps": 0}, "int_steps is 0"),
        ({"inshape": [32, 32]}, "three-dimensional"),
        ({"inshape": None}, "VxmDense"),
    ],
)
def test_refuses_other_networks(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copy, **changes)
    if changes.get("inshape", 0) is None:
        edit_config(copy, layers=[])
    assert message in refusal(copy)


def test_a_flipped_bit_in_the_weights_is_seen(tmp_path: Path) -> None:
    architecture = Architecture((2, 3), (3, 2))
    path = tmp_path / "model.h5"
    random = np.random.default_rng(1)
    weights = {
        name: random.random(array.shape, np.float32)
        for name, array in init_weights(architecture, 1).items()
    }
    save_h5(path, architecture, weights)
    whole = path.read_bytes()
    for array in weights.values():
        place = whole.index(array.tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="other weights than were written"):
            read_weights(path)
        assert read_architecture(path) == architecture  # reads no weight


def test_refuses_damaged_contents(copy: Path) -> None:
    flow = "vxm_dense_flow"
    with h5py.File(copy, "r+") as file:
        file["model_weights"][flow][f"{flow}/bias:0"][0] = np.nan
    assert "non-finite" in refusal(copy)
    with h5py.File(copy, "r+") as file:
        del file["model_weights"][flow][f"{flow}/bias:0"]
    assert "bias:0 is missing" in refusal(copy)
    with h5py.File(copy, "r+") as file:
        del file["model_weights"][flow]
    assert "vxm_dense_flow is missing" in refusal(copy)
    with h5py.File(copy, "r+") as file:
        del file.attrs["model_config"]
    assert "no model_config" in refusal(copy)


def test_refuses_another_wiring(copy: Path) -> None:
    """A full-resolution decoder has one skip connection more; a dense layer has another rank."""
    with h5py.File(copy, "r+") as file:
        root = file["model_weights"]
        name = "vxm_dense_unet_dec_final_conv_0"
        del root[name][f"{name}/kernel:0"]
        root[name][f"{name}/kernel:0"] = np.zeros((3, 3, 3, 24, 16), np.float32)
    assert "no SynthMorph network" in refusal(copy)
    with h5py.File(copy, "r+") as file:
        root = file["model_weights"]
        del root[name][f"{name}/kernel:0"]
        root[name][f"{name}/kernel:0"] = np.zeros((16, 16), np.float32)
    assert "three-dimensional convolutions" in refusal(copy)


def test_unwritable_folder(small_weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_h5(tmp_path / "absent" / "w.h5", SMALL, small_weights)


def test_untrained_weights_are_he_normal_and_a_function_of_the_seed() -> None:
    first, again, other = (init_weights(SMALL, seed) for seed in (1, 1, 2))
    name = "vxm_dense_unet_dec_conv_1_0/kernel"
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()
    fan_in = 27 * first[name].shape[3]
    std = np.sqrt(2 / fan_in)
    n = first[name].size
    # the standard error of a standard deviation is below std/√(2n) for a distribution cut at 2σ
    assert abs(first[name].std() - std) < 4 * std / np.sqrt(2 * n)
    assert np.abs(first[name]).max() <= 2 * std / 0.879
    flow = init_weights(SMALL, 1, flow_std=1e-5)["vxm_dense_flow/kernel"]
    assert abs(flow.std() - 1e-5) < 4 * 1e-5 / np.sqrt(2 * flow.size)


def test_make_model(tmp_path: Path) -> None:
    command = [*cli.command("make-model"), "--enc", "4", "4", "--dec", "4", "4", "4"]
    output = tmp_path / "w.h5"
    subprocess.run([*command, "--seed", "7", "--output", str(output)], check=True)
    assert read_architecture(output) == Architecture((4, 4), (4, 4, 4))
    failed = subprocess.run(
        [*command, "--output", str(tmp_path / "absent" / "w.h5")], capture_output=True, text=True
    )
    assert failed.returncode == 2 and failed.stderr.startswith("error: ")


def test_the_axes_a_model_was_trained_in_are_kept_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    architecture = replace(SMALL, orientation="LIA")
    save_h5(path, architecture, init_weights(architecture, 1))
    assert read_architecture(path) == architecture
    assert model_orientation(path) == "LIA" and model_orientation(path, "RAS") == "RAS"
    assert model_orientation(path, "fixed") == ""
    save_h5(path, SMALL, init_weights(SMALL, 1))  # read anew
    assert model_orientation(path) == ""
    published = path.rename(tmp_path / "brains-dice-vel-0.5-res-16-256f.h5")
    assert model_orientation(published) == "LIA"
    save_h5(path, SMALL, init_weights(SMALL, 1))
    edit_config(path, metadata={"orientation": "XYZ"})
    with pytest.raises(UserError, match=r"a\.h5: orientation 'XYZ' names no axes"):
        model_orientation(path)
    with pytest.raises(UserError, match="no such model file"):
        model_orientation(tmp_path / "gone.h5")
