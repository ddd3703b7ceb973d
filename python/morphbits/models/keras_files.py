"""Weights of FreeSurfer 8's SynthMorph: Keras weight files, read with h5py alone.

`synthmorph.affine.2.h5` and `synthmorph.rigid.1.h5` hold the convolutions of an affine network,
`synthmorph.deform.3.h5` (3.5 GB) a hypernetwork: small dense layers that turn the regularization λ
into numbers, from which linear maps make the kernels and biases of a U-Net. At one λ it is a plain
U-Net of 106 MB. `specialized` computes that once, a row of a map at a time, and keeps it in a file
next to the original.

File format: `tf_keras.src.saving.legacy.hdf5_format`; layers: `HyperConvFromDense` of neurite and
`voxelmorph.tf.networks` (both: branch dev, 2024). Layers are taken in the order of `layer_names`
and `weight_names`, which is the order of execution, whatever they are called.

Arrays: kernels (3, 3, 3, C_in, C_out) as Keras keeps them, biases (C_out,); float32.
"""

from __future__ import annotations

import functools
import hashlib
import os
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from morphbits.errors import UserError
from morphbits.files import sha256, write_atomically
from morphbits.models.weights import DIGEST, open_h5, stored

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]  # kernel and bias of each convolution
_PARTS = ("hyperkernel_kernel", "hyperkernel_bias", "hyperbias_kernel", "hyperbias_bias")


def affine_layers(path: Path) -> Layers:
    """The convolutions of the affine network in `path`."""
    return _affine_layers(path, *stamp(path))


@functools.lru_cache(maxsize=2)
def _affine_layers(path: Path, size: int, modified: int) -> Layers:
    with open_h5(path) as file:
        arrays = [
            np.asarray(d, np.float32) for n, d in stored(file, path) if _part(n) not in _PARTS
        ]
    # a file of the joint network also has the dense layers of its hypernetwork
    pairs = zip(arrays[0::2], arrays[1::2], strict=False)
    layers = tuple((kernel, bias) for kernel, bias in pairs if kernel.ndim == 5)
    if not layers:
        raise UserError(f"{path}: holds no affine network of SynthMorph (no convolutions)")
    return _checked(path, layers, 1, 0)


def specialized(path: Path, regularization: float) -> Layers:
    """The convolutions of the deformable network in `path` at this regularization.

    They are kept in a file next to `path`, which is used as long as `path` has not changed; where
    that folder cannot be written to, they are computed each time.
    """
    return _specialized(path, regularization, *stamp(path))


def digest(layers: Layers) -> str:
    """``sha256:…`` of all numbers of a network."""
    found = hashlib.sha256()
    for array in (array for layer in layers for array in layer):
        found.update(f"{array.shape}".encode())
        found.update(np.ascontiguousarray(array, "<f4").data)
    return f"sha256:{found.hexdigest()}"


def kept_file(path: Path, regularization: float) -> Path:
    """Where the network at this regularization is kept."""
    return path.with_name(f"{path.stem}.lambda-{regularization:g}.h5")


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; UserError where there is none."""
    try:
        status = path.stat()
    except OSError:
        raise UserError(
            f"{path}: there is no such file; 'make models' downloads the weights, and FreeSurfer "
            "8 has them in $FREESURFER_HOME/models"
        ) from None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2)
def _specialized(path: Path, regularization: float, size: int, modified: int) -> Layers:
    kept = kept_file(path, regularization)
    layers = _read_kept(kept, path, regularization, size, modified)
    if layers is None:
        with open_h5(path) as file:
            layers = _evaluated(path, dict(stored(file, path)), regularization)
        if os.access(path.parent, os.W_OK):
            _keep(kept, layers, path, regularization, size, modified)
    return layers


def _evaluated(path: Path, weights: dict[str, h5py.Dataset], regularization: float) -> Layers:
    """The hypernetwork's output: the kernels and biases of the U-Net."""
    plain = [data for name, data in weights.items() if _part(name) not in _PARTS]
    dense = [pair for pair in zip(plain[0::2], plain[1::2], strict=False) if pair[0].ndim == 2]
    maps = [[d for name, d in weights.items() if _part(name) == part] for part in _PARTS]
    if not dense or not maps[0] or len({len(found) for found in maps}) != 1:
        raise UserError(f"{path}: holds no deformable network of SynthMorph (no hypernetwork)")
    hidden = np.array([regularization], np.float32)
    for kernel, bias in dense:
        hidden = np.maximum(_mapped(hidden, kernel, bias), 0)
    layers = []
    for to_kernel, kernel_bias, to_bias, bias_bias in zip(*maps, strict=True):
        bias = _mapped(hidden, to_bias, bias_bias)
        kernel = _mapped(hidden, to_kernel, kernel_bias)
        layers.append((kernel.reshape(3, 3, 3, -1, len(bias)), bias))
    shapes = [kernel.shape[3:] for kernel, _ in layers]
    levels = sum(taken != given for (_, given), (taken, _) in pairwise(shapes))
    if shapes[-1][1] != 3 or len(layers) <= 2 * levels:
        raise UserError(f"{path}: holds no deformable network of SynthMorph (its kernels' shapes)")
    return _checked(path, tuple(layers), 2, levels)


