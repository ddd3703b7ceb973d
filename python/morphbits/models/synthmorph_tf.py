"""The reference: SynthMorph in TensorFlow, as voxelmorph 0.2 builds and loads it.

Importing this module sets what TensorFlow reads from the environment, so import it before
TensorFlow. Kernels are those of oneDNN, chosen here and not left to TensorFlow, which turns oneDNN
off on some CPUs and under Valgrind; a value of TF_ENABLE_ONEDNN_OPTS that is already set is kept.
The kernels used here give the same bytes again for one number of threads without TensorFlow's op
determinism, which concerns sums over scattered indices, random numbers and input pipelines.
TensorFlow's threads flush subnormal numbers to zero.

Method: SynthMorph, Hoffmann et al., IEEE TMI 2022, doi:10.1109/TMI.2021.3116879;
implementation: `voxelmorph.tf.networks.VxmDense` 0.2.

Arrays: X Y Z space, V warp component (axes X, Y, Z); float32. Images lie in [0, 1] on one common
grid, warps are displacements in voxels of that grid.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from morphbits.errors import UserError
from morphbits.models.weights import MODEL_NAME, read_architecture

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["VXM_BACKEND"] = os.environ["NEURITE_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not hasattr(inspect, "getargspec"):  # gone in Python 3.11; voxelmorph and neurite 0.2 call it
    inspect.getargspec = lambda function: inspect.getfullargspec(function)[:4]  # type: ignore[attr-defined]

import tensorflow as tf
import voxelmorph as vxm


class Reference:
    """A VxmDense file and the networks built from it, one per image size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.architecture = read_architecture(path)
        self._networks: dict[tuple[int, ...], Any] = {}
        self._graphs: dict[tuple[int, ...], Any] = {}  # by size of a batch of images

    def network(self, shape: tuple[int, ...]) -> Any:
        """The Keras model for images of `shape` (X, Y, Z): [moving, fixed] → [moved, warp]."""
        multiple = self.architecture.multiple
        if any(n % multiple for n in shape):
            raise UserError(
                f"images of {shape} voxels: each size must be a multiple of {multiple}"
            )
        if shape not in self._networks:
            self._networks[shape] = vxm.networks.VxmDense.load(
                str(self.path), inshape=shape, bidir=False, reg_field="warp", name=MODEL_NAME
            )
        return self._networks[shape]

    def graph(self, size: tuple[int, ...]) -> Any:
        """The same network as one TensorFlow function of moving and fixed, of this `size`
        (B, X, Y, Z, 1).

        It computes what `Model.predict` does, without that method's Python and input pipeline, in
        which an engine that perturbs the process would perturb other things than the network.
        """
        if size not in self._graphs:
            network = self.network(size[1:4])
            image = tf.TensorSpec(size, tf.float32)
            self._graphs[size] = tf.function(
                lambda moving, fixed: network([moving, fixed], training=False), [image, image]
            )
        return self._graphs[size]

    def layers(self, moving_XYZ: np.ndarray, fixed_XYZ: np.ndarray) -> dict[str, np.ndarray]:
        """What eager TensorFlow puts into and gets out of every convolution, channels last.

        Keys are `<layer>/input` and `<layer>/output` (after its activation) in order of execution,
        then `warp/output` and `moved/output`. Made to compare a port layer by layer.
        """
        network = self.network(moving_XYZ.shape)
        tensors = {}
        for convolution in self.architecture.convolutions():
            layer = network.get_layer(convolution.name)
            flow = convolution.name.endswith("_flow")
            last = layer if flow else network.get_layer(f"{convolution.name}_activation")
            tensors[f"{convolution.name}/input"] = layer.input
            tensors[f"{convolution.name}/output"] = last.output
        tensors["warp/output"], tensors["moved/output"] = network.outputs[1], network.outputs[0]
        inputs = [tf.constant(image[None, ..., None]) for image in (moving_XYZ, fixed_XYZ)]
        outputs = tf.keras.Model(network.inputs, list(tensors.values()))(inputs)
        return {name: value.numpy() for name, value in zip(tensors, outputs, strict=True)}


def load(path: Path | str) -> Reference:
    """The model in a voxelmorph `.h5` file."""
    return Reference(Path(path))


def set_threads(threads: int) -> None:
    """Let TensorFlow use `threads` threads within an operation, and run one operation at a time.

    TensorFlow takes these numbers once per process, before its first operation.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        raise UserError(
            f"TensorFlow already runs in this process and cannot change to {threads} threads; "
            "use one process per number of threads"
        ) from None


def register(
    model: Reference, moving_XYZ: np.ndarray, fixed_XYZ: np.ndarray, plain: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Moved image (X, Y, Z) and warp (X, Y, Z, V) in voxels of the fixed grid; of a batch of
    images (B, X, Y, Z), a batch of them.

    Runs as a graph whose operations stay as voxelmorph wrote them: the bytes of eager execution.
    `plain` runs `Model.predict` with TensorFlow's own graph optimizer, which reorders arithmetic.
    """
    shape = fixed_XYZ.shape[-3:]
    inputs = [
        np.asarray(image, np.float32).reshape(-1, *image.shape[-3:], 1)
        for image in (moving_XYZ, fixed_XYZ)
    ]
    if plain:
        moved, warp = model.network(shape).predict(inputs, verbose=0)
    else:
        with _arithmetic_as_written():
            moved, warp = (result.numpy() for result in model.graph(inputs[1].shape)(*inputs))
    return moved.reshape(fixed_XYZ.shape), warp.reshape(*fixed_XYZ.shape, 3)


@contextmanager
def _arithmetic_as_written() -> Iterator[None]:
    """Graphs run inside keep voxelmorph's operations: grappler's arithmetic optimizer is off."""
    before = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": before})
