"""voxelmorph `.h5` files: architecture and weights, read and written with h5py alone.

A SynthMorph network is voxelmorph's `VxmDense` (TensorFlow, version 0.2) with the velocity field
predicted and integrated at half resolution. Its `.h5` file is Keras' own format: the constructor's
arguments as JSON in the attribute `model_config`, one group per layer below `model_weights`. The
widths are inferred from the kernels' shapes, because older files name them differently (`enc_nf`,
`nb_unet_features`, or not at all).

Methods: SynthMorph, Hoffmann et al., IEEE TMI 2022, doi:10.1109/TMI.2021.3116879; file format:
`neurite.tf.modelio.LoadableModel` and `tf_keras.src.saving.legacy.hdf5_format`.

Arrays: kernels (3, 3, 3, C_in, C_out), taps in X, Y, Z order; biases (C_out,); float32, no unit.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from morphbits import axes
from morphbits.errors import UserError
from morphbits.files import write_atomically

MODEL_NAME = "vxm_dense"
#: The version of Keras whose `.h5` layout is written here: Keras 2, which tf-keras keeps.
KERAS_VERSION = "2.15.0"
DIGEST = "morphbits_sha256"  # attribute: HDF5 itself would read a flipped bit as another weight
#: Axes of the images that the published models were trained on, by the names of their files:
#: FreeSurfer's conformed ones. (mri_synthmorph, by the same authors, brings images to LIA before
#: its networks; the study's inputs were conformed.)
PUBLISHED_ORIENTATIONS = {
    "brains-dice-vel-0.5-res-16-256f.h5": "LIA",
    "shapes-dice-vel-3-res-8-16-32-256f.h5": "LIA",
}


class ConvolutionLayer(NamedTuple):
    """One 3×3×3 convolution: its voxelmorph layer name and its channel counts."""

    name: str
    in_channels: int
    out_channels: int

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (3, 3, 3, self.in_channels, self.out_channels)


@dataclass(frozen=True)
class Architecture:
    """What a SynthMorph `.h5` says about the network.

    `enc` and `dec` are output channels per convolution, `int_steps` the number of squarings in the
    integration, the two resolutions are voxel sizes of the velocity field relative to the images,
    and `inshape` (X, Y, Z) is the image size the file was saved with; the weights fit any multiple
    of `2 ** len(enc)`. `orientation` names the axes of the images that it was trained on
    (`morphbits.axes`), empty where the file does not say.
    """

    enc: tuple[int, ...]
    dec: tuple[int, ...]
    int_steps: int = 5
    int_resolution: int = 2
    svf_resolution: int = 2
    inshape: tuple[int, int, int] = (160, 192, 224)
    orientation: str = ""

    def __post_init__(self) -> None:
        if (self.int_resolution, self.svf_resolution) != (2, 2):
            raise UserError(
                "only networks with svf and integration at resolution 2 are SynthMorph networks, "
                f"not svf_resolution {self.svf_resolution}, int_resolution {self.int_resolution}"
            )
        if self.int_steps < 1:
            raise UserError(f"int_steps is {self.int_steps}, a SynthMorph network has 1 or more")
        if not self.enc or len(self.dec) < len(self.enc):
            raise UserError(
                "the decoder needs at least as many convolutions as the encoder: "
                f"enc {self.enc}, dec {self.dec}"
            )
        if self.orientation not in ("", *axes.NAMES):
            raise UserError(f"orientation {self.orientation!r} names no axes, as RAS and LIA do")
        if min(self.enc + self.dec) < 1:
            raise UserError(f"every width must be 1 or more: enc {self.enc}, dec {self.dec}")

    @property
    def multiple(self) -> int:
        """Image sizes must be multiples of this number of voxels."""
        return int(2 ** len(self.enc))

    def convolutions(self) -> list[ConvolutionLayer]:
        """The convolutions in order of execution, under voxelmorph's layer names.

        The decoder's first `len(enc)` convolutions step up one level each, all but the last
        followed by upsampling and concatenation with the encoder's features of that level; the
        rest stay at half resolution.
        """
        levels = len(self.enc)
        layers: list[ConvolutionLayer] = []
        channels = 2
        for level, width in enumerate(self.enc):
            layers.append(
                ConvolutionLayer(f"{MODEL_NAME}_unet_enc_conv_{level}_0", channels, width)
            )
            channels = width
        for step, width in enumerate(self.dec):
            level = levels - 1 - step
            name = f"dec_conv_{level}_0" if level >= 0 else f"dec_final_conv_{step - levels}"
            layers.append(ConvolutionLayer(f"{MODEL_NAME}_unet_{name}", channels, width))
            channels = width + (self.enc[level] if level > 0 else 0)
        return [*layers, ConvolutionLayer(f"{MODEL_NAME}_flow", channels, 3)]

    def multiplications(self, voxels: int) -> int:
        """Of the convolutions on a grid of so many voxels."""
        levels, total = len(self.enc), 0
        for number, layer in enumerate(self.convolutions()):
            level = number if number < levels else max(1, 2 * levels - number)
            total += 27 * layer.in_channels * layer.out_channels * voxels // 8**level
        return total

    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(
            27 * c.in_channels * c.out_channels + c.out_channels for c in self.convolutions()
        )


def read_architecture(path: Path | str) -> Architecture:
    """The architecture of the SynthMorph network in `path`; no weight is read."""
    path = Path(path)
    with open_h5(path) as file:
        return _architecture(path, _model_config(file, path), *_convolutions(file, path))


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Float32 `<layer>/kernel` and `<layer>/bias` of `path`, in order of execution.

    Layers have the names of `Architecture.convolutions`, whatever the file calls them.
    """
    path = Path(path)
    with open_h5(path) as file:
        config, stored = _model_config(file, path), _convolutions(file, path)
        layers = _architecture(path, config, *stored).convolutions()
        kernels, biases = ([np.asarray(a, dtype=np.float32) for a in arrays] for arrays in stored)
        digest = file.attrs.get(DIGEST)  # of the files that this suite has written
    if digest not in (None, _digest(config, [*kernels, *biases])):
        raise UserError(
            f"{path}: holds other weights than were written to it (damaged, or changed by hand); "
            "take another copy"
        )
    weights: dict[str, np.ndarray] = {}
    for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"{path}: {layer.name} holds non-finite weights; take another file")
        weights |= {f"{layer.name}/kernel": kernel, f"{layer.name}/bias": bias}
    return weights