def _mapped(values: np.ndarray, kernel: h5py.Dataset, bias: h5py.Dataset) -> np.ndarray:
    """values · kernel + bias, float32: TensorFlow's bytes, a chain of fused multiply-adds.

    A row of the kernel at a time: one is 14 MB at most.
    """
    out = np.zeros(kernel.shape[1], np.float32)
    for value, row in zip(values, kernel, strict=True):
        out = _fused(value, row, out)
    return out + bias[:]


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a · b + c of float32 arrays, rounded once.

    The product is exact in float64. The sum is rounded there to odd: unless it is exact, to that
    neighbour whose last bit is 1. As float64 has at least two bits more than float32, what that
    gives rounds to the float32 number nearest to the exact sum (Boldo and Melquiond 2008,
    doi:10.1109/TC.2007.70819).
    """
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)  # exact (Knuth's two-sum)
    bits = total.view(np.int64)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    bits += np.where((error != 0) & (bits & 1 == 0), towards, 0)
    return total.astype(np.float32)


def _checked(path: Path, layers: Layers, channels: int, levels: int) -> Layers:
    """The layers, where each takes what the one before gives. After the first convolutions of the
    decoder, as many as the encoder has levels, features of the encoder join, the last ones first.
    """
    given = [bias.shape[0] for _, bias in layers]
    for number, (kernel, bias) in enumerate(layers):
        taken = given[number - 1] if number else channels
        if levels < number <= 2 * levels:
            taken += given[2 * levels - number]
        if kernel.shape != (3, 3, 3, taken, given[number]):
            raise UserError(
                f"{path}: convolution {number + 1} has a kernel of {kernel.shape}, not of "
                f"{(3, 3, 3, taken, given[number])}: this is no network of SynthMorph"
            )
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"{path}: holds non-finite weights; take another file")
    return layers


def _part(name: str) -> str:
    """``hyperkernel_bias`` of ``model/hyper_conv_from_dense_3/hyperkernel_bias:0``."""
    return name.rpartition("/")[2].partition(":")[0]


# ---------------------------------------------------------------------- the kept file

_VERSION = 3  # of the numbers that `_evaluated` gives: raised when they change


def _keep(
    kept: Path, layers: Layers, path: Path, regularization: float, size: int, modified: int
) -> None:
    with h5py.File(kept.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(
            {
                "what": f"{path.name}, its hypernetwork evaluated at this regularization",
                "version": _VERSION,
                "regularization": regularization,
                "source_bytes": size,
                "source_modified": modified,
                "source_sha256": sha256(path),
                DIGEST: digest(layers),
            }
        )
        for number, (kernel, bias) in enumerate(layers, 1):
            file[f"{number:02d}/kernel"], file[f"{number:02d}/bias"] = kernel, bias
        file.flush()
        content = file.id.get_file_image()
    write_atomically(kept, content)


def _read_kept(
    kept: Path, path: Path, regularization: float, size: int, modified: int
) -> Layers | None:
    """What is kept of just this file; None where nothing is, or of another one."""
    if not kept.is_file():
        return None
    with open_h5(kept) as file:
        known = file.attrs.get
        if known("version") != _VERSION or known("regularization") != regularization:
            return None
        if known("source_bytes") != size:
            return None
        if known("source_modified") != modified and known("source_sha256") != sha256(path):
            return None
        layers = tuple((layer["kernel"][:], layer["bias"][:]) for layer in file.values())
        if digest(layers) != known(DIGEST):
            raise UserError(f"{kept}: is damaged; delete it, it is made again from {path.name}")
    return layers
