"""The promise the engine rests on: in mode nearest, sequential order, subnormals flushed, a whole
registration has TensorFlow's bytes, so that a perturbed sample differs from TensorFlow's result
only in its roundings.

Both sides are run as a user would run them, by `morphbits register`, each in a process of its own.
Shown on AVX-512; where the processor has none, TensorFlow may add in another order and the test
says by how much the results differ.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from morphbits import cli
from morphbits.engines.native.kernels.library import available_variants
from morphbits.models.weights import Architecture, init_weights, save_h5

WIDTHS = {
    "demo": ((16, 32, 32, 32), (32, 32, 32, 32, 16, 16)),
    "narrow": ((8, 16, 16, 16), (16,) * 6),
}


def inputs(folder: Path, shape: tuple[int, int, int], model: str, subnormals: bool) -> list[str]:
    """Two smooth random images with a background of zeros and a network that really moves them."""
    random = np.random.default_rng(sum(shape))
    for name in ("moving", "fixed"):
        image = gaussian_filter(random.random(shape), 2).astype(np.float32)
        image = (image - image.min()) / (image.max() - image.min())
        image[:4] = 0
        if subnormals:  # zero and one stay in, so that normalization keeps these values
            image[4:6] = random.integers(1, 1000, (2, *shape[1:])) * np.float32(2.0**-149)
            image[8, 0, :2] = 0, 1
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    architecture = Architecture(*WIDTHS[model])
    weights = init_weights(architecture, seed=1, flow_std=0.05)
    for layer in [name for name in weights if name.endswith("/bias")]:
        weights[layer] = random.normal(0, 0.05, weights[layer].shape).astype(np.float32)
    if subnormals:  # a feature of subnormal numbers, which the next layer brings back to size
        first, bias, second = list(weights)[:3]
        weights[first], weights[second] = weights[first].copy(), weights[second].copy()
        weights[first][..., 0] *= np.float32(2.0**-126)
        weights[second][..., 0, :] *= np.float32(2.0**126)
        weights[bias][0] = 0
    save_h5(folder / "model.h5", architecture, weights)
    files = {name: str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")}
    files["model"] = str(folder / "model.h5")
    return [word for name, path in files.items() for word in (f"--{name}", path)]


def registered(arguments: list[str], folder: Path, *options: str) -> tuple[np.ndarray, np.ndarray]:
    """Moved image and warp as `morphbits register` writes them."""
    out = folder / hashlib.sha256(repr(options).encode()).hexdigest()[:8]
    outputs = ("--moved", str(out / "moved.nii.gz"), "--warp", str(out / "warp.nii.gz"))
    out.mkdir()
    command = [*cli.command("register"), *arguments, *outputs, *options]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return tuple(
        np.asanyarray(nib.load(out / f"{name}.nii.gz").dataobj) for name in ("moved", "warp")
    )


def compare(folder: Path, shape: tuple[int, int, int], model: str, subnormals: bool) -> None:
    arguments = inputs(folder, shape, model, subnormals)
    reference = registered(arguments, folder, "--framework", "tensorflow", "--engine", "ieee")
    native = registered(
        arguments, folder, "--engine", "native", "--mode", "nearest", "--subnormals", "flush"
    )
    assert np.abs(reference[1]).max() > 0.5  # something moved
    if "avx512" not in available_variants():
        worst = [np.abs(a - b).max() for a, b in zip(reference, native, strict=True)]
        pytest.skip(
            f"no AVX-512 here; differences: moved {worst[0]:.2g}, warp {worst[1]:.2g} voxels"
        )
    for name, a, b in zip(("moved", "warp"), reference, native, strict=True):
        assert a.dtype == b.dtype == np.float32
        assert a.tobytes() == b.tobytes(), f"{name} differs by up to {np.abs(a - b).max():.2g}"
    if subnormals:  # the case has teeth: kept, they change the result
        kept = registered(arguments, folder, "--engine", "native", "--mode", "nearest")
        assert kept[1].tobytes() != reference[1].tobytes()


@pytest.mark.parametrize(
    "subnormals", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "subnormals"]
)
def test_a_registration_has_tensorflows_bytes(tmp_path: Path, subnormals: bool) -> None:
    compare(tmp_path, (32, 48, 32), "narrow", subnormals)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 32, 32), (80, 96, 80)], ids=["32", "demo size"])
def test_a_registration_has_tensorflows_bytes_at_demo_width(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    compare(tmp_path, shape, "demo", subnormals=True)