def model_orientation(path: Path, asked: str = "auto") -> str:
    """Axes that images are brought into before this model, as in "RAS"; empty: the fixed file's.

    `asked` is such a name, `fixed`, or `auto`: what is recorded in the file; the published models
    are known by their names.
    """
    if asked != "auto":
        return "" if asked == "fixed" else asked
    status = path.stat() if path.is_file() else None
    return _recorded_orientation(path, status and (status.st_size, status.st_mtime_ns))


@functools.lru_cache
def _recorded_orientation(path: Path, _: tuple[int, int] | None) -> str:
    return read_architecture(path).orientation or PUBLISHED_ORIENTATIONS.get(path.name, "")


def _architecture(
    path: Path,
    config: Mapping[str, Any],
    kernels: Sequence[h5py.Dataset],
    biases: Sequence[h5py.Dataset],
) -> Architecture:
    # files before voxelmorph 0.2 say unet_half_res and int_downsize
    svf_resolution = 2 if config.get("unet_half_res") else config.get("svf_resolution", 1)
    int_resolution = config.get("int_downsize") or config.get("int_resolution", 2)
    enc, dec = _widths(kernels, path)
    x, y, z = config["inshape"]
    try:
        architecture = Architecture(
            enc=enc,
            dec=dec,
            int_steps=config.get("int_steps", 7),
            int_resolution=int_resolution,
            svf_resolution=svf_resolution,
            inshape=(int(x), int(y), int(z)),
            orientation=(config.get("metadata") or {}).get("orientation", ""),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for layer, kernel, bias in zip(architecture.convolutions(), kernels, biases, strict=True):
        if kernel.shape != layer.kernel_shape or bias.shape != (layer.out_channels,):
            raise UserError(
                f"{path}: {layer.name} should have a kernel of {layer.kernel_shape}, "
                f"not {kernel.shape}: this is no SynthMorph network (half-resolution VxmDense)"
            )
    return architecture


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """`path` opened to read; whatever HDF5 finds wrong with it becomes one sentence."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such model file")
    if not h5py.is_hdf5(path):
        raise UserError(f"{path}: not an HDF5 file; a model is a voxelmorph .h5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: damaged or truncated, fetch it again ({error})") from None


def _model_config(file: h5py.File, path: Path) -> dict[str, Any]:
    """The constructor's arguments of the saved VxmDense."""
    try:
        model = json.loads(_text(file.attrs["model_config"]))
        class_name, config = model.get("class_name"), model["config"]
    except KeyError:
        raise UserError(
            f"{path}: has no model_config, so it is no saved voxelmorph model; "
            "save the VxmDense with model.save()"
        ) from None
    except ValueError:
        raise UserError(f"{path}: its model_config is not JSON; fetch the file again") from None
    if "inshape" not in config or len(config["inshape"]) != 3:
        raise UserError(f"{path}: holds a {class_name} model, not a three-dimensional VxmDense")
    if config.get("input_model") is not None:
        raise UserError(
            f"{path}: holds a full training model (with an input_model); "
            "save the plain VxmDense inside it"
        )
    foreign = [n for n in ("hyp_model", "fill_value") if config.get(n) is not None]
    foreign += ["use_probs"] if config.get("use_probs") else []
    if foreign:
        raise UserError(
            f"{path}: was built with {', '.join(foreign)}, as no SynthMorph network is"
        )
    return dict(config)


def _convolutions(file: h5py.File, path: Path) -> tuple[list[h5py.Dataset], list[h5py.Dataset]]:
    """Kernels and biases in the order Keras saved them, which is the order of execution."""
    arrays = [data for _, data in stored(file, path)]
    kernels, biases = arrays[0::2], arrays[1::2]
    ranks = [kernel.ndim for kernel in kernels], [bias.ndim for bias in biases]
    if not kernels or ranks != ([5] * len(kernels), [1] * len(kernels)):
        raise UserError(f"{path}: does not hold three-dimensional convolutions with biases only")
    return kernels, biases


def _widths(
    kernels: Sequence[h5py.Dataset], path: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Encoder and decoder widths from the kernels' shapes.

    A convolution that takes more channels than the one before it gives follows a skip connection;
    a half-resolution decoder has one fewer of them than the encoder has levels.
    """
    given = [kernel.shape[4] for kernel in kernels]
    taken = [kernel.shape[3] for kernel in kernels]
    levels = 1 + sum(taken[k] != given[k - 1] for k in range(1, len(kernels)))
    if len(kernels) < 2 * levels + 1:
        raise UserError(
            f"{path}: {len(kernels)} convolutions with {levels - 1} skip connections "
            "are no SynthMorph network"
        )
    return tuple(given[:levels]), tuple(given[levels:-1])


def stored(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Names and arrays of all weights in a file of Keras, in the order they were saved in."""
    root = file.get("model_weights", file)
    for layer in _names(root, "layer_names"):
        if layer not in root:
            raise UserError(f"{path}: layer {layer} is missing; fetch the file again")
        for name in _names(root[layer], "weight_names"):
            if name not in root[layer]:
                raise UserError(f"{path}: weight {name} is missing; fetch the file again")
            yield name, root[layer][name]


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names that Keras keeps in one attribute, or in numbered parts where it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while not parts or parts[0] != attribute:
        part = f"{attribute}{len(parts)}"
        if part not in group.attrs:
            break
        parts.append(part)
    return [_text(name) for part in parts for name in group.attrs[part]]


def _digest(config: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> str:
    """A hash of a model's configuration and weights."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.asarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def save_h5(
    path: Path | str, architecture: Architecture, weights: Mapping[str, np.ndarray]
) -> None:
    """Write `weights` (as from `read_weights`) as a file that `VxmDense.load` takes.

    Same weights, same bytes: HDF5 objects carry no times here.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    config = {
        "inshape": list(architecture.inshape),
        "nb_unet_features": [list(architecture.enc), list(architecture.dec)],
        "int_steps": architecture.int_steps,
        "int_resolution": architecture.int_resolution,
        "svf_resolution": architecture.svf_resolution,
        "name": MODEL_NAME,
        "metadata": {"orientation": architecture.orientation} if architecture.orientation else {},
    }
    versions = {"backend": "tensorflow", "keras_version": KERAS_VERSION}
    layers = architecture.convolutions()
    arrays = [weights[f"{layer.name}/{part}"] for part in ("kernel", "bias") for layer in layers]
    # in memory first: HDF5 has errors of its own for a disk that is full, some of them too late
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(versions)
        file.attrs[DIGEST] = _digest(config, arrays)
        file.attrs["model_config"] = json.dumps({"class_name": "VxmDense", "config": config})
        root = file.create_group("model_weights")
        root.attrs.update(versions)
        root.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = root.create_group(layer.name)
            names = [f"{layer.name}/kernel:0", f"{layer.name}/bias:0"]
            group.attrs["weight_names"] = [name.encode() for name in names]
            kernel, bias = weights[f"{layer.name}/kernel"], weights[f"{layer.name}/bias"]
            if kernel.shape != layer.kernel_shape:
                raise ValueError(f"{layer.name}: kernel {kernel.shape} for {layer}")
            group[names[0]] = np.asarray(kernel, dtype=np.float32)
            group[names[1]] = np.asarray(bias, dtype=np.float32)
        file.flush()
        content = file.id.get_file_image()
    write_atomically(path, content)


def init_weights(
    architecture: Architecture, seed: int, flow_std: float | None = None
) -> dict[str, np.ndarray]:
    """Untrained weights, a function of `seed` alone: he-normal kernels, zero biases.

    He-normal is a normal of variance 2 / (27·C_in), cut at two standard deviations, as Keras draws
    it. `flow_std` gives the last layer a plain normal of that standard deviation instead: training
    starts from 1e-5 as voxelmorph does, while he-normal there (the default) gives warps of some
    voxels, which is what a benchmark or a test of an untrained network needs.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    # the standard deviation of a standard normal cut at ±2, which Keras divides out
    cut_std = 0.87962566103423978
    weights: dict[str, np.ndarray] = {}
    for layer in architecture.convolutions():
        draw = random.standard_normal(layer.kernel_shape)
        if layer.name.endswith("_flow") and flow_std is not None:
            draw *= flow_std
        else:
            while (outside := np.abs(draw) > 2).any():
                draw[outside] = random.standard_normal(int(outside.sum()))
            draw *= np.sqrt(2 / (27 * layer.in_channels)) / cut_std
        weights[f"{layer.name}/kernel"] = draw.astype(np.float32)
        weights[f"{layer.name}/bias"] = np.zeros(layer.out_channels, np.float32)
    return weights
