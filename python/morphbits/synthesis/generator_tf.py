"""SynthMorph's image generator: neurite 0.2's `labels_to_image`, every draw a function of a key.

This and `models.synthmorph_tf` are the two modules that import TensorFlow.

neurite draws by `tf.random`, whose numbers depend on what was drawn before, or, inside a
`tf.function`, repeat; see notes/synthesis.md. While `labels_to_image` is built here, its calls of
`tf.random.uniform` and `normal` go to their stateless counterparts: the numbers of a draw depend
on the key of the image, which is an input of the compiled function, and on the seed that neurite
itself gives the draw. A draw without a seed is an error, and so is a random operation with a state
anywhere in the graph. Two faults of neurite 0.2 are worked round, both in `_build`:

- `draw_perlin` takes the largest amplitude of velocity and bias field for every image, although
  `labels_to_image` asks for random ones; it does draw them when told so by a deprecated argument.
- The width of the blur is drawn when the model is built, once and for all images. Building the
  model within the compiled function makes this draw, like all others, part of the function.

Arrays: X Y Z space.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

# first, because it sets what TensorFlow, voxelmorph and neurite read when they are imported
from morphbits.models import synthmorph_tf  # isort: skip
import neurite as ne
import tensorflow as tf

from morphbits.synthesis.generator import Choice, GeneratorConfig
from morphbits.synthesis.labels import LabelMaps

# numbers that tell neurite's draws apart; all of them together with the image's key are the seed
DRAWS = ("warp", "mean", "std", "noise", "background", "blur", "bias", "gamma")

Image = NDArray[np.float32]
Targets = NDArray[np.unsignedinteger[Any]]


def set_threads(threads: int) -> None:
    """TensorFlow's threads, before its first operation; the bytes of an image do not change."""
    synthmorph_tf.set_threads(threads)


class Generator:
    """Images and their label maps from keys."""

    def __init__(self, config: GeneratorConfig, maps: LabelMaps) -> None:
        self.maps = maps
        self._draw = _compiled(config, maps)

    def pair(self, choice: Choice) -> tuple[tuple[Image, Targets], tuple[Image, Targets]]:
        """Moving and fixed: for each the image (X, Y, Z) float32 in [0, 1], and its target map
        (X, Y, Z): 1 … L in the order of the targets, 0 for every other label."""
        return (
            self.image(choice.moving, choice.flips, choice.moving_key),
            self.image(choice.fixed, choice.flips, choice.fixed_key),
        )

    def image(
        self, number: int, flips: tuple[int, ...], key: tuple[int, int]
    ) -> tuple[Image, Targets]:
        """One image from label map `number`, flipped along `flips`, drawn by `key`."""
        indices = np.flip(self.maps[number], flips)
        image, targets = self._draw(tf.constant(indices), tf.constant(key, tf.int64))
        return image.numpy(), targets.numpy()


def _compiled(config: GeneratorConfig, maps: LabelMaps) -> Callable[[Any, Any], Any]:
    """Index map (X, Y, Z) and key (2,) int64 → image (X, Y, Z) float32, target map (X, Y, Z)."""
    kind = tf.as_dtype(np.min_scalar_type(len(maps.values) - 1))
    target_kind = tf.as_dtype(np.min_scalar_type(len(maps.targets)))

    @tf.function(
        input_signature=[tf.TensorSpec(maps.shape, kind), tf.TensorSpec((2,), tf.int64)],
        autograph=False,
    )
    def draw(indices: Any, key: Any) -> Any:
        with _stateless(key):
            image, targets = _build(config, maps)(tf.cast(indices, tf.float32)[None, ..., None])
        return image[0, ..., 0], tf.cast(targets[0, ..., 0], target_kind)

    function = draw.get_concrete_function()
    _refuse_state(function.graph.as_graph_def())
    return function


def _build(config: GeneratorConfig, maps: LabelMaps) -> Any:
    """neurite's model; see the module's text on where and why it is built."""
    channel = {label: k for k, label in enumerate(maps.targets, start=1)}
    return ne.models.labels_to_image(
        in_shape=maps.shape,
        in_label_list=range(len(maps.values)),
        out_label_list={
            index: channel[label] for index, label in enumerate(maps.values) if label in channel
        },
        warp_std=config.vel_std,
        warp_res=[float(word) for word in config.vel_res.split()],
        blur_std=config.blur_std,
        bias_std=config.bias_std,
        bias_res=[float(word) for word in config.bias_res.split()],
        gamma_std=config.gamma,
        zero_background=config.zero_background,
        one_hot=False,
        seeds={name: number for number, name in enumerate(DRAWS)},
    )


@contextmanager
def _stateless(key: Any) -> Iterator[None]:
    """neurite draws by `key` inside; what was there before comes back."""

    def by_key(draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(shape: Any, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
            if seed is None:
                raise RuntimeError("neurite makes a draw that has no seed")
            own_key = tf.random.fold_in(key, seed, alg="philox")
            return draw(shape, own_key, *args, alg="philox", **kwargs)

        # so that it can be given the symbolic tensors of a Keras model, as tf.random's can
        return tf.__internal__.dispatch.add_dispatch_support(drawn)

    uniform, normal, perlin = tf.random.uniform, tf.random.normal, ne.utils.augment.draw_perlin
    tf.random.uniform = by_key(tf.random.stateless_uniform)
    tf.random.normal = by_key(tf.random.stateless_normal)
    ne.utils.augment.draw_perlin = partial(perlin, modulate=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Argument modulate")
            yield
    finally:
        tf.random.uniform, tf.random.normal = uniform, normal
        ne.utils.augment.draw_perlin = perlin


def _refuse_state(graph: Any) -> None:
    """An image must not depend on what was drawn before it."""
    functions = [node for function in graph.library.function for node in function.node_def]
    names = {node.op for node in (*graph.node, *functions)}
    random = sorted(name for name in names if "Random" in name and "Stateless" not in name)
    if random:
        raise RuntimeError(f"the generator holds random operations with a state: {random}")
